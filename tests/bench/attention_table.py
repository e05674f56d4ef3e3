#!/usr/bin/env python3
"""The table of tests/bench/attention.sh: every kind of squint beside every backend of PyTorch, from the lines of JSON that both left.

    attention_table.py FOLDER THREADS BATCH PRECISION    FOLDER: holds `ours` and `peer`, a line a run
"""
import json
import statistics
import sys

PARTS = {"forward": ("forward_s",), "backward": ("backward_s",), "both": ("forward_s", "backward_s")}
# Of the causal pairs' products: two forward, five backward (Dao 2023).
WORK = {"forward": 2, "backward": 5, "both": 7}


def read(folder, name):
    lines = [json.loads(line) for line in open(f"{folder}/{name}")]
    for line in lines:
        for row in line.get("failed", []):
            print(f"T={row['length']}, {row['attention']}: failed: {row['failed']}")
    return lines[0], [row for line in lines for row in line["rows"]]


def median(rows, length, keys):
    values = [sum(row[key] for key in keys) for row in rows if row["length"] == length]
    return statistics.median(values) if values else None


def print_kind(kind, ours, peer, batch, peak):
    """One kind at every length: beside each backend, then beside itself at the length before; returns where it overtakes them all."""
    before, first_faster = None, None
    for length in dict.fromkeys(row["length"] for row in ours):
        for part, keys in PARTS.items():
            mine, line = median(ours, length, keys), ""
            for backend in dict.fromkeys(row["attention"] for row in peer):
                other = median([row for row in peer if row["attention"] == backend], length, keys)
                if other is not None:
                    line += f"  {'' if backend == 'auto' else backend + ' '}{1e3 * other:10.4g}ms {other / mine:7.2f}x"
            if peak and kind == "full":
                line += f"  {WORK[part] * 2 * batch * 12 * 64 * length * (length + 1) / 2 / mine / 1e12:.4g} TFLOP/s"
            print(f"{length:8} {part:9}{1e3 * mine:12.4g}ms{line}")
        both = median(ours, length, PARTS["both"])
        others = [median([r for r in peer if r["attention"] == b], length, PARTS["both"]) for b in {r["attention"] for r in peer} - {"flex"}]
        faster = all(other is None or both < other for other in others)
        first_faster = (first_faster or length) if faster else None
        key = "peak_bytes" if "peak_bytes" in ours[0] else "tensor_bytes"
        mine = median(ours, length, [key])
        line = f"{length:8} {'memory':9}{mine / 2**20:11.1f}MiB"
        for backend in dict.fromkeys(row["attention"] for row in peer if "peak_bytes" in row):
            other = median([row for row in peer if row["attention"] == backend], length, ["peak_bytes"])
            if other is not None:
                line += f"  {backend} {other / 2**20:9.1f}MiB {other / mine:7.2f}x"
        if before:
            line += f"   from T={before[0]}: time x{both / before[1]:.2f}, memory x{mine / before[2]:.2f}"
        print(line)
        before = (length, both, mine)
    return first_faster


def main():
    folder, threads, batch, precision = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    us, ours = read(folder, "ours")
    them, peer = read(folder, "peer")
    peak = us.get("peak_flops")
    if peak:
        print(f"{them['device']}: a large matrix product comes to {peak / 1e12:.4g} TFLOP/s")
    print(f"causal, B={batch}, H=12, D=64, {precision}, threads: {threads}; squint, then {them['program']} and what it takes over squint")
    overtakes = {}
    for kind in dict.fromkeys(row["kind"] for row in ours):
        print(f"--- {kind}")
        overtakes[kind] = print_kind(kind, [row for row in ours if row["kind"] == kind], peer, batch, peak)
    for kind, length in overtakes.items():
        print(f"faster than PyTorch's attention to everything from T={length} on: {kind}" if length
              else f"not faster than PyTorch's attention to everything at the longest T: {kind}")


if __name__ == "__main__":
    main()
