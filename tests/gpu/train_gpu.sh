#!/usr/bin/env bash
# The real program on the GPU beside the CPU: a model from scratch and a student of kind masks, in fp32 and bf16; a run that goes on on the
# other device; the same bits again with `deterministic`; two ranks on one GPU; evaluation and generation.
#   $SQUINT: the program   $COMPARE: compare_runs   $MPIRUN: mpirun   $STEPS (50): of a run, even
# With squint_simt for $SQUINT and few steps it runs on the host, all but in kind.
set -uo pipefail
build=${SQUINT_BUILD:-build/release}
squint=${SQUINT:-$build/squint} compare=${COMPARE:-$build/tests/compare_runs} mpirun=${MPIRUN:-mpirun} steps=${STEPS:-50}
half=$((steps / 2))
source "$(dirname "${BASH_SOURCE[0]}")/../support/check.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case $squint in /*) ;; *) squint=$PWD/$squint ;; esac
case $compare in /*) ;; *) compare=$PWD/$compare ;; esac
cd "$work" || exit 1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work OMP_WAIT_POLICY=passive


cat >lm.yaml <<Y
run: lm
tokenizer: tok
from_scratch: {type: gpt2, layers: 2, heads: 2, width: ${WIDTH:-64}}
data: {train: c-train-*.h5, valid: c-valid-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: ${LENGTH:-64}, batch: 4, steps: $steps, lr: 3.0e-3, warmup_steps: 2}
train: {micro_batch: 2, weight_decay: 0.1, clip: 1.0}
checkpoint: {every: $half, keep: 3}
eval: {sequences: 2}
deterministic: true
Y
cat >kl.yaml <<Y
run: kl
teacher: teacher
data: {train: c-train-*.h5, valid: c-valid-*.h5}
student:
  attention: [{layers: all, kind: masks, candidates: [window(2), sinks(1), dilated(2, 4)]}]
stages:
  - {name: align, objective: attention, train: new, length: 32, batch: 4, steps: $half, lr: 1.0e-2, warmup_steps: 1}
  - {name: distil, objective: kl, train: [new, attn.qkv], length: 48, batch: 4, steps: $half, lr: 1.0e-3, warmup_steps: 1}
positions: interpolate
train: {micro_batch: 2}
checkpoint: {every: $half, keep: 3}
eval: {sequences: 2}
deterministic: true
Y
# A teacher whose attention matters: the divergence of the student below from it is about 0.1.
{ "$squint" corpus --out c.jsonl --documents 60 && "$squint" tokenizer train --vocab 280 --out tok c.jsonl &&
    "$squint" prep --tokenizer tok --out c --valid 0.1 c.jsonl && "$squint" train lm.yaml --device=cpu --run=teacher --stages.lm.steps=400 --stages.lm.lr=5e-3; } \
    >prep.txt 2>&1 || { cat prep.txt; exit 1; }

# Is there a GPU? STATUS_NOT_FOUND and a build without CUDA say so before any work.
"$squint" train lm.yaml --device=cuda --run=probe --stages.lm.steps=2 >probe.txt 2>&1 || {
    reason=$(grep -m 1 -E "^squint: cuda: (no GPU is usable|this program was built without CUDA|.* is not found)" probe.txt) &&
        { echo "skipped: $reason"; exit 77; }
    cat probe.txt
    exit 1
}
check "the log names the GPU" grep -q "cuda:" probe.txt

# What rounding may do to the losses (compare_runs: relative, below 0.01 absolute to 0.01; ten times as much to a gradient's norm):
# fp32 sums in another order, 1e-4 after all steps; bf16 rounds every activation to 2^-8 of itself, which the mean over a batch's rows
# makes smaller and the steps make larger: 3e-2.
for recipe in lm kl; do
    check "$recipe, CPU" "$squint" train $recipe.yaml --device=cpu --run=$recipe-cpu
    check "$recipe, GPU in fp32" "$squint" train $recipe.yaml --device=cuda --run=$recipe-f32
    check "$recipe, GPU in bf16" "$squint" train $recipe.yaml --device=cuda --precision=bf16 --run=$recipe-bf16
    check "$recipe: fp32 as on the CPU" "$compare" $recipe-cpu $recipe-f32 1e-4
    check "$recipe: bf16 near the CPU" "$compare" $recipe-cpu $recipe-bf16 3e-2
    for precision in fp32 bf16; do
        name=$recipe-${precision/fp32/f32}
        check "$recipe, GPU in $precision, again" "$squint" train $recipe.yaml --device=cuda --precision=$precision --run="$name-again"
        check "$recipe, GPU in $precision: the same bits" "$compare" "$name" "$name-again" 0
    done
done

# Half of a run on one device, the rest on the other.
last=$(printf 'step-%08d' "$steps")
for pair in "cpu cuda f32" "cuda cpu f32" "cuda cuda f32"; do
    read -r first second _ <<<"$pair"
    from=lm-cpu
    [ "$first" = cpu ] || from=lm-f32
    cp -r $from "lm-$first-$second" && rm -rf "lm-$first-$second/checkpoints/$last" "lm-$first-$second/model"
    check "from $first to $second" "$squint" train lm.yaml --device="$second" --run="lm-$first-$second" --resume auto
    check "from $first to $second: the same run" "$compare" lm-cpu "lm-$first-$second" 1e-4
done
check "resumed on the GPU: the same bits as straight" "$compare" lm-f32 lm-cuda-cuda 0

if command -v "$mpirun" >/dev/null; then
    check "two ranks on one GPU" "$mpirun" --oversubscribe -np 2 "$squint" train kl.yaml --device=cuda --run=kl-two
    check "two ranks like one" "$compare" kl-f32 kl-two 1e-4
else
    echo "left out: two ranks, $mpirun is not here"
fi

# Evaluation to the share that awk prints, generation to the letter.
figure() { # device, precision, key
    "$squint" eval --model kl-cpu --teacher teacher/model --data c-valid-*.h5 --length 48 --sequences 4 --no-baselines --device "$1" --precision "$2" --json - 2>/dev/null |
        grep -oE "\"$3\": [-0-9.e]+" | head -n 1 | cut -d' ' -f2
}
near() { # what, expected, found, tolerance
    awk -v n="$1" -v a="$2" -v b="$3" -v t="$4" 'BEGIN { d = a - b; if (d < 0) d = -d; print n ": " a ", " b; exit !(a != "" && b != "" && d <= t * (a > 1 ? a : 1)) }'
}
check "evaluation in fp32: kl" near kl "$(figure cpu fp32 kl)" "$(figure cuda fp32 kl)" 1e-5
check "evaluation in fp32: perplexity" near perplexity "$(figure cpu fp32 perplexity)" "$(figure cuda fp32 perplexity)" 1e-4
check "evaluation in bf16: perplexity" near perplexity "$(figure cpu fp32 perplexity)" "$(figure cuda bf16 perplexity)" 2e-2
written() { "$squint" generate --model "$1" --prompt "the" --tokens 40 --device "$2" 2>/dev/null; }
for model in teacher/model kl-cpu; do
    check "generation of $model as on the CPU" test -n "$(written $model cpu)" -a "$(written $model cpu)" = "$(written $model cuda)"
done
check "generation in bf16" "$squint" generate --model kl-cpu --prompt "the" --tokens 40 --device cuda --precision bf16
[ $failures = 0 ] || { echo "$failures failures"; exit 1; }
echo "the program on the GPU: as on the CPU"
