#!/usr/bin/env bash
# Training under mpirun: 1, 2 and 4 ranks give the same losses; a killed rank, a signal, another number of ranks: the run goes on; a directory
# in use is refused; a dry run writes nothing. Text -> tokenizer -> shards -> teacher -> student, all made here.
set -uo pipefail
squint=${SQUINT:-build/release/squint}
compare=${SQUINT_BUILD:-build/release}/tests/compare_runs
command -v mpirun >/dev/null || { echo "skipped: mpirun is not here"; exit 77; }
source "$(dirname "${BASH_SOURCE[0]}")/../support/check.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work

exits() { # code, command...
    local expected=$1 code=0
    shift
    "$@" || code=$?
    [ "$code" = "$expected" ] || { echo "expected exit $expected, found $code: $*"; return 1; }
}
launch=(mpirun --oversubscribe --quiet -np)
ranks() { "${launch[@]}" "$@"; }
lines() { grep -c '"loss"' "$1/metrics.jsonl" 2>/dev/null || true; }
await() { # run, lines
    for _ in $(seq 600); do
        [ "$(lines "$1")" -ge "$2" ] 2>/dev/null && return 0
        sleep 0.05
    done
    echo "$1 never came to $2 steps"
    return 1
}

cat >lm.yaml <<'Y'
run: lm1
tokenizer: tok
from_scratch: {type: gpt2, layers: 2, heads: 2, width: 32}
data: {train: c-train-*.h5, valid: c-valid-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 32, batch: 12, steps: 50, lr: 2.0e-2, warmup_steps: 5}
train: {micro_batch: 3, weight_decay: 0.1}
checkpoint: {every: 10, keep: 3}
eval: {every: 25, sequences: 8}
Y
cat >kl.yaml <<'Y'
run: kl1
teacher: lm1
data: {train: c-train-*.h5, valid: c-valid-*.h5}
student:
  attention: [{layers: all, kind: masks, candidates: [window(3), sinks(1), dilated(3, 4)]}]
stages:
  - {name: align, objective: attention, train: new, length: 32, batch: 12, steps: 20, lr: 1.0e-2, warmup_steps: 2}
  - {name: distil, objective: kl, train: [new, attn.qkv], length: 48, batch: 12, steps: 30, lr: 1.0e-3, warmup_steps: 2}
positions: interpolate
train: {micro_batch: 2}
checkpoint: {every: 10, keep: 3}
eval: {sequences: 8}
Y

make_shards 40 300 0.1

check "dry run" "$squint" train lm.yaml --dry-run
check "a dry run writes nothing" test ! -e lm1
check "plan" grep -q '"micro_batch": 3' <("$squint" plan lm.yaml --json)

check "plan, a table" grep -q "^lm  *[0-9,]" <("$squint" plan lm.yaml)
check "keys" grep -q "| stages.lr |" <("$squint" train --keys)
check "no recipe" exits 2 "$squint" train
check "an unknown key" exits 2 "$squint" train lm.yaml --train.clop=1

check "lm, 1 rank" "$squint" train lm.yaml
check "kl, 1 rank" "$squint" train kl.yaml
longer() { "$squint" eval --model "$1" --data c-valid-*.h5 --length 48 --positions tile --json - 2>&1 | grep -E '"(perplexity|identity)"'; }
check "a model from scratch beyond its positions" test -n "$(longer lm1)"
check "a run and its model/ beyond their positions alike" test "$(longer lm1)" = "$(longer lm1/model)"
for n in 2 4; do
    check "lm, $n ranks" ranks $n "$squint" train lm.yaml --run=lm$n
    check "kl, $n ranks" ranks $n "$squint" train kl.yaml --run=kl$n
    check "lm, $n ranks like one" "$compare" lm1 lm$n 1e-5
    check "kl, $n ranks like one" "$compare" kl1 kl$n 1e-5
done
# A trained teacher, whose attention matters: the divergence is far from 0.
stories=${SQUINT_DATA:-}/stories260K
if [ -d "$stories" ]; then
    "$squint" prep --tokenizer "$stories" --out s --valid 0.1 c.jsonl >prep.txt 2>&1 || cat prep.txt
    student=(train kl.yaml --teacher="$stories" --data.train=s-train-*.h5 --data.valid=s-valid-*.h5 --run)
    for n in 1 2 4; do check "stories260K, $n ranks" ranks $n "$squint" "${student[@]}=stories$n"; done
    for n in 2 4; do check "stories260K, $n ranks like one" "$compare" stories1 stories$n 1e-5; done
else
    echo "left out: stories260K is not in SQUINT_DATA"
fi
check "lm, other micro-batches" ranks 1 "$squint" train lm.yaml --run=lm_micro --train.micro_batch=12
check "lm, other micro-batches alike" "$compare" lm1 lm_micro 1e-5

# One of two ranks dies; the launcher takes the other down; the same command goes on, with the same bits.
killed() {
    "${launch[@]}" 2 "$squint" train kl.yaml --run=kl_killed >killed.txt 2>&1 &
    local job=$!
    await kl_killed "$1" || return 1
    local victim
    victim=$(pgrep -P "$job" | tail -n 1)
    kill -KILL "$victim"
    wait "$job"
    [ $? -ne 0 ] || { echo "the launcher did not notice"; return 1; }
}
for k in 13 26; do
    check "kl, a rank killed after $k steps" killed $k
done
check "kl, goes on after the kills" ranks 2 "$squint" train kl.yaml --run=kl_killed
check "kl, killed like straight" "$compare" kl2 kl_killed 0 50

# A signal to the launcher: a checkpoint, exit 75, and on.
stopped() {
    "${launch[@]}" 2 "$squint" train lm.yaml --run=lm_stopped --checkpoint.every=1000 >stopped.txt 2>&1 &
    local job=$!
    await lm_stopped 7 || return 1
    kill -USR1 "$job"
    exits 75 wait "$job"
}
check "lm, SIGUSR1 gives exit 75" stopped
check "lm, a checkpoint is there" test -e lm_stopped/checkpoints
check "lm, goes on after the signal" ranks 2 "$squint" train lm.yaml --run=lm_stopped
check "lm, stopped like straight" "$compare" lm2 lm_stopped 0 50

# A checkpoint of two ranks goes on with three.
half() {
    "${launch[@]}" 2 "$squint" train lm.yaml --run=lm_three --checkpoint.every=1000 >half.txt 2>&1 &
    local job=$!
    await lm_three 10 || return 1
    kill -USR1 "$job"
    exits 75 wait "$job"
}
check "lm, 2 ranks stop" half
check "lm, 3 ranks go on" ranks 3 "$squint" train lm.yaml --run=lm_three
check "lm, 3 ranks choose their micro-batches" grep -q "plan     the checkpoint is of 2 ranks" lm_three/log
check "lm, 2 ranks keep theirs" test -z "$(grep "chosen anew" lm_stopped/log)"
check "lm, 2 then 3 ranks like one" "$compare" lm1 lm_three 1e-5

# Two jobs, one directory.
in_use() {
    "${launch[@]}" 1 "$squint" train lm.yaml --run=lm_used --stages.lm.steps=100000 >used.txt 2>&1 &
    local job=$! code=0
    await lm_used 2 || return 1
    "$squint" train lm.yaml --run=lm_used 2>second.txt || code=$?
    kill -TERM "$job"
    wait "$job"
    cat second.txt
    [ "$code" = 2 ] && grep -q "another job trains in this directory" second.txt
}
check "a directory in use is refused" in_use

# From the beginning again: what was there is set aside. A finished run has nothing to do.
check "lm, a finished run" "$squint" train lm.yaml
check "lm, from the beginning" "$squint" train lm.yaml --run=lm_micro --resume never --stages.lm.steps=12
check "lm, what was there is set aside" test -e lm_micro/checkpoints.old/step-00000050 -a -e lm_micro/metrics.old.jsonl
check "lm, from another run's checkpoint" "$squint" train lm.yaml --run=lm_path --checkpoint.every=5 --resume lm2/checkpoints/step-00000040
check "lm, with a checkpoint of its own at once" test -e lm_path/checkpoints/step-00000040
check "lm, a flipped byte" python3 - <<'P'
import glob
path = sorted(glob.glob("lm_path/checkpoints/step-00000050/rank-*"))[0]
data = bytearray(open(path, "rb").read())
data[len(data) * 3 // 4] ^= 1
open(path, "wb").write(data)
P
check "lm, the one before it is used" "$squint" train lm.yaml --run=lm_path --checkpoint.every=5
check "lm, the damage is named" grep -q "step-00000050" lm_path/log

# Wrong tokenizer, and what stands in the run's directory afterwards: nothing.
"$squint" tokenizer train --vocab 290 --out tok2 c.jsonl >prep.txt 2>&1
other_tokenizer() {
    exits 2 "$squint" train lm.yaml --run=lm_other --tokenizer=tok2 2>second.txt && grep "tokenizer: expected .* of tok2" second.txt
}
check "another tokenizer is refused" other_tokenizer
check "nothing was written" test ! -e lm_other
check "more ranks than sequences are refused" exits 2 ranks 4 "$squint" train lm.yaml --run=lm_other --stages.lm.batch=3
[ $failures = 0 ] || { echo "$failures failures"; exit 1; }
