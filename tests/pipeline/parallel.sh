#!/usr/bin/env bash
# How gradients travel changes nothing but the time: ranks 1 to 4, ZeRO on and off, overlap on and off, one micro-step and three give the same
# losses; a repeated run the same bits; a checkpoint of one arrangement goes on in another. Buckets are small and many; groups of rows that train together
# are of lengths that ranks do not divide, or fewer elements than there are ranks.
set -uo pipefail
squint=${SQUINT:-build/release/squint}
compare=${SQUINT_BUILD:-build/release}/tests/compare_runs
command -v mpirun >/dev/null || { echo "skipped: mpirun is not here"; exit 77; }
source "$(dirname "${BASH_SOURCE[0]}")/../support/check.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work
ranks() { mpirun --oversubscribe --quiet -np "$@"; }
stops() { # ranks, command...: a signal after ten steps, exit 75
    local run=$1 code=0
    shift
    mpirun --oversubscribe --quiet -np "$@" >stopped.txt 2>&1 &
    local job=$!
    for _ in $(seq 600); do
        [ "$(grep -c '"loss"' "$run/metrics.jsonl" 2>/dev/null)" -ge 10 ] 2>/dev/null && break
        sleep 0.05
    done
    kill -USR1 "$job"
    wait "$job" || code=$?
    [ "$code" = 75 ] || { echo "expected exit 75, found $code"; return 1; }
}

cat >lm.yaml <<'Y'
run: lm
tokenizer: tok
from_scratch: {type: gpt2, layers: 3, heads: 3, width: 30}
data: {train: c-train-*.h5, valid: c-valid-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 16, batch: 36, steps: 50, lr: 3.0e-3, warmup_steps: 5}
train: {micro_batch: 36, weight_decay: 0.1}
parallel: {bucket_mib: 0.003}
checkpoint: {every: 1000, keep: 3}
eval: {sequences: 8}
deterministic: true
Y
cat >kl.yaml <<'Y'
run: kl
teacher: lm_1_false_true_36
data: {train: c-train-*.h5, valid: c-valid-*.h5}
student:
  attention: [{layers: 0, kind: masks, candidates: [window(3), sinks(1)]}, {layers: all, kind: performer, features: 7}]
stages:
  - {name: align, objective: attention, train: [new, attn.qkv.weight], length: 16, batch: 12, steps: 12, lr: 1.0e-2, warmup_steps: 2}
  - {name: distil, objective: kl, train: [new, attn.qkv, "lora(3)"], length: 16, batch: 12, steps: 18, lr: 1.0e-3, warmup_steps: 2}
parallel: {bucket_mib: 0.002}
checkpoint: {every: 1000, keep: 3}
eval: {sequences: 8}
deterministic: true
Y

make_shards 40 301 0.1

run() { # ranks, zero, overlap, micro-steps: run lm_RANKS_ZERO_OVERLAP_MICRO
    ranks "$1" "$squint" train lm.yaml --parallel.zero="$2" --parallel.overlap="$3" --train.micro_batch=$((36 / $1 / $4)) \
        --run="lm_$1_$2_$3_$((36 / $4))"
}
check "1 rank" run 1 false true 1
check "1 rank, 3 micro-steps" run 1 false true 3
check "micro-steps alike" "$compare" lm_1_false_true_36 lm_1_false_true_12 1e-5
for n in 2 3 4; do
    for zero in false true; do
        for overlap in false true; do
            for steps in 1 3; do
                check "$n ranks, zero $zero, overlap $overlap, $steps micro-steps" run $n $zero $overlap $steps
                check "... like one rank" "$compare" lm_1_false_true_36 lm_${n}_${zero}_${overlap}_$((36 / steps)) 1e-5
            done
        done
        # Sums are taken in rank order whenever they travel.
        check "$n ranks, zero $zero: overlap changes no bit" "$compare" lm_${n}_${zero}_false_12 lm_${n}_${zero}_true_12 0 50
    done
done
again=(ranks 3 "$squint" train lm.yaml --parallel.zero=true --train.micro_batch=4 --run=lm_again)
check "a repeated run" "${again[@]}"
check "a repeated run has the same bits" "$compare" lm_3_true_true_12 lm_again 0 50
for reduce in fp32 bf16; do
    check "25 steps, $reduce on the way" ranks 3 "$squint" train lm.yaml --stages.lm.steps=25 --parallel.reduce=$reduce --parallel.zero=true --run=lm_$reduce
done
check "bf16 on the way is near" "$compare" lm_fp32 lm_bf16 2e-3
check "bf16 on the way is not the same" test "$("$compare" lm_fp32 lm_bf16 1e-6 >/dev/null 2>&1; echo $?)" = 1

# Stages that train different rows, rows that are added, LoRA, attention by layers.
check "student, 1 rank" "$squint" train kl.yaml
for zero in false true; do
    check "student, 3 ranks, zero $zero" ranks 3 "$squint" train kl.yaml --parallel.zero=$zero --run=kl_$zero
    check "... like one rank" "$compare" kl kl_$zero 1e-5
done
for n in 4 7; do
    check "student, $n ranks, zero" ranks $n "$squint" train kl.yaml --parallel.zero=true --run=kl_zero_$n
    check "... like one rank" "$compare" kl kl_zero_$n 1e-5
done

# A checkpoint of ZeRO on four ranks, stopped in a stage, goes on without ZeRO on two, and with it on three.
check "ZeRO on 4 ranks stops" stops lm_moved 4 "$squint" train lm.yaml --parallel.zero=true --run=lm_moved
cp -r lm_moved lm_third
check "its checkpoint is whole" "$squint" inspect --verify lm_moved
check "without ZeRO on 2" ranks 2 "$squint" train lm.yaml --run=lm_moved
check "... like one rank" "$compare" lm_1_false_true_36 lm_moved 1e-5
check "with ZeRO on 3" ranks 3 "$squint" train lm.yaml --parallel.zero=true --run=lm_third
check "... like one rank" "$compare" lm_1_false_true_36 lm_third 1e-5
check "ZeRO on 3 ranks stops" stops lm_same 3 "$squint" train lm.yaml --parallel.zero=true --train.micro_batch=4 --run=lm_same
check "ZeRO on 3 ranks goes on" ranks 3 "$squint" train lm.yaml --parallel.zero=true --train.micro_batch=4 --run=lm_same
check "... with the same bits" "$compare" lm_again lm_same 0 50
exit $((failures > 0))
