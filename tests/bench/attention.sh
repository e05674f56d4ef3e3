#!/usr/bin/env bash
# One layer's attention of squint's kinds, forward and backward, beside PyTorch's causal attention to everything, in turns; medians, ratios,
# growth with the length, and from which length on a kind is faster. Wants a quiet machine.
#
#     tests/bench/attention.sh [ROUNDS] [THREADS]    $SQUINT: the program (build/release/squint)
#                                                    $ORACLES: the Python environment (build/oracles), or $PYTHON: the interpreter
#                                                    $KINDS: as of squint bench attention (full), or `sparse`: all others as docs/results.md has them
#                                                    $LENGTHS: T ("1024 4096 16384")
#                                                    $DEVICE: cpu (default) or cuda: bf16, by cuDNN's and by flash attention, and for a window
#                                                    with sinks by flex attention
#                                                    $BATCH, $REPEATS: 1, 3; on cuda 4, 20, fewer repeats beyond 32,768 tokens
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3} threads=${2:-2} device=${DEVICE:-cpu}
squint=${SQUINT:-build/release/squint} python=${PYTHON:-${ORACLES:-build/oracles}/bin/python} lengths=${LENGTHS:-1024 4096 16384}
batch=${BATCH:-1} most=${REPEATS:-3} precision=fp32 peer= kinds=${KINDS:-full}
sparse="masks:candidates=window(512)+sinks(4):start=0.9+0.1,nsa:compress=32:stride=16:block=64:select=16:window=512"
sparse+=",indexer:tokens=1024:window=512:coarse=64,performer:features=272,kerformer:window=64"
[ "$kinds" != sparse ] || kinds=$sparse
if [ "$device" = cuda ]; then
  batch=${BATCH:-4} most=${REPEATS:-20} precision=bf16 peer="--device cuda --precision bf16 --attention cudnn flash"
  case "$kinds" in *masks*) peer="$peer flex" ;; esac
fi
[ -x "$squint" ] || { echo "attention.sh: $squint is not there; build it, or set SQUINT"; exit 2; }
"$python" -c 'import torch' 2>/dev/null || { echo "skipped: $python has no torch; see tests/oracles/requirements.txt"; exit 77; }
if [ "$device" = cuda ]; then
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "skipped: $python's torch finds no GPU"; exit 77; }
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Length by length, so that a round's times of one length lie close together.
for round in $(seq "$rounds"); do
  for length in $lengths; do
    repeats=$((length > 32768 ? most * 32768 / length : most))
    shape="--lengths $length --batch $batch --heads 12 --width 64 --repeats $((repeats > 2 ? repeats : 3)) --threads $threads"
    # shellcheck disable=SC2086
    "$squint" bench attention --kinds "$kinds" --groups 12 $shape --device "$device" --json >>"$folder/ours"
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=$threads "$python" tests/bench/attention_peer.py $shape $peer >>"$folder/peer"
  done
  echo "round $round of $rounds done" >&2
done
"$python" tests/bench/attention_table.py "$folder" "$threads" "$batch" "$precision"
