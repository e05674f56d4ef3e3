#!/usr/bin/env bash
# Causal attention to everything, forward and backward, by squint and by PyTorch, in turns; medians and ratios. Wants a quiet machine.
#
#     tests/bench/attention.sh [ROUNDS] [THREADS]    $SQUINT: the program (build/release/squint)
#                                                    $ORACLES: the Python environment (build/oracles), or $PYTHON: the interpreter
#                                                    $LENGTHS: T ("1024 4096 16384")
#                                                    $DEVICE: cpu (default) or cuda: bf16, by cuDNN's and by flash attention
#                                                    $BATCH, $REPEATS: 1, 3; on cuda 4, 20
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3} threads=${2:-2} device=${DEVICE:-cpu}
squint=${SQUINT:-build/release/squint} python=${PYTHON:-${ORACLES:-build/oracles}/bin/python} lengths=${LENGTHS:-1024 4096 16384}
batch=${BATCH:-1} repeats=${REPEATS:-3} precision=fp32 peer=
if [ "$device" = cuda ]; then
  batch=${BATCH:-4} repeats=${REPEATS:-20} precision=bf16 peer="--device cuda --precision bf16 --attention cudnn flash"
fi
[ -x "$squint" ] || { echo "attention.sh: $squint is not there; build it, or set SQUINT"; exit 77; }
"$python" -c 'import torch' 2>/dev/null || { echo "attention.sh: $python has no torch; see tests/oracles/requirements.txt"; exit 77; }
if [ "$device" = cuda ]; then
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "attention.sh: $python's torch finds no GPU"; exit 77; }
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Length by length, so that a round's times of one length lie close together.
for round in $(seq "$rounds"); do
  for length in $lengths; do
    shape="--lengths $length --batch $batch --heads 12 --width 64 --repeats $repeats --threads $threads"
    # shellcheck disable=SC2086
    "$squint" bench attention --kinds full --groups 12 $shape --device "$device" --json >>"$folder/ours"
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=$threads "$python" tests/bench/attention_peer.py $shape $peer >>"$folder/peer"
  done
  echo "round $round of $rounds done" >&2
done
"$python" - "$folder" "$threads" "$batch" "$precision" <<'PYTHON'
import json, statistics, sys
folder, threads, batch, precision = sys.argv[1:]
def read(name):
    lines = [json.loads(line) for line in open(f"{folder}/{name}")]
    for line in lines:
        for row in line.get("failed", []):
            print(f"T={row['length']}, {row['attention']}: failed: {row['failed']}")
    return lines[0], [row for line in lines for row in line["rows"]]
(us, ours), (them, peer) = read("ours"), read("peer")
parts = {"forward": ("forward_s",), "backward": ("backward_s",), "both": ("forward_s", "backward_s")}
def middle(rows, length, part):
    return statistics.median(sum(row[key] for key in parts[part]) for row in rows if row["length"] == length)
if "peak_flops" in us:
    print(f"{them['device']}: a large matrix product comes to {us['peak_flops'] / 1e12:.4g} TFLOP/s")
print(f"{'T':>8} {'':9} {'squint':>14} {them['program']:>26}   over squint   causal, B={batch}, H=12, D=64, {precision}, threads: {threads}")
# Of the causal pairs' products: two forward, five backward (Dao 2023).
work = {"forward": 2, "backward": 5, "both": 7}
for length in dict.fromkeys(row["length"] for row in ours):
    for backend in dict.fromkeys(row["attention"] for row in peer if row["length"] == length):
        rows = [row for row in peer if row["attention"] == backend]
        name = "" if backend == "auto" else f"{backend} "
        for part in parts:
            mine, other = middle(ours, length, part), middle(rows, length, part)
            line = f"{length:8} {part:9} {1e3 * mine:12.4g}ms {name:>12}{1e3 * other:12.4g}ms {other / mine:12.2f}x"
            if "peak_flops" in us:
                count = work[part] * 2 * int(batch) * 12 * 64 * length * (length + 1) / 2
                line += f"   {count / mine / 1e12:.4g} and {count / other / 1e12:.4g} TFLOP/s"
            print(line)
        if rows and "peak_bytes" in rows[0]:
            memory = [statistics.median(r["peak_bytes"] for r in some if r["length"] == length) / 2**20 for some in (ours, rows)]
            print(f"{length:8} {'memory':9} {memory[0]:11.1f}MiB {name:>12}{memory[1]:11.1f}MiB {memory[1] / memory[0]:12.2f}x")
PYTHON
