#!/usr/bin/env bash
# What of the gradients' way shows when it goes beside the backward pass, against when it comes after it: two ranks of one thread, in turn with and
# without parallel.overlap, over a link of a given rate between two network namespaces, or in one memory.
#   tests/bench/overlap.sh [RATE]    RATE: as tc takes it (1gbit); none: shared memory. ROUNDS=3 STEPS=12 BUCKET=4 ZERO=false WIDTH=384
# Prints a step's median phases in ms for each; "shows" is what a step waits for. The sending thread takes processor time from the backward pass: compare
# whole steps too.
set -euo pipefail
rate=${1:-1gbit} rounds=${ROUNDS:-3} steps=${STEPS:-12}
squint=$(realpath "${SQUINT:-build/release/squint}")
net=squint-overlap-$$
work=$(mktemp -d)
finish() {
    for name in $net-a $net-b; do [ ! -e "/run/netns/$name" ] || ip netns del "$name"; done
    rm -rf "$work"
}
trap finish EXIT
cd "$work"
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work
launch=(mpirun --oversubscribe --quiet --bind-to none -np 2)
if [ "$rate" != none ]; then
    for host in a b; do ip netns add $net-$host && ip -n $net-$host link set lo up; done
    ip link add name wire netns $net-a type veth peer name wire netns $net-b
    for host in a b; do
        ip -n $net-$host addr add 10.87.66.$([ $host = a ] && echo 1 || echo 2)/24 dev wire
        ip -n $net-$host link set wire up
        ip netns exec $net-$host tc qdisc add dev wire root tbf rate "$rate" burst 1mb latency 50ms
    done
    printf '#!/bin/sh\nhost=$1; shift\ncd "%s" && exec ip netns exec %s-$host unshare -u sh -c "hostname $host && exec $*"\n' "$work" "$net" >agent
    chmod +x agent
    launch=(ip netns exec $net-a unshare -u sh -c 'hostname a && exec "$@"' sh mpirun --quiet --bind-to none -np 2 --host a:1,b:1
        --mca plm_rsh_agent "$work/agent" --mca btl tcp,self --mca btl_tcp_if_include 10.87.66.0/24 --mca oob_tcp_if_include 10.87.66.0/24
        -x OMP_NUM_THREADS)
fi
cat >lm.yaml <<Y
tokenizer: tok
from_scratch: {type: gpt2, layers: 8, heads: 6, width: ${WIDTH:-384}}
data: {train: c-train-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 128, batch: 8, steps: $steps, lr: 1.0e-3, warmup_steps: 5}
parallel: {bucket_mib: ${BUCKET:-4}, zero: ${ZERO:-false}}
checkpoint: {every: 1000, keep: 1}
Y
{ "$squint" corpus --out c.jsonl --documents 40 && "$squint" tokenizer train --vocab 1000 --out tok c.jsonl &&
    "$squint" prep --tokenizer tok --out c --valid 0 c.jsonl; } >prep.txt 2>&1 || { cat prep.txt; exit 1; }
for round in $(seq "$rounds"); do
    for overlap in false true; do
        "${launch[@]}" "$squint" train lm.yaml --run="$overlap-$round" --parallel.overlap=$overlap >log.txt 2>&1 || { tail log.txt; exit 1; }
    done
done
python3 - "$rate" "$rounds" <<'P'
import json, statistics, sys
rate, rounds = sys.argv[1], int(sys.argv[2])
def lines(overlap, number):
    found = [json.loads(line) for line in open(f"{overlap}-{number}/metrics.jsonl")]
    return [line["seconds"] for line in found if "grad_norm" in line][2:]
shows = {}
print(f"{'overlap':8} {'step':>8} {'student':>8} {'backward':>8} {'shows':>8}   ms, medians over {rounds} runs, link {rate}")
for overlap in ("false", "true"):
    steps = [step for number in range(1, rounds + 1) for step in lines(overlap, number)]
    median = lambda of: 1000 * statistics.median(of(step) for step in steps)
    shows[overlap] = median(lambda step: step["comm"])
    print(f"{overlap:8} {median(lambda s: sum(s.values())):8.1f} {median(lambda s: s['student']):8.1f} "
          f"{median(lambda s: s['backward']):8.1f} {shows[overlap]:8.1f}")
print(f"shows less by {100 * (1 - shows['true'] / shows['false']):.0f}%")
P
