#!/usr/bin/env bash
# A step of distillation by squint and by PyTorch, in turns; medians and ratios. Wants a quiet machine.
#
#     tests/bench/step.sh [ROUNDS] [THREADS]      $SQUINT: the program (build/release/squint)
#                                                 $ORACLES: the Python environment (build/oracles)
#                                                 $PRECISION: of squint (fp32)
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3} threads=${2:-$(nproc)}
squint=${SQUINT:-build/release/squint} python=${ORACLES:-build/oracles}/bin/python precision=${PRECISION:-fp32}
[ -x "$squint" ] || { echo "step.sh: $squint is not there; build it, or set SQUINT"; exit 77; }
"$python" -c 'import torch, transformers' 2>/dev/null || { echo "step.sh: $python has no torch and transformers; see tests/oracles/requirements.txt"; exit 77; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for round in $(seq "$rounds"); do
  "$squint" bench step --batch 2 --length 512 --steps 3 --threads "$threads" --precision "$precision" --json >>"$folder/ours" 2>/dev/null
  OMP_NUM_THREADS=$threads "$python" tests/bench/step_peer.py --batch 2 --length 512 --steps 3 --threads "$threads" >>"$folder/peer" 2>/dev/null
  echo "round $round of $rounds done" >&2
done
"$python" - "$folder" "$precision" <<'PYTHON'
import json, statistics, sys
folder, precision = sys.argv[1:]
read = lambda name: [json.loads(line) for line in open(f"{folder}/{name}")]
ours, peer = read("ours"), read("peer")
middle = lambda rows, key: statistics.median(row[key] for row in rows)
print(f"{'':10} {'tokens/s':>10} {'s a step':>10} {'peak MiB':>10}   GPT-2 124M, B=2, T=512, masks, attention projections train")
for name, rows in (("squint", ours), ("PyTorch", peer)):
    print(f"{name:10} {middle(rows, 'tokens_per_second'):10.1f} {middle(rows, 'seconds'):10.3f} {middle(rows, 'peak_mib'):10.0f}")
speed = middle(ours, "tokens_per_second") / middle(peer, "tokens_per_second")
memory = middle(ours, "peak_mib") / middle(peer, "peak_mib")
print(f"squint ({precision}) / PyTorch: {speed:.2f}x the tokens/s, {memory:.2f}x the memory")
PYTHON
