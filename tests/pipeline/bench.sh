#!/usr/bin/env bash
# What bench attention, bench decode and bench comm print: a row for every kind at every length, for every collective at every size, and the
# figures that are known without a clock. Needs no data.
set -u
squint=${SQUINT:-build/release/squint}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shape="--batch 2 --heads 4 --groups 2 --width 8 --threads 1"
kinds=full,kerformer:map=exp:window=4,nsa:window=8
must() { "$@" >"$work/out" 2>"$work/log" || { echo "FAILED: $* (exit $?)"; cat "$work/log"; exit 1; }; }

must "$squint" bench attention --kinds $kinds --lengths 16 40 $shape --repeats 1
[ "$(grep -c '^full \|^kerformer: map exp, window 4 \|^nsa: window 8 ' "$work/out")" = 6 ] || { echo "FAILED: bench attention's table"; cat "$work/out"; exit 1; }
must "$squint" bench decode --kinds $kinds --positions 5 40 $shape --repeats 8
[ "$(grep -c '^full \|^kerformer: map exp, window 4 \|^nsa: window 8 ' "$work/out")" = 6 ] || { echo "FAILED: bench decode's table"; cat "$work/out"; exit 1; }
must "$squint" bench attention --kinds $kinds --lengths 16 40 $shape --repeats 1 --json
mv "$work/out" "$work/attention.json"
must "$squint" bench decode --kinds $kinds --positions 5 40 $shape --repeats 8 --json
python3 - "$work/attention.json" "$work/out" <<'PYTHON' || exit 1
import json, sys
attention, decode = (json.load(open(name)) for name in sys.argv[1:])
names = ["full", "kerformer: map exp, window 4", "nsa: window 8"]
bad = 0
def expect(what, found, expected):
    global bad
    if found != expected:
        print(f"FAILED: {what}: expected {expected}, found {found}")
        bad = 1

expect("attention: rows", [(r["length"], r["kind"]) for r in attention["rows"]], [(n, k) for n in (16, 40) for k in names])
for row in attention["rows"]:
    expect(f"attention: {row['kind']} T={row['length']}: growth", [k in row for k in ("time_growth", "memory_growth", "count_growth")],
           [row["length"] == 40] * 3)
# T queries of (T+1)/2 keys on average
expect("attention: full: growth of the count", attention["rows"][3]["count_growth"], round(40 * 41 / (16 * 17), 3))
expect("attention: the count grows with the length", [r["count_growth"] > 40 / 16 - 0.01 for r in attention["rows"][3:]], [True] * 3)

expect("decode: rows", [(r["position"], r["kind"]) for r in decode["rows"]], [(n, k) for n in (5, 40) for k in names])
expect("decode: tokens", [r["tokens"] for r in decode["rows"]], [5] * 3 + [8] * 3)
expect("decode: growth at the first position", [r["growth"] for r in decode["rows"][:3]], [1] * 3)
expect("decode: the first kind over itself", [r["first_over_this"] for r in decode["rows"] if r["kind"] == "full"], [1] * 2)
expect("decode: times", [r["token_us"] > 0 and r["mean_us"] > 0 for r in decode["rows"]], [True] * 6)
# k and v of G heads of width D, F32
expect("decode: full: cache", [r["cache_bytes"] for r in decode["rows"] if r["kind"] == "full"], [2 * n * 2 * 8 * 4 for n in (5, 40)])
sys.exit(bad)
PYTHON
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
must mpirun -np 3 --oversubscribe "$squint" bench comm --sizes 1000 60000 --repeats 3 --json
python3 - "$work/out" <<'PYTHON' || exit 1
import json, sys
comm = json.load(open(sys.argv[1]))
n, bad = 3, 0
share = {"all_reduce": 2 * (n - 1) / n, "reduce_scatter": (n - 1) / n, "all_gather": (n - 1) / n, "broadcast": 1, "ring": 1}
# 1000 bytes are 250 numbers: made a multiple of the ranks, 252
rows = [(name, size) for name in share for size in (1008, 60000)]
if comm["ranks"] != n or [(r["collective"], r["bytes"]) for r in comm["rows"]] != rows:
    print(f"FAILED: comm: rows: expected {rows}, found {comm}")
    bad = 1
for r in comm["rows"]:
    bus = r["bytes"] / r["seconds"] * share[r["collective"]]
    if not abs(r["bus_bytes_per_second"] / bus - 1) < 1e-2: # four digits of a time in nanoseconds
        print(f"FAILED: comm: {r['collective']}: bus: expected {bus}, found {r['bus_bytes_per_second']}")
        bad = 1
sys.exit(bad)
PYTHON
echo "bench: rows and figures are as expected"
