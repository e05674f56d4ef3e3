#!/bin/bash
# squint inspect: what it says of each kind of thing, its exit codes, and what is damaged.
# usage: test_inspect.sh TEST_SHARD TEST_CHECKPOINT (programs that write examples); the command is $SQUINT.
set -u
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0

# expect CODE TEXT ARGUMENTS...: the exit code, and a text in what is printed
expect() {
    local code=$1 text=$2 output found
    shift 2
    output=$("$SQUINT" inspect "$@" 2>&1)
    found=$?
    if [ "$found" != "$code" ] || ! grep -qF -- "$text" <<<"$output"; then
        printf 'squint inspect %s: expected exit code %s and "%s", found %s and:\n%s\n' "$*" "$code" "$text" "$found" "$output"
        failures=$((failures + 1))
    fi
}

"$1" --write "$folder/shard.h5" || exit 1
for step in 1 2; do "$2" --write "$folder/run" "$step" || exit 1; done
checkpoint=$folder/run/checkpoints/step-00000002

expect 0 "token shard" "$folder/shard.h5"
expect 0 '"tokens": 14001' "$folder/shard.h5" --json
expect 0 '"verified": true' "$folder/shard.h5" --json --verify
expect 0 "tensors: 9" "$checkpoint"
expect 0 '"sample": 128' "$checkpoint" --json --verify
expect 0 "checkpoints: 2" "$folder/run"
expect 0 "verified" "$folder/run" --verify
expect 2 "expected one path, found 0"
expect 2 "expected one path, found 2" "$folder/run" "$checkpoint"
expect 2 "did you mean --verify" "$folder/run" --verfy
expect 2 "is a part of a checkpoint" "$checkpoint/index.h5"
expect 1 "cannot look at it" "$folder/absent"
echo "once upon a time" >"$folder/text"
expect 3 "found another file" "$folder/text"
mkdir "$folder/empty" "$folder/tokenizer" "$folder/model"
expect 3 "found none of them" "$folder/empty"
echo "{}" >"$folder/tokenizer/tokenizer.json"
expect 0 "tokenizer" "$folder/tokenizer"
echo "not JSON" >"$folder/model/config.json"
expect 3 "config.json" "$folder/model"

# One byte of the tokens, and of a slice, is another.
cp "$folder/shard.h5" "$folder/flipped.h5"
printf '\xff' | dd of="$folder/flipped.h5" bs=1 seek=$((1048576 + 5000)) conv=notrunc status=none
expect 0 "token shard" "$folder/flipped.h5"
expect 3 '"verified": false' "$folder/flipped.h5" --verify --json
printf '\xff' | dd of="$checkpoint/rank-00000-of-00001.h5" bs=1 seek=$((1048576 + 5000)) conv=notrunc status=none
expect 3 "expected hash" "$checkpoint" --verify
expect 3 "expected hash" "$folder/run" --verify
expect 3 '"state": "verified"' "$folder/run" --verify --json
truncate -s 1000 "$checkpoint/index.h5"
expect 3 "truncated" "$checkpoint"
expect 0 "truncated" "$folder/run"

model=${SQUINT_DATA:-}/stories260K
if [ -f "$model/config.json" ]; then
    expect 0 "Llama type" "$model" --verify
    expect 0 '"layers": 5' "$model" --json
    expect 0 "safetensors" "$model/model.safetensors" --verify
fi
[ "$failures" = 0 ] && echo "all as expected"
exit $((failures > 0))
