#!/usr/bin/env bash
# One of three ranks dies, stops, or leaves a collective out, while it loads, in the backward pass, in the reduction, in a save: every process
# is gone within the deadline and 5 s, the message names rank, step and collective, and the same command goes on to the same bits.
# rank_faults.sh [HOW [WHERE]]: only these cases.
set -uo pipefail
squint=${SQUINT:-build/release/squint} tests=${SQUINT_BUILD:-build/release}/tests
command -v mpirun >/dev/null || { echo "skipped: mpirun is not here"; exit 77; }
source "$(dirname "${BASH_SOURCE[0]}")/../support/check.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
deadline=3
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work SQUINT_DEADLINE_S=$deadline
# Open MPI's leaks are told by its libraries' names: stacks must reach them through code without frame pointers.
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}fast_unwind_on_malloc=0

cat >lm.yaml <<'Y'
tokenizer: tok
from_scratch: {type: gpt2, layers: 2, heads: 2, width: 32}
data: {train: c-train-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 32, batch: 12, steps: 12, lr: 1.0e-2}
train: {micro_batch: 2}
parallel: {bucket_mib: 0.02}
checkpoint: {every: 4, keep: 2}
deterministic: true
Y
make_shards 20 300 0
train() { mpirun -np 3 --oversubscribe "$1" train lm.yaml --run="$2"; }
check "undisturbed" train "$squint" straight

said() { # what, pattern
    grep -qE "$2" output.txt && return 0
    echo "expected $1, found:"
    grep -E "rank|squint:" output.txt
    return 1
}

fault() { # how, where, rank, step, run
    local how=$1 where=$2 rank=$3 step=$4 limit=$((deadline + 5)) code=0 seconds collective='all_(reduce|gather)' whom="rank ([0-9], )?$3\b"
    rm -f mark
    [ "$where" != start ] || limit=$((limit + 10)) # starting MPI is given more time
    # Whatever ends this script, wait_job ends what it has started.
    SQUINT_FAULT="$how $where $rank $step" SQUINT_FAULT_MARK=$work/mark \
        "$tests/wait_job" $limit mark mpirun -np 3 --oversubscribe "$tests/squint_rank_faults" train lm.yaml --run="$5" \
        >gone.txt 2>output.txt || code=$?
    seconds=$(<gone.txt)
    [ -e mark ] || { echo "the fault did not happen"; tail -n 3 output.txt; return 1; }
    [ $code != 124 ] || { echo "left after $seconds s:"; grep "^wait_job" output.txt; return 1; }
    [ $code != 0 ] && [ $code != 75 ] || { echo "expected a failure, found exit code $code"; return 1; }
    ! grep -E "Sanitizer|runtime error:" output.txt || return 1
    case $how-$where in *-load) collective=all_reduce ;; kill-save | stop-save) collective=all_gather ;; esac
    local place="^squint: rank [0-9]: $collective at step $step:"
    case $how-$where in
    kill-*)
        said "the launcher's word on rank $rank" "rank $rank with PID [0-9]+ on node .* signal 9" || return 1
        said "whom the others wait for" "$place told to end while it waits for $whom" || return 1
        ;;
    stop-start) said "rank and what it waits for" "^squint: rank [01]: starting MPI: waited $((deadline + 10)) s for the other ranks" || return 1 ;;
    stop-*) said "rank, step and collective" "$place waited $deadline s for $whom" || return 1 ;;
    skip-*) said "rank, step and collective" "$place (waited $deadline s for $whom|.*rank $rank)|^squint: rank $rank: .* at step $step:" || return 1 ;;
    esac
    echo "gone after $seconds s, exit code $code: $(grep -m 1 "^squint: rank" output.txt)"
}

sanitized=no
[[ $(ldd "$squint") == *libasan* ]] && sanitized=yes # ten times as slow: four cases will do
for row in "kill load 2 6" "kill backward 0 6" "kill reduce 1 6" "kill save 2 8" \
    "stop start 2 0" "stop load 0 6" "stop backward 2 6" "stop reduce 1 6" "stop save 0 8" \
    "skip load 1 6" "skip backward 2 6" "skip reduce 0 6" "skip save 2 8"; do
    read -r how where rank step <<<"$row"
    [ "${1:-$how}" = "$how" ] && [ "${2:-$where}" = "$where" ] || continue
    case $sanitized-$how-$where in no-* | yes-kill-load | yes-stop-backward | yes-skip-reduce | yes-stop-save) ;; *) continue ;; esac
    run=$how-$where
    check "$run, rank $rank" fault "$how" "$where" "$rank" "$step" "$run"
    check "$run goes on" train "$squint" "$run"
    [ "$where" = start ] || check "$run goes on from a checkpoint" grep -q "^resume   from step" "$run/log"
    check "$run like undisturbed" "$tests/compare_runs" straight "$run" 0 12
    rm -rf "$run"
done
[ $failures = 0 ] || { echo "$failures failures"; exit 1; }
