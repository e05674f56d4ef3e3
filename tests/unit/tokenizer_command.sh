#!/bin/sh
# squint tokenizer, as a person uses it: train, encode, decode, and what it says about mistakes.
[ -x "$SQUINT" ] || { echo "FAILED: no program at $SQUINT"; exit 1; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0

# expect CODE MESSAGE WORDS...: the program's exit code and its message on standard error.
expect() {
    code=$1 message=$2
    shift 2
    "$SQUINT" tokenizer "$@" >out 2>err </dev/null
    found=$?
    if [ "$found" -ne "$code" ] || ! grep -qF -- "$message" err; then
        echo "tokenizer $*: expected exit $code, \"$message\"; found $found, \"$(cat err)\""
        failed=1
    fi
}

same() { # WHAT FILE FILE
    cmp -s "$2" "$3" || { echo "$1: $2 and $3 differ"; failed=1; }
}

printf 'the house by the river, the door of the house\nthe river by the door\n%s\n' "it's 12 o'clock" >text.txt
"$SQUINT" tokenizer train --vocab 270 --out bpe text.txt 2>log || { cat log; exit 1; }
for file in tokenizer.json vocab.json merges.txt tokenizer_config.json; do
    [ -s "bpe/$file" ] || { echo "train wrote no $file"; failed=1; }
done
"$SQUINT" tokenizer encode --tokenizer bpe text.txt >ids.json || failed=1
"$SQUINT" tokenizer encode --tokenizer bpe <text.txt >piped.json || failed=1
"$SQUINT" tokenizer encode --tokenizer bpe/tokenizer.json - <text.txt >file.json || failed=1
same "FILE and standard input" ids.json piped.json
same "directory and tokenizer.json" ids.json file.json
"$SQUINT" tokenizer decode --tokenizer bpe ids.json >back.txt || failed=1
"$SQUINT" tokenizer decode --tokenizer bpe <ids.json >again.txt || failed=1
same "decoding a file" text.txt back.txt
same "decoding standard input" text.txt again.txt
head -c 300000 /dev/urandom >bytes.bin
"$SQUINT" tokenizer encode --tokenizer bpe bytes.bin | "$SQUINT" tokenizer decode --tokenizer bpe >bytes.back || failed=1
same "any bytes" bytes.bin bytes.back
[ "$(printf '<|endoftext|>' | "$SQUINT" tokenizer encode --tokenizer bpe --special)" = "[0]" ] || { echo "--special: expected [0]"; failed=1; }
[ "$(: | "$SQUINT" tokenizer encode --tokenizer bpe)" = "[]" ] || { echo "no text: expected []"; failed=1; }
[ "$(echo '[0]' | "$SQUINT" tokenizer decode --tokenizer bpe --special)" = "<|endoftext|>" ] || { echo "decode --special"; failed=1; }
gzip -k text.txt
"$SQUINT" tokenizer train --vocab 270 --out zipped text.txt.gz 2>log || { cat log; failed=1; }
same "training on .gz" bpe/tokenizer.json zipped/tokenizer.json

echo '[1, 2' >cut.json
echo '{"ids": [1]}' >object.json
echo '[1, "a"]' >text.json
echo '[1, 99999]' >large.json
: >empty.txt
expect 2 'expected train, encode or decode, found ""'
expect 2 'expected train, encode or decode, found "learn"' learn
expect 2 'train: --out DIR is missing' train --vocab 300 text.txt
expect 2 'train: --vocab N is missing' train --out never text.txt
expect 2 'train: INPUT is missing' train --vocab 300 --out never
expect 2 'train: --vocab: expected a number from 257 to' train --vocab 256 --out never text.txt
expect 2 'train: --vocab: expected a whole number, found "many"' train --vocab many --out never text.txt
expect 2 'train: --min-count: expected a number from 1 to' train --vocab 300 --min-count 0 --out never text.txt
expect 1 'none.txt' train --vocab 300 --out never none.txt
expect 3 'empty.txt' train --vocab 300 --out never empty.txt
expect 2 'encode: --tokenizer DIR is missing' encode text.txt
expect 2 'encode: expected one file, found "a" and "b"' encode --tokenizer bpe a b
expect 2 'unknown option --tokeniser; did you mean --tokenizer?' encode --tokeniser bpe text.txt
expect 1 'none: expected a tokenizer' encode --tokenizer none text.txt
expect 1 'none.txt' encode --tokenizer bpe none.txt
expect 3 'cut.json: line 2: expected a JSON list of ids' decode --tokenizer bpe cut.json
expect 3 'object.json: expected a JSON list of ids' decode --tokenizer bpe object.json
expect 3 'text.json: item 1: expected an id' decode --tokenizer bpe text.json
expect 2 'id 99999: expected an id of bpe, below 270' decode --tokenizer bpe large.json
expect 3 'standard input: line' decode --tokenizer bpe
[ ! -e never ] || { echo "a failed training wrote files"; failed=1; }
exit $failed
