#!/usr/bin/env bash
# Everything that only a GPU can show, on a machine that has one; from a bundle (launch/bundle) or from a checkout that is built.
#   tests/gpu/run.sh [PART...]      parts, in this order: parity sanitize bench; all of them without a word
#   OUT=DIR       where every output goes (gpu-results-DATE)
#   QUICK=1       fewer shapes and steps: a first look
#   ROUNDS=N      of the benchmarks against PyTorch (3)
#   PYTHON=PROG   with torch and transformers, for these (python3); without them squint is timed alone
# parity: the GPU's results against the CPU's, by operation, attention, model, training run, and against numbers that others computed. sanitize: compute-sanitizer's memcheck and
# racecheck over a part of them. bench: attention and a step of distillation beside PyTorch.
# Exit 1 when a part failed, 77 when no GPU is usable. $OUT/summary.txt has a line for each step.
set -uo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
case "${1:-}" in --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
if [ -x "$here/libexec/squint" ]; then
    tests=$here/bin mpirun=$here/bin/mpirun squint=$here/bin/squint
else
    tests=$here/build/release/tests mpirun=mpirun squint=$here/build/release/squint
fi
squint=${SQUINT:-$squint} test_gpu=${TEST_GPU:-$tests/test_gpu} compare=${COMPARE:-$tests/compare_runs}
for program in "$squint" "$test_gpu" "$compare"; do
    [ -x "$program" ] || { echo "run.sh: $program is not there; build with CUDA, or make the bundle anew"; exit 2; }
done
parts=${*:-parity sanitize bench}
for part in $parts; do
    case $part in parity | sanitize | bench) ;; *) echo "run.sh: unknown part $part: expected parity, sanitize, bench"; exit 2 ;; esac
done
quick=()
if [ -n "${QUICK:-}" ]; then
    quick=(--quick)
    export STEPS=${STEPS:-10}
fi
out=${OUT:-gpu-results-$(date +%Y-%m-%d-%H%M)} rounds=${ROUNDS:-3} python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here" || exit 1
failures=0

say() { echo "$*" | tee -a "$out/summary.txt"; }
# Runs a command; its output to $out/NAME.txt, a line to the summary.
step() { # name, seconds at most, command...
    local name=$1 limit=$2 code=0 began=$SECONDS word=ok
    shift 2
    echo "+ $*" >"$out/$name.txt"
    timeout --kill-after=20 "$limit" "$@" >>"$out/$name.txt" 2>&1 || code=$?
    case $code in
        0) ;;
        77) word="left out" ;;
        *) word="FAILED ($code)" failures=$((failures + 1)) ;;
    esac
    say "$(printf '%-10s %-26s %4d s  %s' "$word" "$name" $((SECONDS - began)) "$(tail -n 1 "$out/$name.txt" | cut -c 1-110)")"
    return $code
}

machine() {
    date -u +"%Y-%m-%d %H:%M UTC"
    uname -srm
    [ ! -e VERSION ] || cat VERSION
    git describe --always --dirty 2>/dev/null
    "$squint" --version
    nvidia-smi
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu --format=csv
    command -v compute-sanitizer nvcc
    "$python" -c 'import torch, transformers; print("torch", torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version(), "transformers", transformers.__version__)'
    nproc && grep -m1 'model name' /proc/cpuinfo
}
machine >"$out/machine.txt" 2>&1
say "squint on a GPU, $(date -u +"%Y-%m-%d %H:%M UTC"), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)"
step device 60 "$test_gpu" device
code=$?
if [ $code != 0 ]; then exit $code; fi

parity() {
    local group
    for group in ops attention linear compressed blocks choice tokens million repeat model; do step "parity-$group" 900 "$test_gpu" $group ${quick[@]+"${quick[@]}"}; done
    # $SQUINT_DATA: a folder with the trained model stories260K and its golden.json; without it the random models of transformers alone.
    SQUINT=$squint SQUINT_SOURCE=$here SQUINT_OPTIONS=--device=cuda step parity-golden 600 "$tests/test_golden_commands"
    SQUINT=$squint COMPARE=$compare MPIRUN=$mpirun step parity-train 900 bash tests/gpu/train_gpu.sh
    SQUINT=$squint COMPARE=$compare step parity-kinds 900 bash tests/gpu/kinds.sh
    SQUINT=$squint COMPARE=$compare MPIRUN=$mpirun TEST_NCCL=$tests/test_nccl_gpu BENCH=1 step parity-ranks 900 bash tests/gpu/ranks_gpu.sh
}

# Its exit code is 9 when the sanitizer found something; the program's own failures keep theirs.
sanitize() {
    local tool group sanitizer under
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
    if [ -z "$sanitizer" ]; then
        say "left out   sanitize: compute-sanitizer is not here; it comes with the CUDA toolkit"
        return
    fi
    for tool in memcheck racecheck; do
        under="$sanitizer --tool $tool --error-exitcode 9 --print-limit 20"
        for group in ops attention linear compressed blocks choice tokens; do
            # shellcheck disable=SC2086
            if [ -x libexec/test_gpu ]; then # the bundle's script finds the libraries and starts the program under the tool
                SQUINT_UNDER=$under step "sanitize-$tool-$group" 1800 "$test_gpu" $group --quick
            else
                step "sanitize-$tool-$group" 1800 $under "$test_gpu" $group --quick
            fi
        done
    done
}

bench() {
    local precision kind
    local decoded="nsa:compress=32:stride=16:block=64:select=16:window=512,indexer:tokens=1024:window=512:coarse=64,performer:features=272,kerformer:window=64"
    export SQUINT=$squint PYTHON=$python DEVICE=cuda
    for precision in bf16 fp32; do
        step "bench-step-squint-$precision" 300 "$squint" bench step --device cuda --batch 8 --length 1024 --steps 20 --precision $precision
    done
    step bench-attention-squint 300 "$squint" bench attention --device cuda --batch 4 --repeats 20 --lengths 1024 2048 4096 8192 16384
    step bench-attention-squint-fp32 300 "$squint" bench attention --device cuda-f32 --batch 4 --repeats 20 --lengths 1024 2048 4096
    step bench-decode-squint 300 "$squint" bench decode --device cuda --positions 128 4096 --kinds full,masks:candidates="window(256)"+"sinks(4)":start=0.9+0.1
    step bench-step 1800 bash tests/bench/step.sh "$rounds"
    step bench-attention 1800 bash tests/bench/attention.sh "$rounds"
    BATCH=1 KINDS=sparse LENGTHS="1024 2048 4096 8192 16384 32768 65536 131072 262144" step bench-kinds 3600 bash tests/bench/attention.sh 1
    for kind in "masks, candidates: [window(512), sinks(4)]" "nsa, select: 16, window: 512" "indexer, tokens: 1024, window: 512, coarse: 64" performer "kerformer, window: 64"; do
        step "bench-long-${kind%%,*}" 600 "$squint" bench step --device cuda --precision bf16 --batch 1 --length 262144 --recompute layer --steps 2 --attention "kind: $kind"
    done
    step bench-tune 600 "$squint" bench tune --device cuda --out "$out/tuning.txt"
    step bench-decode-kinds 600 "$squint" bench decode --device cuda --positions 1024 32768 --kinds "full,$decoded"
}

for part in parity sanitize bench; do
    case " $parts " in *" $part "*) $part ;; esac
done
if [ $failures = 0 ]; then say "all of: $parts"; else say "$failures steps failed; their outputs are in $out"; fi
exit $((failures > 0))
