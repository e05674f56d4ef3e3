#!/usr/bin/env bash
# data-prep/fetch against a server on this machine: whole, interrupted, without byte ranges, wrong hash, missing file.
# WikiText needs pyarrow; without it that half is left out and said so.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
fetch="$here/../../data-prep/fetch"
work=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
command -v python3 >/dev/null && command -v curl >/dev/null || { echo "skipped: python3 or curl is not here"; exit 77; }

failures=0
check() { # name, command...
    local name=$1
    shift
    if "$@"; then echo "ok   $name"; else echo "FAIL $name: $*"; failures=$((failures + 1)); fi
}
serve() { # bytes after which connections are cut
    if [ -n "$server" ]; then kill "$server" && wait "$server" 2>/dev/null || true; fi
    rm -f "$work/port" "$work/root/log"
    python3 "$here/fetch_server.py" "$work/root" "$work/port" "$1" &
    server=$!
    for _ in $(seq 100); do [ -e "$work/port" ] && break || sleep 0.1; done
    SQUINT_FETCH_BASE="http://127.0.0.1:$(cat "$work/port")"
    export SQUINT_FETCH_BASE
}
run() { # expected exit code, text expected in its messages, arguments of fetch
    local expected=$1 text=$2 code=0
    shift 2
    "$fetch" "$@" 2>"$work/messages" || code=$?
    [ "$code" -eq "$expected" ] && grep -qF -- "$text" "$work/messages" && return 0
    echo "expected exit $expected and \"$text\", found exit $code and:" && cat "$work/messages"
    return 1
}
same_model() { for f in config.json model.safetensors tokenizer.json vocab.json merges.txt; do cmp "$model/$f" "$1/$f" || return 1; done; }
no_rests() { [ -z "$(find "$1" -name '.*.part' -o -name '*.tmp*')" ]; }
resumed() { grep -q "model.safetensors [1-9][0-9]* 206" "$work/root/log"; }

model="$work/root/models/openai-community/gpt2"
mkdir -p "$model"
python3 - "$model" <<'END'
import random, sys
random.seed(1)
for name, size in [("config.json", 665), ("model.safetensors", 300001), ("tokenizer.json", 50000), ("vocab.json", 12000),
                   ("merges.txt", 9000), ("README.md", 20)]:
    open(f"{sys.argv[1]}/{name}", "wb").write(random.randbytes(size))
END
export SQUINT_FETCH_ATTEMPTS=2

serve 0
check "whole" run 0 "gpt2 is in" gpt2 "$work/a"
check "whole: the same bytes" same_model "$work/a"
check "whole: no other files" [ "$(find "$work/a" | wc -l)" -eq 6 ]
check "again: nothing to do" run 0 "config.json is there" gpt2 "$work/a"
printf x >>"$work/a/vocab.json"
check "a file of ours that differs is left alone" run 1 "differs from the published file" gpt2 "$work/a"
check "unknown name" run 2 "found \"gpt3\"" gpt3 "$work/b"
check "no folder" run 2 "usage:" gpt2
check "wrong base" env SQUINT_FETCH_BASE=ftp://x "$BASH" -c "! '$fetch' gpt2 '$work/b' 2>/dev/null"

serve 70000
check "interrupted" run 0 "connection lost" gpt2 "$work/c"
check "interrupted: the same bytes" same_model "$work/c"
check "interrupted: goes on inside the file" resumed
head -c 1234 "$model/model.safetensors" >"$work/part"
mkdir -p "$work/d" && cp "$work/part" "$work/d/.model.safetensors.part"
check "a rest of an earlier run" run 0 "gpt2 is in" gpt2 "$work/d"
check "a rest of an earlier run: the same bytes" same_model "$work/d"
check "a rest of an earlier run: used" grep -q "model.safetensors 1234 206" "$work/root/log"
mkdir -p "$work/e" && head -c 400000 /dev/zero >"$work/e/.model.safetensors.part"
check "a rest that is too long" run 0 "gpt2 is in" gpt2 "$work/e"
check "a rest that is too long: the same bytes" same_model "$work/e"

serve 0
touch "$work/root/no-ranges"
mkdir -p "$work/f" && cp "$work/part" "$work/f/.model.safetensors.part"
check "no byte ranges" run 0 "gpt2 is in" gpt2 "$work/f"
check "no byte ranges: the same bytes" same_model "$work/f"
rm "$work/root/no-ranges"
mkdir -p "$work/g" && head -c 1234 /dev/zero >"$work/g/.model.safetensors.part"
check "a rest of other bytes" run 3 "hash is not" gpt2 "$work/g"
check "a rest of other bytes: then whole" run 0 "gpt2 is in" gpt2 "$work/g"
for path in model.safetensors config.json; do
    echo "$path" >"$work/root/lie"
    check "wrong hash of $path" run 3 "$path: its " gpt2 "$work/h-$path"
    check "wrong hash of $path: not shown" [ ! -e "$work/h-$path/$path" ]
    check "wrong hash of $path: nothing left" no_rests "$work/h-$path"
done
rm "$work/root/lie"
mv "$model/merges.txt" "$work/merges.txt"
check "missing file" run 1 "does not list merges.txt" gpt2 "$work/i"
check "missing file: nothing written" [ -z "$(ls -A "$work/i")" ]
mv "$work/merges.txt" "$model/merges.txt"

python=$(for p in ${SQUINT_PYTHON:+"$SQUINT_PYTHON"} python3 "$here/../../build/oracles/bin/python"; do
    "$p" -c "import pyarrow.parquet" 2>/dev/null && echo "$p" && break; done || true)
if [ -z "$python" ]; then
    echo "left out: WikiText, because no python3 here has pyarrow"
    SQUINT_PYTHON=/nonexistent check "no pyarrow" run 1 "install pyarrow" wikitext-2 "$work/w"
else
    export SQUINT_PYTHON=$python
    text="$work/root/datasets/Salesforce/wikitext/wikitext-2-raw-v1"
    mkdir -p "$text"
    "$python" - "$work" "$text" <<'END'
import sys, pyarrow as pa, pyarrow.parquet as pq
work, text = sys.argv[1:]
for split, parts in [("train", 2), ("validation", 1), ("test", 1)]:
    lines = [" \n", f" = {split} \u00e9 = \n", " \n", " One line . \n", "  Two \u2013 spaces \u4e2d \n", " \n"] * 3000
    name = {"validation": "valid"}.get(split, split)
    open(f"{work}/{name}.raw", "w", encoding="utf-8", newline="").write("".join(lines))
    rows = [line if line.strip() else "" for line in lines]  # as the publisher makes them
    cut = [len(rows) * i // parts for i in range(parts + 1)]
    for i in range(parts):
        pq.write_table(pa.table({"text": rows[cut[i]:cut[i + 1]]}), f"{text}/{split}-{i:05d}-of-{parts:05d}.parquet")
END
    serve 3000
    check "WikiText" run 0 "wikitext-2 is in" wikitext-2 "$work/w"
    for split in train valid test; do check "WikiText: $split" cmp "$work/$split.raw" "$work/w/wiki.$split.raw"; done
    check "WikiText: nothing else" [ "$(ls -A "$work/w" | wc -l)" -eq 3 ]
    check "WikiText: again" run 0 "are there" wikitext-2 "$work/w"
    printf 'PAR1 no parquet' >"$text/test-00000-of-00001.parquet"
    check "not parquet" run 3 "cannot be turned into text" wikitext-2 "$work/x"
    rm "$text"/validation*
    check "a part missing" run 1 "no validation part" wikitext-2 "$work/y"
fi
echo "$failures failures"
[ "$failures" -eq 0 ]
