#!/usr/bin/env bash
# launch/local: how many ranks it starts, told by a stand-in for mpirun, on machines with stand-ins for GPUs; and, with the real ones, that
# SIGUSR1, SIGTERM to the whole group and Ctrl-C save and end with 75 in little time, that a second Ctrl-C ends at once, and that
# the same command goes on.
set -uo pipefail
source=$(realpath "${SQUINT_SOURCE:-.}")
squint=$(realpath "${SQUINT:-build/release/squint}")
compare=$(realpath "${SQUINT_BUILD:-build/release}")/tests/compare_runs
command -v mpirun >/dev/null || { echo "skipped: mpirun is not here"; exit 77; }
source "$source/tests/support/check.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=1 TMPDIR=$work OMP_WAIT_POLICY=passive
unset CUDA_VISIBLE_DEVICES

# --- how many ranks -----------------------------------------------------------------------------------------------------------------------
mkdir fake gpus
cat >fake/mpirun <<'S'
#!/bin/sh
while [ "$1" != -np ]; do shift; done
echo "ranks $2"
S
printf '#!/bin/sh\necho 16\n' >fake/nproc
printf '#!/bin/sh\necho "squint 0.1, with CUDA"\n' >fake/cuda
printf '#!/bin/sh\necho "squint 0.1, without CUDA"\n' >fake/plain
cat >gpus/nvidia-smi <<'S'
#!/bin/sh
[ "$1" = -L ] || exit 1
for n in 0 1 2 3; do echo "GPU $n: a stand-in (UUID: GPU-$n)"; done
echo "  MIG 1g.10gb Device 0: (UUID: MIG-0)"
S
chmod +x fake/* gpus/*
expect() { # ranks, PATH's further folder, program, words of env --, words of launch/local
    local ranks=$1 folder=$2 program=$3 found
    shift 3
    local -a words=()
    while [ "$1" != -- ]; do words+=("$1"); shift; done
    shift
    found=$(env PATH="$work/fake:${folder:+$work/$folder:}$PATH" SQUINT="$work/fake/$program" "${words[@]}" "$source/launch/local" "$@")
    [ "$found" = "ranks $ranks" ] || { echo "expected ranks $ranks, found \"$found\""; return 1; }
}
check "no GPU: a rank a core" expect 16 '' cuda -- train
check "four GPUs: a rank a GPU" expect 4 gpus cuda -- train
check "four GPUs, no CUDA in the build" expect 16 gpus plain -- train
check "four GPUs, two visible" expect 2 gpus cuda CUDA_VISIBLE_DEVICES=1,3 -- train
check "four GPUs, six named" expect 4 gpus cuda CUDA_VISIBLE_DEVICES=0,1,2,3,4,5 -- train
check "four GPUs, named by UUID" expect 1 gpus cuda CUDA_VISIBLE_DEVICES=GPU-2 -- train
check "parts of a GPU" expect 5 gpus cuda CUDA_VISIBLE_DEVICES=MIG-0,MIG-1,MIG-2,MIG-3,MIG-4 -- train
check "four GPUs, none visible" expect 16 gpus cuda CUDA_VISIBLE_DEVICES= -- train
check "four GPUs, the list cut" expect 1 gpus cuda CUDA_VISIBLE_DEVICES=2,-1,3 -- train
check "no nvidia-smi, two named" expect 2 '' cuda CUDA_VISIBLE_DEVICES=0,1 -- train
check "four GPUs, device cpu" expect 16 gpus cuda -- train r.yaml --device=cpu
check "four GPUs, RANKS" expect 3 gpus cuda RANKS=3 -- train
no_program() { ! SQUINT=$work/absent "$source/launch/local" train 2>message.txt && grep -q "absent is not there; run .*launch/setup" message.txt; }
check "no program" no_program
check "the program says what it was built with" grep -qE '^squint [0-9.]+, with(out CUDA| CUDA(, a draft .*)?)$' <("$squint" --version)

# --- signals ------------------------------------------------------------------------------------------------------------------------------
cat >lm.yaml <<'Y'
run: straight
tokenizer: tok
from_scratch: {type: gpt2, layers: 1, heads: 2, width: 16}
data: {train: c-train-*.h5}
stages: [{name: lm, objective: lm, train: all, length: 32, batch: 4, steps: 100000, lr: 1.0e-2, warmup_steps: 2}]
checkpoint: {every: 100000, keep: 2}
train: {decay: constant}
deterministic: true
device: cpu
Y
make_shards 20 300 0
export SQUINT=$squint RANKS=2
steps() { grep -c '"loss"' "$1/metrics.jsonl" 2>/dev/null || true; }
trains() { # run, steps
    for _ in $(seq 400); do
        [ "$(steps "$1")" -ge "$2" ] && return 0
        sleep 0.05
    done
    echo "$1 never came to $2 steps"
    return 1
}
# As from a terminal: a process group of its own, in which SIGINT is not ignored.
group='import os, signal, sys; os.setsid(); signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])'
signalled() { # run, signal, "-" for the whole group, expected exit code, seconds at most
    python3 -c "$group" "$source/launch/local" train lm.yaml --run="$1" >"$1.txt" 2>&1 &
    local job=$! code=0 begun
    trains "$1" 5 || { kill -KILL -- "-$job"; return 1; }
    begun=$(date +%s%N)
    kill "-$2" -- "$3$job"
    wait "$job" || code=$?
    local took=$((($(date +%s%N) - begun) / 1000000))
    [ "$code" = "$4" ] && [ $took -lt "$5"000 ] && { echo "exit $code after $took ms"; return 0; }
    echo "expected exit $4 within $5 s, found $code after $took ms"
    tail -n 3 "$1.txt"
    return 1
}
check "SIGUSR1" signalled usr1 USR1 '' 75 8
check "SIGTERM" signalled term TERM '' 75 8
check "SIGTERM to all" signalled all TERM - 75 8
check "Ctrl-C" signalled int INT - 75 8
for run in usr1 term all int; do check "$run: saved" test -d $run/checkpoints; done
last=$(steps int)
goes_on() { "$source/launch/local" train lm.yaml --run="$1" --stages.lm.steps="$2" --checkpoint.every="$2"; }
check "the same command goes on" goes_on int $((last + 20))
check "undisturbed" goes_on straight $((last + 20))
check "the same bits" "$compare" straight int 0 $((last + 20))

# A program that does not listen: the second Ctrl-C ends it.
printf '#!/bin/sh\ntrap "" USR1\ntouch "%s/deaf.$OMPI_COMM_WORLD_RANK"\nwhile :; do sleep 0.1; done\n' "$work" >fake/deaf
chmod +x fake/deaf
twice() {
    SQUINT=$work/fake/deaf python3 -c "$group" "$source/launch/local" x >deaf.txt 2>&1 &
    local job=$! code=0
    for _ in $(seq 200); do [ -e deaf.1 ] && [ -e deaf.0 ] && break; sleep 0.05; done
    kill -INT -- "-$job"
    sleep 1
    kill -0 "$job" 2>/dev/null || { echo "the first one ended it"; return 1; }
    kill -INT -- "-$job"
    (sleep 15; kill -KILL -- "-$job") 2>/dev/null &
    local guard=$!
    wait "$job" || code=$?
    kill $guard 2>/dev/null
    [ $code != 0 ] && [ $code != 137 ]
}
check "a second Ctrl-C" twice
[ $failures = 0 ] || { echo "$failures failures"; exit 1; }
