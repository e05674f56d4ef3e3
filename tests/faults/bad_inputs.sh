#!/usr/bin/env bash
# What every command says to wrong options, recipes, shards, models, tokenizers, checkpoints and texts: the exit code (2 usage, 3 damaged,
# 1 other), the one line on standard error, and that nothing was written. Inputs are made here, from tests/model/goldens and a made-up corpus.
#   bad_inputs.sh            every row
#   bad_inputs.sh PATTERN    the rows whose command or message holds PATTERN; prints what each says
# (eval, generate, logits and bench have a table of their own besides: tests/pipeline/bad_inputs_eval.sh.)
set -u
squint=${SQUINT:-build/release/squint}
source=${SQUINT_SOURCE:-.}
squint=$(realpath "$squint") models=$(realpath "$source/tests/model/goldens") only=${1:-}
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work" || exit 1
export LC_ALL=C OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# --- good inputs: a corpus, its tokenizer, its shards, a teacher, a student ---------------------------------------------------------------
cat >lm.yaml <<'Y'
run: lm
tokenizer: tok
from_scratch: {type: gpt2, layers: 2, heads: 2, width: 16}
data: {train: c-train-*.h5, valid: c-valid-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 16, batch: 4, steps: 2, lr: 2.0e-2}
train: {micro_batch: 2}
checkpoint: {every: 1, keep: 3}
eval: {sequences: 2}
Y
cat >kl.yaml <<'Y'
run: kl
teacher: lm
data: {train: c-train-*.h5, valid: c-valid-*.h5}
student:
  attention: [{layers: all, kind: masks, candidates: [window(3), sinks(1)]}]
stages:
  - {name: align, objective: attention, train: new, length: 16, batch: 4, steps: 1, lr: 1.0e-2}
  - {name: distil, objective: kl, train: [new, attn.qkv], length: 16, batch: 4, steps: 2, lr: 1.0e-3}
train: {micro_batch: 2}
checkpoint: {every: 1, keep: 3}
eval: {sequences: 2}
Y
good() {
    "$squint" "$@" >good.log 2>&1 || { echo "squint $*: a good input is refused:"; cat good.log; exit 1; }
}
good corpus --out c.jsonl --documents 12
good tokenizer train --vocab 300 --out tok c.jsonl
good tokenizer train --vocab 290 --out tok290 c.jsonl
good prep --tokenizer tok --out c --valid 0.2 c.jsonl
good prep --tokenizer tok290 --out d --valid 0 c.jsonl
good train lm.yaml
good train kl.yaml
good train lm.yaml --run=lm2 --seed=2
good export --model kl --out exported

# --- bad ones, made of them ---------------------------------------------------------------------------------------------------------------
# poke FILE OFFSET BYTES: printf's escapes, in place
poke() { printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
flip() { # FILE OFFSET: another byte than was there
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    poke "$1" "$2" "$(printf '\\x%02x' $((byte ^ 1)))"
}
# copy FROM TO [sed script for TO/FILE FILE]
copy() {
    cp -rL --no-preserve=mode "$1" "$2"
    if [ $# -gt 2 ]; then
        sed -i "$3" "$2/$4"
        ! cmp -s "$1/$4" "$2/$4" || { echo "nothing changed in $2/$4 by $3"; exit 1; }
    fi
}
recipe() { # FROM TO sed script
    sed "$3" "$1.yaml" >"$2.yaml"
    ! cmp -s "$1.yaml" "$2.yaml" || { echo "nothing changed in $2.yaml by $3"; exit 1; }
}
# a safetensors file of a header and as many bytes of data
safetensors() { # FILE HEADER DATA_BYTES
    local length=${#2}
    printf "$(printf '\\x%02x\\x%02x\\0\\0\\0\\0\\0\\0' $((length % 256)) $((length / 256)))" >"$1"
    printf '%s' "$2" >>"$1"
    head -c "$3" /dev/zero >>"$1"
}

recipe lm tabs 's/^train:/\ttrain:/'
recipe lm twice '$a seed: 1\nseed: 2'
recipe lm cut '$a stages: [{name: x'
recipe lm two '$a ---\nrun: other'
recipe lm no-run '/^run:/d'
recipe lm no-stages '/^stages:/,/objective/d'
recipe lm no-width 's/, width: 16//'
recipe lm unknown 's/micro_batch/mirco_batch/'
recipe lm foreign 's/^train: /trian: /'
recipe lm listed 's/^eval: .*/eval: [1, 2]/'
recipe lm kl-alone 's/objective: lm/objective: kl/'
recipe kl no-student '/^student:/,/attention:/d'
recipe kl lm-taught 's/objective: attention/objective: lm/'
recipe kl both '$a from_scratch: {layers: 1, heads: 1, width: 8}'
recipe kl same-names 's/name: distil/name: align/'
recipe kl no-kind 's/kind: masks, //'
recipe kl nsa 's/kind: masks, candidates.*/kind: nsb}]/'
recipe kl no-candidates 's/, candidates: .*/}]/'
recipe kl candidate 's/window(3)/widow(3)/'
recipe kl window0 's/window(3)/window(0)/'
recipe kl option 's/kind: masks/kind: masks, top: 3/'
recipe kl starts 's/kind: masks/kind: masks, start: [1, 2, 3]/'
recipe kl per 's/kind: masks/kind: masks, per: token/'
recipe kl layer9 's/layers: all/layers: 9/'
recipe kl layers 's/layers: all/layers: 5-3/'
recipe kl gone-teacher 's/^teacher: lm/teacher: nowhere/'
recipe kl empty-teacher 's/^teacher: lm/teacher: empty/'
recipe kl no-parameter 's/attn.qkv/attn.kqv/'
recipe kl other-teacher 's/^teacher: lm/teacher: lm2/'
recipe kl bucket '$a parallel: {bucket_mib: 0}'
recipe kl context '$a parallel: {context: 2}'
printf 'run: \x00\n' >binary.yaml
: >empty.yaml
mkdir empty

cp c-train-00000.h5 flipped.h5 && flip flipped.h5 $((1048576 + 100))
head -c 1060000 c-train-00000.h5 >short.h5
head -c 100 c-train-00000.h5 >stub.h5
: >nothing.h5
cp c-train-00000.h5 renamed.h5 && sed -i 's/squint tokens/squint tokeus/' renamed.h5
cp kl/checkpoints/step-00000003/rank-00000-of-00001.h5 slice.h5

tied=$models/gpt2-tied tensors=model.safetensors
copy "$tied" m-missing 's/h\.0\.attn\.c_attn\.bias/h.0.attn.c_attn.bios/' $tensors
copy "$tied" m-shape 's/"shape":\[48,144\]/"shape":[144,48]/' $tensors
copy "$tied" m-type '0,/"F32"/s//"I32"/' $tensors
copy "$tied" m-dtype '0,/"F32"/s//"F31"/' $tensors
copy "$tied" m-hole 's/\[28224,28416\]/[28225,28417]/' $tensors
copy "$tied" m-bytes 's/"shape":\[144\]/"shape":[145]/' $tensors
copy "$tied" m-json '0,/"__metadata__":/s//"__metadata__"=/' $tensors
copy "$tied" m-header && poke m-header/$tensors 4 '\x01'
copy "$tied" m-short && truncate -s 100000 m-short/$tensors
copy "$tied" m-longer && printf 'more' >>m-longer/$tensors
copy "$tied" m-five && printf 'five!' >m-five/$tensors
copy "$tied" m-nan && poke m-nan/$tensors $(($(stat -c %s m-nan/$tensors) - 4)) '\x00\x00\xc0\x7f'
copy "$tied" m-none && rm m-none/$tensors
copy "$tied" m-pickled && mv m-pickled/$tensors m-pickled/pytorch_model.bin
copy "$tied" m-alien && safetensors m-alien/$tensors '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' 8
copy lm/model lm-short && truncate -s 9000 lm-short/$tensors
copy "$tied" c-type 's/"gpt2"/"mamba"/' config.json
copy "$tied" c-heads 's/"n_head": 3/"n_head": 5/' config.json
copy "$tied" c-layers 's/"n_layer": 2/"n_layer": "two"/' config.json
copy "$tied" c-gone '/"n_embd"/d' config.json
copy "$tied" c-cut && truncate -s 50 c-cut/config.json
copy "$tied" c-act 's/gelu_new/swish/' config.json
copy "$models/llama-sharded" s-gone && rm s-gone/model-00002-of-00003.safetensors
copy "$models/llama-sharded" s-index 's/"lm_head.weight": "model-00003/"lm_head.weight": "model-00001/' model.safetensors.index.json
copy "$models/llama-sharded" s-escape 's/"lm_head.weight": "model/"lm_head.weight": "..\/model/' model.safetensors.index.json
copy "$models/llama-sharded" s-groups 's/"num_key_value_heads": 2/"num_key_value_heads": 4/' config.json
copy exported x-version 's/"format_version": *1/"format_version": 9/' squint.json
copy exported x-none && rm x-none/squint.safetensors

copy tok t-cut && truncate -s 2000 t-cut/tokenizer.json
copy tok t-list && echo '[1]' >t-list/tokenizer.json
copy tok t-type 's/"BPE"/"Unigram"/' tokenizer.json
copy tok t-step 's/"ByteLevel"/"Whitespace"/' tokenizer.json
mkdir t-vocab t-merges && cp tok/vocab.json t-vocab && cp tok/vocab.json t-merges && printf '#version: 0.2\nq~ zz\n' >t-merges/merges.txt

copy kl k-flipped && flip k-flipped/checkpoints/step-00000003/rank-00000-of-00001.h5 $(($(stat -c %s kl/checkpoints/step-00000003/rank-00000-of-00001.h5) / 2))
last=kl/checkpoints/step-00000003
copy $last k-lost && rm k-lost/rank-*.h5
copy $last k-short && truncate -s 2000 k-short/index.h5
copy $last k-text && echo hello >k-text/index.h5
copy $last k-cut && truncate -s 3000 k-cut/rank-00000-of-00001.h5
copy kl k-all && for file in k-all/checkpoints/step-*/index.h5; do truncate -s 1000 "$file"; done
mkdir -p k-empty/checkpoints

gzip -c c.jsonl >whole.jsonl.gz && head -c 3000 whole.jsonl.gz >cut.jsonl.gz
cp whole.jsonl.gz crc.jsonl.gz && flip crc.jsonl.gz 2000
cp c.jsonl plain.txt.gz
cp c.jsonl plain.txt.zst
: >empty.txt
echo '{"text": "a"' >cut.jsonl
echo '{"body": "a"}' >field.jsonl
echo '{"text": 7}' >number.jsonl
echo '["a"]' >array.jsonl
echo 'not JSON' >words.jsonl
echo '[1, 2' >cut.json
echo '[1, 999999]' >beyond.json
echo '{"a": 1}' >object.json
echo 'some text' >note.txt
echo 'data' >file

# --- the table ----------------------------------------------------------------------------------------------------------------------------
rows=0 bad=0
listing() { find . ! -name stderr \( -type d -printf '%p\n' -o -printf '%p %s %T@\n' \) | sort; }
: >stderr
before=$(listing)
# row EXIT "PART OF THE MESSAGE" ARGUMENTS...
row() {
    local code=$1 message=$2 found after said
    shift 2
    [[ -z "$only" || "$* $message" == *"$only"* ]] || return 0
    timeout 60 "$squint" "$@" >/dev/null 2>stderr </dev/null
    found=$?
    said=$(cat stderr)
    rows=$((rows + 1))
    [ -z "$only" ] || printf 'squint %s\n  %s: %s\n' "$*" $found "$said"
    if [ $found != "$code" ] || [[ "$said" != *"$message"* ]]; then
        printf 'row %s: squint %s\n  expected exit %s and "%s"\n  found    exit %s and "%s"\n' $rows "$*" "$code" "$message" $found "$said"
        bad=$((bad + 1))
    elif [ "$(grep -vc '^warning: \|^device   ' stderr)" != 1 ] || [[ "$(tail -n 1 stderr)" != "squint: "* ]]; then
        printf 'row %s: squint %s\n  expected one line "squint: ..." (and warnings, or the device, before it), found:\n%s\n' $rows "$*" "$said"
        bad=$((bad + 1))
    fi
    after=$(listing)
    if [ "$after" != "$before" ]; then
        printf 'row %s: squint %s: what it wrote or changed:\n' $rows "$*"
        diff <(echo "$before") <(echo "$after")
        bad=$((bad + 1))
        before=$after
    fi
}

# the command line
row 2 'unknown command "distil"' distil
row 2 'unknown option --dry_run; did you mean --dry-run?' train lm.yaml --dry_run
row 2 'expected one recipe, found 0 words' train
row 2 'expected one recipe, found 2 words' train lm.yaml kl.yaml
row 2 '--resume: expected a value, found none' train lm.yaml --resume
row 2 '--dry-run takes no value, found "yes"' train lm.yaml --dry-run=yes
row 1 'no.yaml' train no.yaml
row 1 'empty' train empty
row 2 'expected one path, found 0' inspect
row 1 'absent' inspect absent
row 2 'expected train, encode or decode, found "learn"' tokenizer learn
row 2 '--megabytes: expected a number' corpus --out x.jsonl --megabytes much
row 2 '--out: expected a file' corpus
row 1 'no/where/c.jsonl' corpus --out no/where/c.jsonl --documents 1
# recipes: what YAML says, what the table of keys says
row 2 'tabs.yaml:7: not YAML' train tabs.yaml
row 2 'twice.yaml:11: the key "seed" stands twice, first in line 10' train twice.yaml
row 2 'cut.yaml' train cut.yaml
row 2 'two.yaml:11: a second YAML document' train two.yaml
row 2 'binary.yaml' train binary.yaml
row 2 'empty.yaml: the key run is missing' train empty.yaml
row 2 'no-run.yaml:1: the key run is missing; expected a text' train no-run.yaml
row 2 'stages: expected a list of at least one stage, found none' train no-stages.yaml
row 2 'the key from_scratch.width is missing' train no-width.yaml
row 2 'unknown.yaml:7: unknown key train.mirco_batch; did you mean micro_batch?' train unknown.yaml
row 2 'foreign.yaml:7: unknown key trian; did you mean train?' train foreign.yaml
row 2 'eval: expected a map of keys, found a list' train listed.yaml
row 2 '--train.clip=-1: train.clip: expected a number from 0' train lm.yaml --train.clip=-1
row 2 'train.clip: expected a number from 0 to 1e+30, found "nan"' train lm.yaml --train.clip=nan
row 2 'seed: expected an integer from 0' train lm.yaml --seed=-3
row 2 'checkpoint.every: expected an integer from 1' train lm.yaml --checkpoint.every=0
row 2 'precision: expected fp32 or bf16, found "fp8"' train lm.yaml --precision=fp8
row 2 'deterministic: expected true or false, found "maybe"' train lm.yaml --deterministic=maybe
row 2 'device: expected auto, cpu, cuda or guard:cpu, found "tpu"' train lm.yaml --device=tpu
row 2 'data.documents: expected separate or joined' train lm.yaml --data.documents=mixed
row 2 'no entry "distil" in the list of 1' train lm.yaml --stages.distil.lr=1
row 2 'stages.lm.steps: expected an integer from 1' train lm.yaml --stages.lm.steps=many
row 2 'the key stages.lm.lr is missing' train lm.yaml --stages.lm.lr=
row 2 'kv_heads: expected a divisor of heads 2, found 3' train lm.yaml --from_scratch.kv_heads=3
row 2 'width: expected a multiple of heads 2' train lm.yaml --from_scratch.width=15
row 2 'rotary positions need an even' train lm.yaml --from_scratch.type=llama --from_scratch.head_width=7
row 2 'length: expected at most from_scratch.positions 8, found 16' train lm.yaml --from_scratch.positions=8
row 2 'lr_end: expected at most lr 0.02, found 1' train lm.yaml --stages.lm.lr_end=1
row 2 'warmup_steps: expected at most the stage'"'"'s 2 steps, found 5' train lm.yaml --stages.lm.warmup_steps=5
row 2 'micro_batch: expected at most the batch 4' train lm.yaml --train.micro_batch=5
# recipes: what does not go together
row 2 'objective: kl needs a teacher' train kl-alone.yaml
row 2 'student.attention is missing' train no-student.yaml
row 2 'objective: lm trains a from_scratch model' train lm-taught.yaml
row 2 'teacher and from_scratch exclude each other' train both.yaml
row 2 'two stages are called "align"' train same-names.yaml
row 2 'only objective kl has one' train lm.yaml --stages.lm.temperature=2
row 2 '"new" names what a student adds' train lm.yaml --stages.lm.train=new
row 2 'weights: only objective attention has them, found true with lm' train lm.yaml --stages.lm.weights=true
row 2 'whose weights are not positive on every pair' train kl.yaml --stages.align.weights=true
row 2 'weights: all pairs are visited' train kl.yaml --stages.align.weights=true --stages.align.length=4096
row 2 'parallel.bucket_mib: expected' train bucket.yaml
row 2 'parallel.context: this version has no context parallelism' train context.yaml
row 2 'the key kind is missing' train no-kind.yaml
row 2 'kind: expected one of full, masks, ' train nsa.yaml
row 2 'candidates: expected a list such as' train no-candidates.yaml
row 2 'found "widow(3)"' train candidate.yaml
row 2 'found "window(0)"' train window0.yaml
row 2 'unknown option "top"; expected candidates, per, start' train option.yaml
row 2 'start: expected' train starts.yaml
row 2 'per: expected head, layer, model, found "token"' train per.yaml
row 2 'layers 9 to 9: the teacher has layers 0 to 1' train layer9.yaml
row 2 'layers: expected all, a layer from 0, or FIRST-LAST, found "5-3"' train layers.yaml
row 2 'attn.kqv' train no-parameter.yaml
row 2 'learned positions' train kl.yaml --stages.distil.length=32
row 2 'eval.every 1 needs data.valid' train lm.yaml --data.valid= --eval.every=1
# what a recipe names
row 1 'nowhere' train gone-teacher.yaml
row 1 'empty' train empty-teacher.yaml
row 1 'x-*.h5' train lm.yaml --data.train='x-*.h5'
row 3 'note.txt: expected an HDF5 file' train lm.yaml --data.train=note.txt
row 3 'short.h5: cannot open it as HDF5: truncated file' train lm.yaml --data.train=short.h5
row 2 'd-train-00000.h5' train lm.yaml --data.train=d-train-00000.h5
row 2 'tok290' train lm.yaml --tokenizer=tok290
row 1 'absent' train lm.yaml --tokenizer=absent
row 3 't-cut/tokenizer.json' train lm.yaml --tokenizer=t-cut
row 1 'file/run' train lm.yaml --run=file/run
row 2 'no shard holds a window of length 1000000' train lm.yaml --stages.lm.length=1000000
row 2 'vocabulary: expected at most the 101 of m-nan, found 300' train kl.yaml --teacher=m-nan
row 3 'lm-short/model.safetensors' train kl.yaml --teacher=lm-short
row 1 'absent' train kl.yaml --resume absent
row 1 'k-empty: no checkpoint in it' train kl.yaml --resume k-empty --run=new
row 3 'k-lost' train kl.yaml --resume k-lost --run=new
row 2 'teacher' train other-teacher.yaml --resume kl --run=new
row 2 'h.0.attn.masks.coefficients: expected [2,1] f32, found [2,2] f32' train kl.yaml --resume kl --run=new --student.attention.0.candidates='[window(5)]'
row 2 'stages.distil.steps: expected an integer from 1' plan kl.yaml --stages.distil.steps=0
row 1 'no.yaml' plan no.yaml --json
# shards
row 3 'flipped.h5: /tokens: expected hash' inspect flipped.h5 --verify
row 3 'short.h5: cannot open it as HDF5: truncated file' inspect short.h5
row 3 'stub.h5' inspect stub.h5
row 3 'nothing.h5' inspect nothing.h5
row 3 'renamed.h5: expected a token shard (attribute format "squint tokens"), found another HDF5 file' inspect renamed.h5
row 2 'slice.h5: is a part of a checkpoint' inspect slice.h5
row 3 'note.txt: expected a token shard (HDF5), safetensors or a directory' inspect note.txt
row 3 'empty: expected a checkpoint (index.h5)' inspect empty
row 2 'vocabulary' eval --model "$tied" --data c-valid-00000.h5 --length 8
row 2 'd-train-00000.h5' eval --model lm --data c-valid-00000.h5 d-train-00000.h5
# models
row 3 'transformer.h.0.attn.c_attn.bias' eval --model m-missing --data c-valid-00000.h5
row 3 'transformer.h.0.attn.c_attn.weight' eval --model m-shape --data c-valid-00000.h5
row 3 'c_attn.bias' eval --model m-type --data c-valid-00000.h5
row 3 'dtype: expected F32, F16, BF16, F64, an integer type or BOOL, found "F31"' inspect m-dtype/$tensors
row 3 'expected its data right after' inspect m-hole/$tensors
row 3 'needs 580 bytes, its data_offsets hold 576' inspect m-bytes/$tensors
row 3 'header: expected JSON without duplicate names' inspect m-json/$tensors
row 3 'header: expected a length of at most' inspect m-header/$tensors
row 3 'data_offsets: expected 0 <= begin <= end <=' inspect m-short/$tensors
row 3 'found 4 more bytes that no tensor holds' inspect m-longer/$tensors
row 3 'expected a safetensors file of at least 8 bytes, found 5 bytes' inspect m-five/$tensors
row 3 'transformer.wte.weight: element 4847: expected a finite number, found nan' inspect m-nan --verify
row 3 'expected finite values, found nan' export --model m-nan --out x
row 1 'expected model.safetensors or model.safetensors.index.json, found neither' export --model m-none --out x
row 1 'pytorch_model.bin is not read' export --model m-pickled --out x
row 3 'tensors are wrong' export --model m-alien --out x
row 2 'model_type: expected' export --model c-type --out x
row 3 'n_embd: expected a multiple of n_head 5, found 48' export --model c-heads --out x
row 3 'n_layer: expected' export --model c-layers --out x
row 3 'n_embd: expected' export --model c-gone --out x
row 3 'c-cut/config.json: expected JSON' export --model c-cut --out x
row 2 'activation_function: expected' export --model c-act --out x
row 3 'model-00002-of-00003.safetensors: cannot open it' export --model s-gone --out x
row 3 'weight_map: lm_head.weight: expected in model-00001' export --model s-index --out x
row 3 'weight_map: expected names of files in the same directory' export --model s-escape --out x
row 3 'num_attention_heads: expected a multiple of num_key_value_heads 4, found 6' export --model s-groups --out x
row 3 'format_version: expected 1, found another' export --model x-version --out x
row 1 'squint.safetensors' export --model x-none --out x
row 2 '--out: expected the name of a new directory, found none' export --model lm
row 2 'tok: expected a new or empty directory, found one with' export --model lm --out tok
row 2 'note.txt: expected a new or empty directory, found a file' export --model lm --out note.txt
row 1 'file/x' export --model lm --out file/x
# checkpoints
row 3 'k-flipped/checkpoints/step-00000003' inspect k-flipped/checkpoints/step-00000003 --verify
row 3 'rank-00000-of-00001.h5' inspect k-lost --verify
row 3 'k-short' inspect k-short
row 3 'k-text' inspect k-text
row 3 'k-cut/rank-00000-of-00001.h5' inspect k-cut --verify
row 3 'none of its 3 checkpoints verifies' eval --model k-all --data c-valid-00000.h5
row 1 'k-empty: no checkpoint in it' eval --model k-empty --data c-valid-00000.h5
row 3 'k-lost' generate --model k-lost --prompt a
row 2 'teacher' eval --model kl --teacher lm2 --data c-valid-00000.h5
# tokenizers
row 1 'absent' tokenizer encode --tokenizer absent note.txt
row 3 't-cut/tokenizer.json: line' tokenizer encode --tokenizer t-cut note.txt
row 3 't-list/tokenizer.json: expected an object, found' tokenizer encode --tokenizer t-list note.txt
row 2 'model.type: expected BPE, found Unigram: not supported' tokenizer encode --tokenizer t-type note.txt
row 2 'found Whitespace: not supported' tokenizer encode --tokenizer t-step note.txt
row 1 'found vocab.json alone' tokenizer encode --tokenizer t-vocab note.txt
row 3 'merges.txt: line 2' tokenizer encode --tokenizer t-merges note.txt
row 2 '--tokenizer DIR is missing' tokenizer encode note.txt
row 1 'absent.txt' tokenizer encode --tokenizer tok absent.txt
row 3 'cut.json: line' tokenizer decode --tokenizer tok cut.json
row 3 'object.json: expected a JSON list of ids' tokenizer decode --tokenizer tok object.json
row 2 'id 999999: expected an id of' tokenizer decode --tokenizer tok beyond.json
row 2 '--vocab: expected a number from 257' tokenizer train --vocab 256 --out x c.jsonl
row 2 'INPUT is missing' tokenizer train --vocab 300 --out x
row 3 'empty.txt: is empty' tokenizer train --vocab 300 --out x empty.txt
row 1 'absent.txt' tokenizer train --vocab 300 --out x absent.txt
# texts
row 2 '--tokenizer: expected a directory, found none' prep --out x note.txt
row 2 '--out: expected a prefix' prep --tokenizer tok note.txt
row 2 '"x/" is a folder' prep --tokenizer tok --out x/ note.txt
row 2 'expected files, directories or "-" to read, found none' prep --tokenizer tok --out x
row 2 '--valid: expected a number from 0 to 1' prep --tokenizer tok --out x --valid 2 note.txt
row 2 '--format: expected auto, text or jsonl, found "csv"' prep --tokenizer tok --out x --format csv note.txt
row 2 'the document separator is empty' prep --tokenizer tok --out x --document-separator '' note.txt
row 2 'not both' prep --tokenizer tok --out x --document-separator a --wikitext note.txt
row 2 'standard input ("-") is given twice' prep --tokenizer tok --out x - -
row 3 'standard input: is empty' prep --tokenizer tok --out x -
row 1 'absent.txt' prep --tokenizer tok --out x absent.txt
row 1 'empty: holds no files' prep --tokenizer tok --out x empty
row 1 'absent' prep --tokenizer absent --out x note.txt
row 1 'file/x' prep --tokenizer tok --out file/x note.txt
row 3 'empty.txt: is empty; expected text' prep --tokenizer tok --out x empty.txt
row 3 'cut.jsonl.gz: truncated gzip' prep --tokenizer tok --out x cut.jsonl.gz
row 3 'crc.jsonl.gz: damaged gzip' prep --tokenizer tok --out x crc.jsonl.gz
row 3 'plain.txt.gz: expected gzip because of its name' prep --tokenizer tok --out x plain.txt.gz
row 3 'plain.txt.zst: expected zstd because of its name' prep --tokenizer tok --out x plain.txt.zst
row 3 'cut.jsonl:1: not a JSON object' prep --tokenizer tok --out x cut.jsonl
row 3 'words.jsonl:1: not a JSON object' prep --tokenizer tok --out x words.jsonl
row 3 'array.jsonl:1: expected a JSON object with the field "text", found an array' prep --tokenizer tok --out x array.jsonl
row 3 'field.jsonl:1: the field "text" is missing' prep --tokenizer tok --out x field.jsonl
row 3 'number.jsonl:1: the field "text" is not text' prep --tokenizer tok --out x number.jsonl
row 2 'was made from other text or with other settings' prep --tokenizer tok --out c note.txt

echo "$((rows - bad)) of $rows rows as expected"
[ "$bad" = 0 ]
