#!/usr/bin/env bash
# A step of distillation by squint and by PyTorch, in turns; medians and ratios. Wants a quiet machine.
#
#     tests/bench/step.sh [ROUNDS] [THREADS]      $SQUINT: the program (build/release/squint)
#                                                 $ORACLES: the Python environment (build/oracles), or $PYTHON: the interpreter
#                                                 $PRECISION: of squint (fp32; on cuda bf16, of both)
#                                                 $DEVICE: cpu (default) or cuda
#                                                 $BATCH, $LENGTH, $STEPS: 2, 512, 3; on cuda 8, 1024, 20
# On cuda PyTorch runs compiled, once with cuDNN's attention and once with its flash attention; memory is what each allocated.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3} threads=${2:-$(nproc)} device=${DEVICE:-cpu}
squint=${SQUINT:-build/release/squint} python=${PYTHON:-${ORACLES:-build/oracles}/bin/python}
if [ "$device" = cuda ]; then
  precision=${PRECISION:-bf16} shape="--batch ${BATCH:-8} --length ${LENGTH:-1024} --steps ${STEPS:-20}"
  peer="--device cuda --precision $precision --attention cudnn flash"
  if [ "$precision" = fp32 ]; then peer="--device cuda --attention auto"; fi # neither backend takes fp32
else
  precision=${PRECISION:-fp32} shape="--batch ${BATCH:-2} --length ${LENGTH:-512} --steps ${STEPS:-3}" peer=
fi
[ -x "$squint" ] || { echo "step.sh: $squint is not there; build it, or set SQUINT"; exit 2; }
"$python" -c 'import torch, transformers' 2>/dev/null || { echo "skipped: $python has no torch and transformers; see tests/oracles/requirements.txt"; exit 77; }
if [ "$device" = cuda ]; then
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "skipped: $python's torch finds no GPU"; exit 77; }
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
try() { # file, command...: says what a failing command said
  local file=$1
  shift
  "$@" >>"$file" 2>"$folder/log" || { echo "step.sh: failed: $*" >&2; tail -n 5 "$folder/log" >&2; exit 1; }
}
for round in $(seq "$rounds"); do
  # shellcheck disable=SC2086
  try "$folder/ours" "$squint" bench step $shape --threads "$threads" --precision "$precision" --device "$device" --json
  # shellcheck disable=SC2086
  OMP_NUM_THREADS=$threads try "$folder/peer" "$python" tests/bench/step_peer.py $shape --threads "$threads" $peer
  echo "round $round of $rounds done" >&2
done
"$python" - "$folder" "$precision" <<'PYTHON'
import json, statistics, sys
folder, precision = sys.argv[1:]
read = lambda name: [json.loads(line) for line in open(f"{folder}/{name}")]
ours, peer = read("ours"), read("peer")
middle = lambda rows, key: statistics.median(row[key] for row in rows)
shape = f"B={ours[0]['batch']}, T={ours[0]['length']}"
print(ours[0]["device"])
print(f"{'':18} {'tokens/s':>10} {'s a step':>10} {'peak MiB':>10}   GPT-2 124M, {shape}, attention projections train; squint's student: masks")
tables = [("squint", ours)]
for row in peer:
    if "failed" in row:
        print(f"PyTorch, {row['attention']}: failed: {row['failed']}")
for attention in dict.fromkeys(row["attention"] for row in peer if "failed" not in row):
    name = "PyTorch" if attention == "auto" else f"PyTorch, {attention}"
    tables.append((name, [row for row in peer if row["attention"] == attention and "failed" not in row]))
for name, rows in tables:
    print(f"{name:18} {middle(rows, 'tokens_per_second'):10.1f} {middle(rows, 'seconds'):10.4f} {middle(rows, 'peak_mib'):10.0f}")
if "share_of_peak" in ours[0]:
    print(f"squint: {middle(ours, 'flops_per_second') / 1e12:.4g} TFLOP/s, {100 * middle(ours, 'share_of_peak'):.0f}% of a large matrix product's {middle(ours, 'peak_flops') / 1e12:.4g}")
for name, rows in tables[1:]:
    speed = middle(ours, "tokens_per_second") / middle(rows, "tokens_per_second")
    memory = middle(ours, "peak_mib") / middle(rows, "peak_mib")
    print(f"squint ({precision}) / {name}: {speed:.2f}x the tokens/s, {memory:.2f}x the memory")
PYTHON
