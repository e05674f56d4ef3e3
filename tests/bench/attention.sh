#!/usr/bin/env bash
# Causal attention to everything, forward and backward, by squint and by PyTorch, in turns; medians and ratios. Wants a quiet machine.
#
#     tests/bench/attention.sh [ROUNDS] [THREADS]    $SQUINT: the program (build/release/squint)
#                                                    $ORACLES: the Python environment (build/oracles)
#                                                    $LENGTHS: T ("1024 4096 16384")
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3} threads=${2:-2}
squint=${SQUINT:-build/release/squint} python=${ORACLES:-build/oracles}/bin/python lengths=${LENGTHS:-1024 4096 16384}
[ -x "$squint" ] || { echo "attention.sh: $squint is not there; build it, or set SQUINT"; exit 77; }
"$python" -c 'import torch' 2>/dev/null || { echo "attention.sh: $python has no torch; see tests/oracles/requirements.txt"; exit 77; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Length by length, so that a round's two times of one length lie close together.
for round in $(seq "$rounds"); do
  for length in $lengths; do
    shape="--lengths $length --batch 1 --heads 12 --width 64 --repeats 3 --threads $threads"
    # shellcheck disable=SC2086
    "$squint" bench attention --kinds full --groups 12 $shape --json >>"$folder/ours"
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=$threads "$python" tests/bench/attention_peer.py $shape >>"$folder/peer"
  done
  echo "round $round of $rounds done" >&2
done
"$python" - "$folder" "$threads" <<'PYTHON'
import json, statistics, sys
folder, threads = sys.argv[1:]
def read(name):
    lines = [json.loads(line) for line in open(f"{folder}/{name}")]
    return lines[0].get("program", "squint"), [row for line in lines for row in line["rows"]]
(us, ours), (them, peer) = read("ours"), read("peer")
parts = {"forward": ("forward_s",), "backward": ("backward_s",), "both": ("forward_s", "backward_s")}
def middle(rows, length, part):
    return statistics.median(sum(row[key] for key in parts[part]) for row in rows if row["length"] == length)
print(f"{'T':>8} {'':9} {us:>12} {them:>18}   over squint   causal, B=1, H=12, D=64, fp32, threads: {threads}")
for length in dict.fromkeys(row["length"] for row in ours):
    for part in parts:
        mine, other = middle(ours, length, part), middle(peer, length, part)
        print(f"{length:8} {part:9} {1e3 * mine:10.2f}ms {1e3 * other:16.2f}ms {other / mine:12.2f}x")
PYTHON
