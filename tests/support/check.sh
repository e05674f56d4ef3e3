# What the tests of whole commands share: `check NAME COMMAND…` tells how a command went and counts in $failures what failed;
# `make_shards` makes a text, its tokenizer and its shards with $squint.
failures=0
check() { # name, command...
    local name=$1
    shift
    if "$@" >out.txt 2>&1; then
        echo "ok   $name: $(tail -n 1 out.txt)"
    else
        echo "FAIL $name: $*"
        tail -n 5 out.txt
        failures=$((failures + 1))
    fi
}
make_shards() { # documents, vocabulary, held-out share: c.jsonl, tok, c-train-*.h5, c-valid-*.h5
    { "$squint" corpus --out c.jsonl --documents "$1" && "$squint" tokenizer train --vocab "$2" --out tok c.jsonl &&
        "$squint" prep --tokenizer tok --out c --valid "$3" c.jsonl; } >prep.txt 2>&1 || { cat prep.txt; exit 1; }
}
