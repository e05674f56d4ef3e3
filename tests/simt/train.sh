#!/usr/bin/env bash
# The whole program on the CUDA table, executed on the host (squint_simt): training, evaluation, generation of `full` and `masks` as on the
# CPU, in fp32 and in bf16; a checkpoint of one device goes on on the other; two ranks; a program without CUDA says so.
# The other kinds: tests/gpu/kinds.sh.
set -uo pipefail
cpu=${SQUINT:-build/release/squint}
gpu=${SQUINT_BUILD:-build/release}/tests/squint_simt
compare=${SQUINT_BUILD:-build/release}/tests/compare_runs
source "$(dirname "${BASH_SOURCE[0]}")/../support/check.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work

refused() { # exit code, words of the message, command...
    local expected=$1 words=$2 code=0 text
    shift 2
    text=$("$@" 2>&1) || code=$?
    [ "$code" = "$expected" ] && grep -qF -- "$words" <<<"$text" || { echo "exit $code: $text"; return 1; }
}
cat >lm.yaml <<'Y'
run: lm
tokenizer: tok
from_scratch: {type: gpt2, layers: 2, heads: 2, width: 16}
data: {train: c-train-*.h5, valid: c-valid-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 24, batch: 4, steps: 6, lr: 1.0e-2, warmup_steps: 2}
train: {micro_batch: 2, weight_decay: 0.1, clip: 1.0}
checkpoint: {every: 3, keep: 3}
eval: {sequences: 2}
Y
cat >kl.yaml <<'Y'
run: kl
teacher: teacher
data: {train: c-train-*.h5, valid: c-valid-*.h5}
student:
  attention: [{layers: all, kind: masks, candidates: [window(3), sinks(1), dilated(3, 4)]}]
stages:
  - {name: align, objective: attention, train: new, length: 24, batch: 4, steps: 3, lr: 1.0e-2, warmup_steps: 1}
  - {name: distil, objective: kl, train: [new, attn.qkv, lora(2)], length: 32, batch: 4, steps: 3, lr: 1.0e-3, warmup_steps: 1}
positions: interpolate
train: {micro_batch: 2}
checkpoint: {every: 3, keep: 3}
eval: {sequences: 2}
Y
{ "$cpu" corpus --out c.jsonl --documents 20 && "$cpu" tokenizer train --vocab 280 --out tok c.jsonl &&
    "$cpu" prep --tokenizer tok --out c --valid 0.1 c.jsonl && "$cpu" train lm.yaml --device=cpu --run=teacher --from_scratch.initial_std=0.4 --stages.lm.lr=1e-3 --stages.lm.steps=20; } \
    >prep.txt 2>&1 || { cat prep.txt; exit 1; }

for recipe in lm kl; do
    check "$recipe, CPU" "$cpu" train $recipe.yaml --device=cpu --run=$recipe-cpu
    check "$recipe, CUDA in fp32" "$gpu" train $recipe.yaml --device=cuda --run=$recipe-f32
    check "$recipe, CUDA in bf16" "$gpu" train $recipe.yaml --device=cuda --precision=bf16 --run=$recipe-bf16
    check "$recipe: fp32 as on the CPU" "$compare" $recipe-cpu $recipe-f32 1e-4
    check "$recipe: bf16 near the CPU" "$compare" $recipe-cpu $recipe-bf16 3e-2
done
"$gpu" train lm.yaml --run=auto --stages.lm.steps=1 --stages.lm.warmup_steps=0 >auto.txt 2>&1
check "auto takes the GPU" grep -q "cuda: host fibers" auto.txt

# Half of a run on one device, the rest on the other. (A stopped run leaves a checkpoint at its third step.)
for pair in "cpu cuda" "cuda cpu"; do
    read -r first second <<<"$pair"
    cp -r lm-cpu "lm-$first-$second" && rm -rf "lm-$first-$second/checkpoints/step-00000006" "lm-$first-$second/model"
    [ "$first" = cpu ] || { rm -rf "lm-$first-$second" && cp -r lm-f32 "lm-$first-$second" && rm -rf "lm-$first-$second/checkpoints/step-00000006"; }
    check "from $first to $second" "$gpu" train lm.yaml --device=$second --run="lm-$first-$second" --resume auto
    check "from $first to $second: the same run" "$compare" lm-cpu "lm-$first-$second" 1e-4
done
check "two ranks" mpirun --oversubscribe --quiet -np 2 "$gpu" train kl.yaml --device=cuda --run=kl-two
check "two ranks like one" "$compare" kl-f32 kl-two 1e-4
check "a rank with a GPU and one without" refused 2 "device: expected the same on all ranks, found a GPU for 1 of 2" \
    mpirun --oversubscribe --quiet -np 1 "$gpu" train kl.yaml --run=mixed : -np 1 "$cpu" train kl.yaml --run=mixed

# ZeRO: in bf16 the masters are divided as well; small buckets, and many.
two() { # recipe, further words
    local recipe=$1
    shift
    mpirun --oversubscribe --quiet -np 2 "$gpu" train $recipe.yaml --device=cuda --precision=bf16 --parallel.bucket_mib=0.003 "$@"
}
for recipe in lm kl; do
    check "$recipe, two ranks in bf16" two $recipe --run=$recipe-two16
    check "$recipe, two ranks in bf16, ZeRO" two $recipe --parallel.zero=true --run=$recipe-zero16
    check "$recipe, ZeRO like none" "$compare" $recipe-two16 $recipe-zero16 1e-6
    cp -r $recipe-zero16 $recipe-again16 && rm -rf $recipe-again16/checkpoints/step-00000006 $recipe-again16/model
    check "$recipe, ZeRO goes on" two $recipe --parallel.zero=true --run=$recipe-again16
    check "$recipe, ZeRO goes on: the same bits" "$compare" $recipe-zero16 $recipe-again16 0 6
done
check "the model that ZeRO leaves is whole" cmp lm-zero16/model/model.safetensors lm-again16/model/model.safetensors
rm -rf lm-again16/checkpoints/step-00000006 lm-again16/model
check "lm, ZeRO, then one rank without" "$gpu" train lm.yaml --device=cuda --precision=bf16 --run=lm-again16
check "lm, ZeRO, then one rank without: the same run" "$compare" lm-bf16 lm-again16 1e-2
# The same over a communicator for the GPU's memory, as NCCL is one: without it gradients pass through the host.
over_gpu() { SQUINT_SIMT_NCCL=1 two kl "$@" >gpu.txt 2>&1; }
check "kl, over the GPU's communicator" over_gpu --run=kl-gpu16
check "kl, over the GPU's communicator: said" grep -q "comm     gradients travel over NCCL's part" gpu.txt
check "kl, over the GPU's communicator: the same bits" "$compare" kl-two16 kl-gpu16 0 6
check "kl, over the GPU's communicator, ZeRO, no overlap" over_gpu --parallel.zero=true --parallel.overlap=false --run=kl-gpuzero16
check "kl, over the GPU's communicator, ZeRO, no overlap: the same bits" "$compare" kl-zero16 kl-gpuzero16 0 6
check "kl, bf16 on the way" over_gpu --parallel.zero=true --parallel.reduce=bf16 --run=kl-narrow16
check "kl, bf16 on the way is near" "$compare" kl-zero16 kl-narrow16 1e-2

figures() { "$@" --data c-valid-*.h5 --length 24 --json - 2>/dev/null | grep -oE '"(kl|ce)": [0-9.e-]+' | head -n 2; }
rounded() { sed -E 's/(\.[0-9]{4})[0-9]*/\1/'; }
check "evaluation as on the CPU" test "$(figures "$cpu" eval --model kl-cpu --teacher teacher/model | rounded)" = \
    "$(figures "$gpu" eval --model kl-cpu --teacher teacher/model --device cuda | rounded)"
written() { "$@" --model kl-cpu --prompt "the" --tokens 12 2>/dev/null; }
check "generation as on the CPU" test "$(written "$cpu" generate)" = "$(written "$gpu" generate --device cuda)"
check "generation in bf16" "$gpu" generate --model kl-cpu --prompt "the" --tokens 4 --device cuda --precision bf16
check "no CUDA in this program" refused 2 "cuda: this program was built without CUDA" \
    "${SQUINT_BUILD:-build/release}/tests/squint_absent" train lm.yaml --device=cuda --run=no
[ ! -e no ] || { echo "FAIL a refused run left its folder"; failures=$((failures + 1)); }
[ $failures = 0 ] && echo "the program on the CUDA table: as on the CPU"
exit $((failures > 0))
