#!/usr/bin/env bash
# What eval, generate, logits and bench say to wrong options and inputs: exit code, message, and no file written.
# Needs no data but tests/model/goldens and what it makes itself.
set -u
squint=${SQUINT:-build/release/squint}
source=${SQUINT_SOURCE:-.}
models=$source/tests/model/goldens
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
mkdir -p in empty run/checkpoints

# --- inputs ---
echo '{"ids": [[1, 2, 3], [4, 5]]}' >in/ragged.json
echo '{"ids": [[1, 2, 101]]}' >in/beyond.json
echo '{"ids": [[1, -2]]}' >in/negative.json
echo '{"ids": [[1, 2.5]]}' >in/real.json
echo '{"ids": [7]}' >in/flat.json
echo '{"ids": []}' >in/none.json
echo '{"tokens": [[1]]}' >in/other.json
echo '{"ids": [[1, 2' >in/cut.json
: >in/empty.json
echo '{"ids": [[1, 2, 3]]}' >in/good.json
printf '{"ids": [[%s]]}' "$(seq -s, 0 40)" >in/long.json
echo 'not a shard' >in/text.h5
cp -r "$models/gpt2-tied" in/cut-model && truncate -s 1000 in/cut-model/model.safetensors
cp -r "$models/gpt2-tied" in/bad-config && echo '{' >in/bad-config/config.json
chmod -R u+w in
# A shard whose vocabulary of 101 fits the GPT-2 models, and one token short of anything to predict.
"$squint" generate --model "$models/llama-gqa" --samples 4 --length 16 --out in/shard >/dev/null 2>in/log || { cat in/log; exit 1; }
shard=in/shard-train-00000.h5

rows=0 bad=0
before=$(find . | sort)
# row EXIT "PART OF THE MESSAGE" ARGUMENTS...
row() {
  local code=$1 message=$2 output found
  shift 2
  output=$("$squint" "$@" 2>&1 >/dev/null </dev/null)
  found=$?
  rows=$((rows + 1))
  if [ "$found" != "$code" ] || [[ "$output" != *"$message"* ]]; then
    echo "row $rows: squint $*"
    echo "  expected exit $code and \"$message\""
    echo "  found    exit $found and \"$output\""
    bad=$((bad + 1))
  fi
  if [ "$(find . | sort)" != "$before" ]; then
    echo "row $rows: squint $*: left files behind:"
    diff <(echo "$before") <(find . | sort)
    bad=$((bad + 1))
    before=$(find . | sort)
  fi
}

gpt2=$models/gpt2-tied llama=$models/llama-gqa
# --- which model ---
row 2 "--model: expected a model, found none" eval --data $shard
row 1 "nowhere: expected a Hugging Face directory, a checkpoint or a run directory, found nothing" eval --model nowhere --data $shard
row 2 "expected a Hugging Face directory (config.json), a checkpoint (index.h5) or a run" eval --model empty --data $shard
row 1 "checkpoint" eval --model run --data $shard
row 3 "in/bad-config/config.json" eval --model in/bad-config --data $shard
row 3 "model.safetensors" eval --model in/cut-model --data $shard
row 2 "--precision: expected fp32, bf16, found \"fp8\"" eval --model "$gpt2" --data $shard --precision fp8
row 2 "--positions: expected refuse, interpolate, tile, found \"wrap\"" eval --model "$gpt2" --data $shard --positions wrap
row 2 "--device" eval --model "$gpt2" --data $shard --device tpu
row 2 "--threads: expected a number from 0 to 4096, found \"-1\"" eval --model "$gpt2" --data $shard --threads -1
# --- eval ---
row 2 "--data: expected token shards, found none" eval --model "$gpt2"
row 1 "missing.h5" eval --model "$gpt2" --data missing.h5
row 1 "missing-*.h5" eval --model "$gpt2" --data 'missing-*.h5'
row 3 "in/text.h5" eval --model "$gpt2" --data in/text.h5
row 2 "unknown option --lenght; did you mean --length?" eval --model "$gpt2" --data $shard --lenght 5
row 2 "--length: expected a number from 1" eval --model "$gpt2" --data $shard --length 0
row 2 "--length: expected a whole number, found \"many\"" eval --model "$gpt2" --data $shard --length many
row 2 "--stride: expected 1 to --length, 8, found 9" eval --model "$gpt2" --data $shard --length 8 --stride 9
row 2 "--joined and --documents do not go together" eval --model "$gpt2" --data $shard --joined --documents
row 2 "learned positions" eval --model "$gpt2" --data $shard --length 30
row 1 "teacher-is-not-there" eval --model "$gpt2" --data $shard --teacher teacher-is-not-there
row 2 "unexpected word" eval "$gpt2" --data $shard
row 2 "--batch: expected a number from 1" eval --model "$gpt2" --data $shard --batch 0
row 1 "no/where/e.json" eval --model "$gpt2" --data $shard --length 8 --json no/where/e.json
# --- generate ---
row 2 "expected --prompt TEXT or --samples N --out PREFIX, found neither" generate --model "$llama"
row 2 "--samples: expected --out PREFIX beside it, found none" generate --model "$llama" --samples 3
row 2 "--out: expected --samples N beside it, found none" generate --model "$llama" --prompt a --out x
row 2 "--prompt and --samples do not go together" generate --model "$llama" --prompt a --samples 3 --out x
row 2 "no tokenizer in it; name one with --tokenizer DIR" generate --model "$llama" --prompt a
row 1 "no-tokenizer" generate --model "$llama" --prompt a --tokenizer no-tokenizer
row 2 "--temperature: expected a number from 0" generate --model "$llama" --prompt a --temperature -1
row 2 "--top-p: expected a number from 1e-06 to 1, found \"1.5\"" generate --model "$llama" --prompt a --top-p 1.5
row 2 "--tokens: expected a number from 1" generate --model "$llama" --prompt a --tokens 0
row 2 "--valid: expected a number from 0 to 1, found \"2\"" generate --model "$llama" --samples 3 --out x --valid 2
row 2 "--length: expected a number from 2" generate --model "$llama" --samples 3 --out x --length 1
row 1 "no/where/x" generate --model "$llama" --samples 3 --length 8 --out no/where/x
row 2 "learned positions" generate --model "$gpt2" --samples 3 --length 64 --out x
# --- logits ---
row 2 "--ids: expected a JSON file, found none" logits --model "$gpt2" --out x.h5
row 2 "--out: expected the name of an HDF5 file, found none" logits --model "$gpt2" --ids in/good.json
row 1 "in/absent.json" logits --model "$gpt2" --ids in/absent.json --out x.h5
row 3 "in/ragged.json: ids[1]: expected 3 ids as in ids[0], found 2" logits --model "$gpt2" --ids in/ragged.json --out x.h5
row 3 "in/beyond.json: ids[0][2]: expected an id from 0 to 100" logits --model "$gpt2" --ids in/beyond.json --out x.h5
row 3 "in/negative.json: ids[0][1]: expected an id from 0 to 100" logits --model "$gpt2" --ids in/negative.json --out x.h5
row 3 "in/real.json: ids[0][1]: expected an id" logits --model "$gpt2" --ids in/real.json --out x.h5
row 3 "in/flat.json: ids: expected a list of lists of ids" logits --model "$gpt2" --ids in/flat.json --out x.h5
row 3 "in/none.json: ids: expected a list of lists of ids" logits --model "$gpt2" --ids in/none.json --out x.h5
row 3 "in/other.json: ids: expected a list of lists of ids" logits --model "$gpt2" --ids in/other.json --out x.h5
row 3 "in/cut.json:" logits --model "$gpt2" --ids in/cut.json --out x.h5
row 3 "in/empty.json:" logits --model "$gpt2" --ids in/empty.json --out x.h5
row 2 "learned positions" logits --model "$gpt2" --ids in/long.json --out x.h5
row 1 "no/where" logits --model "$gpt2" --ids in/good.json --out no/where/x.h5
# --- bench ---
row 2 "expected attention, decode, step, prep, tune or comm, found \"\"" bench
row 2 "expected attention, decode, step, prep, tune or comm, found \"speed\"" bench speed
row 2 "bench step: --width: expected a multiple of --heads, 5, found 64" bench step --heads 5 --width 64
row 2 "bench prep: --tokenizer: expected a directory, found none" bench prep --file in/good.json
row 2 "bench tune: --lengths: expected numbers from 1 to 16777216, found \"0\"" bench tune --lengths 0 --device cpu
row 2 "bench tune: --widths: expected numbers from 1 to 64, found \"65\"" bench tune --widths 65 --device cpu
row 2 "bench comm: expected two ranks or more, found one; start it under mpirun" bench comm
row 2 "bench comm: --sizes: expected numbers from 1 to 68719476736, found \"-4\"" bench comm --sizes=-4
row 2 "bench tune: device cpu has no kernel with several forms; expected --device cuda" bench tune --device cpu
row 2 "student.attention: kind: expected one of full, masks" bench step --attention "kind: colour" --device cpu
row 2 "--lengths: expected numbers from 1" bench attention --lengths 0
row 2 "--heads: expected a multiple of --groups, 4, found 6" bench attention --heads 6 --groups 4
row 2 "--kinds: expected KIND:KEY=WORD, found option \"window\"" bench attention --kinds full,kerformer:window
row 2 "--kinds:2: student.attention: kind: expected one of full, masks" bench attention --kinds full,flash
row 2 "attention kerformer: map: expected hedgehog, exp, relu-se, found \"elu\"" bench attention --kinds kerformer:map=elu
row 2 "--kinds: expected names of kinds" bench attention --kinds full,,full
row 2 "bench decode: --positions: expected numbers from 1" bench decode --positions 128 0
row 2 "bench decode: --positions: expected numbers from 1 to 16777216, found \"many\"" bench decode --positions many
row 2 "bench decode: --positions: expected at most 16, found 17" bench decode --positions $(seq 17)
row 2 "bench decode: --positions: expected rising numbers, found 8 after 8" bench decode --positions 8 8
row 2 "bench decode: unknown option --lengths" bench decode --lengths 8
row 2 "bench decode: --heads: expected a multiple of --groups, 4, found 6" bench decode --heads 6 --groups 4
row 2 "bench decode: --repeats: expected a number from 1 to 1000, found \"0\"" bench decode --repeats 0
row 2 "bench decode: --kinds: expected KIND:KEY=WORD, found option \"window\"" bench decode --kinds full,kerformer:window
row 2 "bench decode: --kinds:2: student.attention: kind: expected one of full, masks" bench decode --kinds full,flash --positions 8
row 2 "attention kerformer: map: expected hedgehog, exp, relu-se, found \"elu\"" bench decode --kinds kerformer:map=elu --positions 8
row 2 "bench decode: --kinds: expected names of kinds" bench decode --kinds full,,full

echo "$((rows - bad)) of $rows rows as expected"
[ "$bad" = 0 ]
