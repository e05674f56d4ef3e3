#!/usr/bin/env bash
# Ranks with GPUs: NCCL's collectives (test_nccl_gpu), losses of one, two and four ranks against CPU ranks, with ZeRO and without overlap, and bus
# bandwidth. One rank a GPU as far as GPUs go; beyond that several on one where NCCL is 2.30 or later, else left out, which is said.
#   BENCH=1 adds squint bench comm.
set -uo pipefail
squint=${SQUINT:-build/release/squint} tests=${SQUINT_BUILD:-build/release}/tests
compare=${COMPARE:-$tests/compare_runs} test=${TEST_NCCL:-$tests/test_nccl_gpu} mpirun=${MPIRUN:-mpirun}
source "$(dirname "${BASH_SOURCE[0]}")/../support/check.sh"
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')
[ "$gpus" -gt 0 ] || { echo "skipped: no GPU here (nvidia-smi -L)"; exit 77; }
squint=$(realpath "$squint") compare=$(realpath "$compare") test=$(realpath "$test")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work SQUINT_DEADLINE_S=60
# What NCCL needs to let ranks share a GPU; an earlier one refuses, and so does squint.
share=(env NCCL_MULTI_RANK_GPU_ENABLE=1 NCCL_NVLS_ENABLE=0 NCCL_MAX_CTAS=2)
ranks() { # number, command...
    local n=$1
    shift
    if [ "$n" -le "$gpus" ]; then "$mpirun" --oversubscribe --quiet -np "$n" "$@"; else "${share[@]}" "$mpirun" --oversubscribe --quiet -np "$n" "$@"; fi
}
cat >lm.yaml <<'Y'
tokenizer: tok
from_scratch: {type: gpt2, layers: 3, heads: 4, width: 64}
data: {train: c-train-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 64, batch: 8, steps: 20, lr: 3.0e-3, warmup_steps: 5}
parallel: {bucket_mib: 0.1}
checkpoint: {every: 1000, keep: 1}
deterministic: true
Y
make_shards 40 301 0
check "2 CPU ranks" "$mpirun" --oversubscribe --quiet -np 2 "$squint" train lm.yaml --device=cpu --run=cpu
for n in 1 2 4; do
    if [ "$n" -gt "$gpus" ]; then
        ranks "$n" "$test" >shared.txt 2>&1
        if grep -q "share GPU" shared.txt; then
            echo "left out: $n ranks on $gpus GPU(s): $(grep -m 1 -o 'NCCL: ranks.*' shared.txt)"
            continue
        fi
    fi
    check "NCCL's collectives, $n ranks" ranks $n "$test"
    check "$n ranks" ranks $n "$squint" train lm.yaml --device=cuda --run=gpu-$n
    check "$n ranks in bf16" ranks $n "$squint" train lm.yaml --device=cuda --precision=bf16 --run=bf16-$n
    check "$n ranks in bf16, ZeRO" ranks $n "$squint" train lm.yaml --device=cuda --precision=bf16 --parallel.zero=true --run=zero-$n
    check "$n ranks in bf16, ZeRO, no overlap" ranks $n "$squint" train lm.yaml --device=cuda --precision=bf16 --parallel.zero=true \
        --parallel.overlap=false --run=whole-$n
    check "$n ranks like CPU ranks" "$compare" cpu gpu-$n 1e-4
    check "$n ranks in bf16 like CPU ranks" "$compare" cpu bf16-$n 3e-2
    check "$n ranks, ZeRO like none" "$compare" bf16-$n zero-$n 1e-3
    check "$n ranks, overlap changes nothing" "$compare" whole-$n zero-$n 1e-5
    [ -z "${BENCH:-}" ] || ranks $n "$squint" bench comm --device cuda
done
[ $failures = 0 ] && echo "ranks with GPUs: as CPU ranks"
exit $((failures > 0))
