#!/usr/bin/env bash
# squint prep as it is used: the same bytes at any number of ranks and after kills, one message for every bad input.
# Each row of a table is named; run one alone with: test_prep.sh NAME
set -uo pipefail
squint=${SQUINT:?the program to test}
only=${1:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

report() { # name, good?
    if [ "$2" = yes ]; then echo "ok   $1"; else echo "FAIL $1"; failures=$((failures + 1)); fi
}
check() { # name, command...
    local name=$1
    shift
    if "$@"; then report "$name" yes; else report "$name: $*" no; fi
}
prep() { "$squint" prep --tokenizer tok "$@"; }
ranks() { # how many, options of prep
    local n=$1
    shift
    mpirun -np "$n" --oversubscribe "$squint" prep --tokenizer tok "$@"
}
same() { diff -r "$1" "$2"; }

"$squint" corpus --out text.jsonl --megabytes 6 2>/dev/null || { echo "squint corpus does not work"; exit 1; }
"$squint" corpus --out small.jsonl --documents 30 --first 5000 2>/dev/null
"$squint" tokenizer train --vocab 400 --out tok small.jsonl >/dev/null 2>&1 || { echo "squint tokenizer train does not work"; exit 1; }
printf 'One document.\n' >one.txt
mkdir folder hollow
gzip -c one.txt >folder/a.gz && zstd -q -c small.jsonl -o folder/b.jsonl.zst && printf 'caf\xe9\n' >folder/c.txt

# --- bad inputs: exit code, message, nothing written ----------------------------------------------------------------
bad() { # name, exit code, message, arguments of prep
    local name=$1 expected=$2 message=$3 code=0
    shift 3
    [ -z "$only" ] || [ "$only" = "$name" ] || return 0
    mkdir -p out
    "$squint" prep "$@" >printed 2>messages </dev/null || code=$?
    if [ "$code" -ne "$expected" ] || ! grep -qF -- "$message" messages; then
        echo "expected exit $expected and \"$message\", found exit $code and:" && cat messages
        report "$name" no
    elif [ -n "$(ls -A out)" ] || [ -s printed ]; then
        echo "expected nothing written, found: $(ls -A out) $(cat printed)"
        report "$name" no
    else
        report "$name" yes
    fi
    rm -rf out
}
head -c 300 folder/b.jsonl.zst >short.jsonl.zst
gzip -c small.jsonl | head -c 2000 >short.jsonl.gz
gzip -c small.jsonl >whole.gz && head -c 1000 whole.gz >flipped.gz && printf 'XXXX' >>flipped.gz && tail -c +1005 whole.gz >>flipped.gz
: >empty.txt && gzip -c empty.txt >empty.gz
printf '{"text": "a"}\n{"text": "b"\n' >broken.jsonl && printf '{"body": "a"}\n' >other.jsonl && printf '{"text": ""}\n' >blank.jsonl
printf '{"text": "\xff"}\n' >latin.jsonl && printf '{"text": 4}\n' >number.jsonl && cp one.txt plain.gz && cp one.txt plain.zst
mkdir broken_tok && printf '{"model": 3}' >broken_tok/tokenizer.json
t=(--tokenizer tok --out out/x)
bad "no tokenizer" 2 "--tokenizer: expected" --out out/x one.txt
bad "no output" 2 "--out: expected" --tokenizer tok one.txt
bad "output is a folder" 2 "is a folder" --tokenizer tok --out out/ one.txt
bad "nothing to read" 2 "expected files" "${t[@]}"
bad "unknown option" 2 "did you mean --valid" "${t[@]}" --vald 0.1 one.txt
bad "share above 1" 2 "--valid: expected" "${t[@]}" --valid 1.5 one.txt
bad "share is no number" 2 "--valid: expected" "${t[@]}" --valid some one.txt
bad "share is NaN" 2 "--valid: expected" "${t[@]}" --valid nan one.txt
bad "no tokens in a shard" 2 "--shard-tokens: expected" "${t[@]}" --shard-tokens 0 one.txt
bad "unknown format" 2 "--format: expected" "${t[@]}" --format csv one.txt
bad "empty separator" 2 "separator is empty" "${t[@]}" --document-separator= one.txt
bad "separator and WikiText" 2 "not both" "${t[@]}" --document-separator x --wikitext one.txt
bad "value for a flag" 2 "takes no value" "${t[@]}" --pack=yes one.txt
bad "standard input twice" 2 "given twice" "${t[@]}" - -
bad "tokenizer not there" 1 "nothere" --tokenizer nothere --out out/x one.txt
bad "tokenizer damaged" 3 "broken_tok" --tokenizer broken_tok --out out/x one.txt
bad "file not there" 1 "nothere.txt" "${t[@]}" one.txt nothere.txt
bad "folder without files" 1 "holds no files" "${t[@]}" hollow
bad "empty file" 3 "empty.txt: is empty" "${t[@]}" one.txt empty.txt
bad "empty gzip" 3 "empty.gz: is empty" "${t[@]}" empty.gz
bad "empty standard input" 3 "standard input: is empty" "${t[@]}" -
bad "truncated gzip" 3 "truncated gzip" "${t[@]}" one.txt short.jsonl.gz
bad "truncated zstd" 3 "truncated zstd" "${t[@]}" one.txt short.jsonl.zst
bad "damaged gzip" 3 "damaged gzip" "${t[@]}" flipped.gz
bad "not gzip" 3 "expected gzip" "${t[@]}" plain.gz
bad "not zstd" 3 "expected zstd" "${t[@]}" plain.zst
bad "broken JSON line" 3 "broken.jsonl:2:" "${t[@]}" broken.jsonl
bad "JSON without the field" 3 "other.jsonl:1: the field \"text\" is missing" "${t[@]}" other.jsonl
bad "JSON field is no text" 3 "is not text" "${t[@]}" number.jsonl
bad "JSON not UTF-8" 3 "latin.jsonl:1:" "${t[@]}" latin.jsonl
bad "only empty documents" 3 "no document has any text" "${t[@]}" blank.jsonl
bad "only separators" 3 "no document has any text" "${t[@]}" --document-separator 'One document.\n' one.txt

# --- what is printed ---------------------------------------------------------------------------------------------------
if [ -z "$only" ]; then
    prep --out misc/a --json folder >summary 2>messages
    check "not UTF-8: warned of" grep -q "folder/c.txt: 1 byte sequences are not UTF-8, the first at byte 3" messages
    check "not UTF-8: counted" grep -q '"invalid_utf8": 1' summary
    check "a folder: all its documents" grep -q '"train": 31' summary
    prep --out misc/b - <text.jsonl >/dev/null 2>&1
    prep --out misc/c --format jsonl - <text.jsonl >/dev/null 2>&1
    prep --out misc/d text.jsonl >/dev/null 2>&1
    check "standard input is a document" grep -q '"train": 1' misc/b-prep.json
    check "standard input as JSON lines" diff <(grep -A2 tokens misc/c-prep.json) <(grep -A2 tokens misc/d-prep.json)
    check "standard input: no copy left" [ ! -e misc/c-stdin.tmp ]
    prep --out misc/d text.jsonl >printed 2>/dev/null
    check "again: nothing to do" grep -q "already done" printed
    cp misc/d-train-00000.h5 before
    prep --out misc/d --seed 2 text.jsonl >/dev/null 2>messages
    check "other settings are refused" [ $? -eq 2 ]
    check "other settings: named" grep -q "misc/d-train-00000.h5: exists and was made from other text" messages
    check "other settings: untouched" cmp misc/d-train-00000.h5 before
    prep --out misc/d --seed 2 --force text.jsonl >/dev/null 2>&1
    check "force" [ $? -eq 0 ]
    check "force: other bytes" [ "$(cmp misc/d-train-00000.h5 before | wc -l)" -eq 1 ]
    prep --out misc/d --seed 2 --force empty.txt >/dev/null 2>&1
    check "force with bad input removes nothing" [ -e misc/d-train-00000.h5 ]

    # --- ranks -------------------------------------------------------------------------------------------------------------
    options=(--valid 0.05 --shard-tokens 300000 --out x ../text.jsonl ../folder)
    mkdir straight && (cd straight && ln -s ../tok tok && prep "${options[@]}" >/dev/null 2>&1 && rm tok)
    check "several shards" [ -e straight/x-train-00003.h5 ]
    for n in 2 3 4; do
        mkdir "ranks$n" && (cd "ranks$n" && ln -s ../tok tok && ranks "$n" "${options[@]}" >printed 2>&1; rm tok printed)
        check "$n ranks: the same bytes" same straight "ranks$n"
    done
    mkdir stdin2 && ln -s ../tok stdin2/tok
    (cd stdin2 && ranks 2 --out x --format jsonl - ../folder <../text.jsonl >messages 2>&1)
    check "fault on one of two ranks: said once" [ "$(grep -c ":1: not a JSON object" stdin2/messages)" -eq 1 ]
    check "fault on one of two ranks: nothing written" [ -z "$(ls stdin2 | grep -v -e messages -e tok)" ]
    (cd stdin2 && ranks 2 --out c --format jsonl - <../text.jsonl >/dev/null 2>&1)
    check "standard input under mpirun" cmp stdin2/c-train-00000.h5 misc/c-train-00000.h5

    # --- kills -------------------------------------------------------------------------------------------------------------
    mkdir killed && ln -s ../tok killed/tok
    kills=0
    for i in $(seq 1 25); do
        [ -e killed/x-prep.json ] && rm -rf killed/x*
        (cd killed && exec "$squint" prep --tokenizer tok "${options[@]}" >/dev/null 2>&1) &
        pid=$!
        sleep "0.0$((i * 37 % 100))"
        [ $((i % 4)) -eq 0 ] && sleep 0.2
        if kill -KILL "$pid" 2>/dev/null; then kills=$((kills + 1)); fi
        wait "$pid" 2>/dev/null
        for shard in killed/x-*.h5; do
            [ ! -e "$shard" ] || cmp -s "$shard" "straight/$(basename "$shard")" || report "kill $i: $shard is not as it should be" no
        done
    done
    (cd killed && prep "${options[@]}" >/dev/null 2>&1; rm tok)
    check "killed $kills times: the same bytes" same straight killed
    mkdir stopped && ln -s ../tok stopped/tok
    code=0
    (cd stopped && exec "$squint" prep --tokenizer tok "${options[@]}" >/dev/null 2>messages) &
    pid=$!
    while [ ! -d stopped/x.work ] && kill -0 "$pid" 2>/dev/null; do sleep 0.005; done
    kill -TERM "$pid" 2>/dev/null
    wait "$pid" || code=$?
    if [ "$code" -ne 0 ]; then # it may have been quicker
        check "SIGTERM: exit code 75" [ "$code" -eq 75 ]
        check "SIGTERM: says that it goes on" grep -q "goes on from here" stopped/messages
    fi
    (cd stopped && prep "${options[@]}" >/dev/null 2>&1; rm -f tok messages)
    check "stopped: the same bytes" same straight stopped
    mkdir -p busy.work && (
        exec 9>busy.work/lock
        flock 9
        prep --out busy one.txt >/dev/null 2>messages
        grep -q "another squint prep" messages
    )
    check "two at once" [ $? -eq 0 ]
fi
echo "$failures failures"
[ "$failures" -eq 0 ]
