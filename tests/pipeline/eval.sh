#!/usr/bin/env bash
# A corpus sampled from a trained model, a student of it, and what eval, generate, logits and export say of both: the same at
# any number of ranks, the same of a run and of its export, and near what is known of this model.
set -u
data=${SQUINT_DATA:-}/stories260K
[ -f "$data/model.safetensors" ] || { echo "skipped: $data is not there; set SQUINT_DATA"; exit 77; }
squint=${SQUINT:-build/release/squint}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
bad=0
fail() { echo "FAILED: $*"; bad=1; }
must() { "$@" >out 2>log || { fail "$* (exit $?)"; cat log; exit 1; }; }
# figure NAME KEY FILE: a row's figure in eval's JSON.
figure() { awk -v name="\"name\": \"$1\"," -v key="\"$2\":" '/"name":/ { here = index($0, name) } here && $1 == key { sub(/,$/, "", $2); print $2; here = 0 }' "$3"; }
between() { awk -v x="$2" -v low="$3" -v high="$4" 'BEGIN { exit !(x >= low && x <= high) }' || fail "$1: expected $3 to $4, found $2"; }

# --- the same corpus at any number of ranks ---
for ranks in 1 2 3; do
  must mpirun -np $ranks --oversubscribe "$squint" generate --model "$data" --samples 13 --length 385 --batch 3 --valid 0.3 --seed 9 --threads 1 --out corpus$ranks
done
for part in train valid; do
  cmp corpus1-$part-00000.h5 corpus2-$part-00000.h5 || fail "$part: 1 and 2 ranks differ"
  cmp corpus1-$part-00000.h5 corpus3-$part-00000.h5 || fail "$part: 1 and 3 ranks differ"
done

# --- a student of a few steps ---
cat >recipe.yaml <<RECIPE
run: run
teacher: $data
data: {train: corpus1-train-00000.h5, valid: corpus1-valid-00000.h5}
student:
  attention:
    - {layers: 0, kind: full}
    - {layers: all, kind: masks, candidates: [window(24), sinks(2), offset(40)]}
stages:
  - {name: distil, objective: kl, train: [new, attn.out], length: 128, batch: 2, steps: 4, lr: 1.0e-3}
RECIPE
must "$squint" train recipe.yaml
evaluate() { must mpirun -np "$1" --oversubscribe "$squint" eval --data corpus1-valid-00000.h5 --length 384 --documents --batch 2 --threads 1 --json "$2" "${@:3}"; }
evaluate 1 one.json --model run
"$squint" eval --model run --data corpus1-valid-00000.h5 --length 100 --sequences 2 --no-baselines --ladder --json ladder.json >out 2>log
# The cost rung is a time, and this machine may be busy; the other rungs must hold.
awk '/"name": "cost"/ { exit } /"result"/' ladder.json | grep -q fail && fail "a rung of the ladder: $(cat out)"
[ "$(awk '/"ladder"/ { l = 1 } l' ladder.json | grep -c '"result": "pass"')" -ge 4 ] || fail "fewer than 4 rungs pass"
evaluate 2 two.json --model run
cmp one.json two.json || fail "eval: 1 and 2 ranks differ"
python3 - one.json <<'PYTHON' || fail "by position: the buckets' tokens and losses do not add up to the whole"
import json, math, sys
for row in json.load(open(sys.argv[1]))["rows"]:
    buckets = row["by_position"]
    assert [b["first"] for b in buckets] == [0, 64, 128, 256][:len(buckets)] and len(buckets) >= 3
    assert sum(b["tokens"] for b in buckets) == row["tokens"]
    mean = sum(b["tokens"] * math.log(b["perplexity"]) for b in buckets) / row["tokens"]
    assert abs(mean - row["ce"]) < 1e-9 * row["ce"]
    if "kl" in row: assert abs(sum(b["tokens"] * b["kl"] for b in buckets) / row["tokens"] - row["kl"]) < 1e-9
PYTHON
[ "$(figure student kl one.json)" != "$(figure untrained kl one.json)" ] || fail "training changed nothing"
# Known of this model, untrained, over other samples: a window of 32 gives KL .102, none at all 3.62.
between "teacher's perplexity" "$(figure teacher perplexity one.json)" 3 5
between "no attention, first layer full" "$(figure 'no attention' kl one.json)" 0.5 4.5

# --- its audit: a row for every branch, worse without the window, unchanged without what starts at 0 and hardly trained ---
must "$squint" eval --model run --data corpus1-valid-00000.h5 --length 100 --sequences 2 --no-baselines --audit --json audit.json
for branch in 'window(24)' 'sinks(2)' 'offset(40)'; do grep -q "\"no $branch\"" audit.json || fail "no row for $branch"; done
between "no window over all branches: KL" "$(awk -v a="$(figure 'no window(24)' kl audit.json)" -v b="$(figure student kl audit.json)" 'BEGIN { print a / b }')" 2 1e9
between "no sinks over all branches: KL" "$(awk -v a="$(figure 'no sinks(2)' kl audit.json)" -v b="$(figure student kl audit.json)" 'BEGIN { print a / b }')" 0.8 1.25

# --- the whole model with a window of 32 ---
cat >window.yaml <<RECIPE
run: window
teacher: $data
data: {train: corpus1-train-00000.h5, valid: corpus1-valid-00000.h5}
student: {attention: [{layers: all, kind: masks, candidates: [window(32)]}]}
stages: [{name: distil, objective: kl, train: [new], length: 64, batch: 1, steps: 1, lr: 1.0e-9}]
RECIPE
must "$squint" train window.yaml
evaluate 1 window.json --model window
between "window 32: density" "$(figure untrained density window.json)" 0.159 0.161
between "window 32: KL" "$(figure untrained kl window.json)" 0.07 0.14

# --- its export says the same ---
must "$squint" export --model run --out exported
evaluate 1 exported.json --model exported --teacher "$data"
between "KL of the export over the run's" "$(awk -v a="$(figure student kl exported.json)" -v b="$(figure student kl two.json)" 'BEGIN { print a / b }')" 0.999 1.001
for model in run exported; do
  "$squint" generate --model $model --prompt "Lily had a" --tokens 40 >$model.text 2>log || fail "generate --model $model: $(cat log)"
done
cmp run.text exported.text || fail "the run and its export write different texts"
grep -q "^Lily had a" run.text || fail "the text does not begin with the prompt"
"$squint" generate --model run --prompt "Lily had a" --tokens 40 --parallel >parallel.text 2>log || fail "generate --parallel"
cmp run.text parallel.text || fail "the cached and the parallel path write different texts"
for seed in 5 5 6; do "$squint" generate --model run --prompt "One day" --tokens 40 --temperature 1 --seed $seed 2>log; echo; done >texts
[ "$(sed -n 1p texts)" = "$(sed -n 3p texts)" ] || fail "one seed, two texts"
[ "$(sort -u texts | wc -l)" -ge 3 ] || fail "two seeds, one text"
echo '{"ids": [[1, 403, 407, 261], [1, 5, 6, 7]]}' >ids.json
must "$squint" logits --model run --ids ids.json --out run.h5
must "$squint" logits --model exported --ids ids.json --out exported.h5
[ $bad = 0 ] && echo "eval: corpus, figures, ladder, export and texts agree"
exit $bad
