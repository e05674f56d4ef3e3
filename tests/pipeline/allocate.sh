#!/usr/bin/env bash
# squint allocate on a tiny model: the same recipe and figures at 1, 2 and 3 ranks, byte for byte; recipes that pass --dry-run, train, and are what was
# measured; both budgets kept; never worse than the best uniform student; a message for what is wrong. With real data also a model whose heads differ.
set -u
squint=${SQUINT:-build/release/squint}
teacher=${SQUINT_SOURCE:-.}/tests/model/goldens/llama-gqa
data=${SQUINT_DATA:-}/stories260K
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
# What Open MPI keeps is told by its libraries' names: under AddressSanitizer stacks must reach them.
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:fast_unwind_on_malloc=0
bad=0
fail() { echo "FAILED: $*"; bad=1; }
must() { "$@" >out 2>log || { fail "$* (exit $?)"; cat log; exit 1; }; }
# holds FILE EXPRESSION: of allocate's JSON, as `r`.
holds() { python3 -c "import json, sys; r = json.load(open(sys.argv[1])); sys.exit(not (eval(sys.argv[2])))" "$1" "$2" || fail "$1: expected $2, found $(grep -E '"(density|kl|at_most|evaluations)"' "$1" | head -5 | tr -d '\n')"; }
best='min([u["kl"] for u in r["uniform"] if u["within"]])'

# A shard in a place of its own for each: the recipe holds the command.
must "$squint" generate --model "$teacher" --samples 12 --length 33 --temperature 1 --valid 0.5 --seed 4 --out text
kinds='masks:candidates=window(2),masks:candidates=window(5),masks:candidates=window(11),masks:candidates=window(3)+sinks(2):start=0.8+0.2,nsa:compress=4:stride=4:block=4:select=3:window=4,full'
allocate() { # RANKS FOLDER OPTIONS...
  local ranks=$1 folder=$2
  mkdir -p "$folder"
  shift 2
  (cd "$folder" && ln -sf ../text-*.h5 . && mpirun -np "$ranks" --oversubscribe "$squint" allocate --teacher "$teacher" --data 'text-valid-*.h5' --length 32 \
    --sequences 5 --batch 1 --threads 1 --kinds "$kinds" --out sparse.yaml --json sparse.json "$@" >out 2>log) || { fail "allocate $* (exit $?)"; cat "$folder/log"; exit 1; }
}

# --- any number of ranks ---
for ranks in 1 2 3; do allocate $ranks ranks$ranks --density 0.3; done
for ranks in 2 3; do
  for file in sparse.yaml sparse.json out; do cmp ranks1/$file ranks$ranks/$file || fail "1 and $ranks ranks differ"; done
done
holds ranks1/sparse.json 'r["density"] <= 0.3 * (1 + 1e-9)'
holds ranks1/sparse.json "r['kl'] <= $best"
holds ranks1/sparse.json 'abs(sum(l["density"] for l in r["layers"]) / 2 - r["density"]) < 1e-12'
grep -q '"sizes_by_head"' ranks1/sparse.json || fail "no layer has sizes by head"
grep -q '^density by layer' ranks1/out || fail "no bars"
must mpirun -np 1 "$squint" allocate --teacher "$teacher" --data text-valid-00000.h5 --length 32 --sequences 5 --density 0.3 --evaluations 20 --json -
python3 -c 'import json, sys; json.load(open("out"))' || fail "--json -: more than JSON"
grep -q 'candidate": "nsa' out && grep -q 'window(6)' out || fail "the built-in list lacks kinds"

# --- recipes train, as what they were measured as ---
check_recipe() { # FOLDER STAGES...: --dry-run, 2 steps, and eval's density is the allocation's
  local folder=$1 steps=()
  shift
  for stage in "$@"; do steps+=("--stages.$stage.steps=2" "--stages.$stage.batch=2"); done
  cd "$folder" || exit 1
  must "$squint" train sparse.yaml --dry-run
  must "$squint" train sparse.yaml "${steps[@]}"
  must "$squint" eval --model runs/sparse --data 'text-valid-*.h5' --length 32 --sequences 10 --json eval.json
  python3 - <<'PYTHON' || fail "$folder: the trained recipe is not what was measured"
import json
allocation, rows = json.load(open("sparse.json")), {r["name"]: r for r in json.load(open("eval.json"))["rows"]}
assert abs(rows["student"]["density"] - allocation["density"]) < 1e-12, (rows["student"]["density"], allocation["density"])
low, high = sorted([allocation["kl"], allocation["check_kl"]])
assert low - 1e-9 <= rows["untrained"]["kl"] <= high + 1e-9, (low, rows["untrained"]["kl"], high)
PYTHON
  cd "$work" || exit 1
}
check_recipe ranks1 distil
grep -q 'train: \["text-train-\*.h5"\]' ranks1/sparse.yaml || fail "the recipe does not train on the shards beside the data"
kinds='nsa:compress=4:stride=4:block=4:select=3:window=4,nsa:compress=2:stride=2:block=2:select=3:window=2,full'
allocate 1 learned --density 0.8
grep -q 'name: align.*train: \[attn.nsa\]' learned/sparse.yaml || fail "nsa has no stage align"
check_recipe learned align distil

# --- a budget of KL; layers as wholes ---
kinds='masks:candidates=window(2),masks:candidates=window(5),masks:candidates=window(11),full'
allocate 1 wide --density 0.45 --per layer
! grep -q '"sizes_by_head"' wide/sparse.json || fail "--per layer: a head has a size of its own"
kl=$(python3 -c 'import json; print(json.load(open("wide/sparse.json"))["kl"])')
allocate 1 kl --kl "$kl"
holds kl/sparse.json "r['kl'] <= $kl * (1 + 1e-9) and r['density'] <= 0.45"
holds kl/sparse.json 'all(r["density"] <= u["density"] for u in r["uniform"] if u["within"])'
check_recipe kl distil

# --- wrong input: exit code, message, no file ---
for word in $(seq 400); do echo "word $word of a text with bytes beyond a hundred"; done >words.txt
must "$squint" tokenizer train --vocab 300 --out tokenizer words.txt
must "$squint" prep --tokenizer tokenizer --out bytes words.txt
before=$(find . | sort)
row() { # EXIT "PART OF THE MESSAGE" OPTIONS...
  local code=$1 message=$2 found output
  shift 2
  output=$("$squint" allocate --length 32 --out bad.yaml --json bad.json "$@" 2>&1 >/dev/null </dev/null)
  found=$?
  [ "$found" = "$code" ] && [[ "$output" == *"$message"* ]] && [ "$(echo "$output" | grep -c '^squint: ')" = 1 ] || fail "allocate $*: expected exit $code and \"$message\", found $found and \"$output\""
  [ "$(find . | sort)" = "$before" ] || fail "allocate $*: left files behind"
}
given=(--teacher "$teacher" --data text-valid-00000.h5)
row 2 "allocate: --teacher: expected a model, found none" --data text-valid-00000.h5 --density 0.1
row 2 "allocate: --data: expected token shards, found none" --teacher "$teacher" --density 0.1
row 2 "allocate: expected a budget, --density D or --kl K, found none" "${given[@]}"
row 2 "allocate: expected one budget, found --density and --kl" "${given[@]}" --density 0.1 --kl 0.1
row 2 "--density: expected a number from 1e-06 to 1, found \"0\"" "${given[@]}" --density 0
row 2 "--density: expected a number from 1e-06 to 1, found \"1.5\"" "${given[@]}" --density 1.5
row 2 "--kl: expected a number from 1e-09" "${given[@]}" --kl -1
row 2 "--density: expected at least 0.3" "${given[@]}" --density 0.1 --kinds 'masks:candidates=window(5)+sinks(2):start=0.5+0.5,full'
row 2 "--kinds:2: student.attention: kind: expected one of full, masks" "${given[@]}" --density 0.1 --kinds full,flash
row 2 "--kinds:1: attention masks: candidates: expected full, window(W)" "${given[@]}" --density 0.1 --kinds 'masks:candidates=window'
row 2 "--kinds:1: performer: expected a kind with a density" "${given[@]}" --density 0.1 --kinds performer
row 2 "--kinds:2: kerformer: expected a kind with a density" "${given[@]}" --kl 0.1 --kinds full,kerformer:window=4
row 2 "--kinds: expected a candidate beside full, found none" "${given[@]}" --density 0.1 --kinds full
row 2 "--kinds:1: masks: per: expected head or layer, found \"model\"" "${given[@]}" --density 0.1 --kinds 'masks:candidates=window(4):per=model'
row 2 "allocate: --kinds: expected KIND:KEY=WORD, found option \"window\"" "${given[@]}" --density 0.1 --kinds nsa:window
row 2 "--per: expected head or layer, found \"model\"" "${given[@]}" --density 0.1 --per model
row 2 "--out: expected a file in a directory that exists, found no/where.yaml" "${given[@]}" --density 0.1 --out no/where.yaml
row 2 "the shards' vocabulary: expected at most the model's 101, found 300" --teacher "$teacher" --data bytes-train-00000.h5 --density 0.3
row 1 "missing.h5" --teacher "$teacher" --data missing.h5 --density 0.1
row 1 "nowhere" --teacher nowhere --data text-valid-00000.h5 --density 0.1
row 2 "expected a model with full attention, found a student" --teacher ranks1/runs/sparse --data text-valid-00000.h5 --density 0.1
row 2 "allocate: --kl: no choice of the candidates is within 1e-08" "${given[@]}" --sequences 2 --kl 1e-8 --kinds 'masks:candidates=window(2)'

# --- a model whose heads differ ---
if [ -f "$data/model.safetensors" ]; then
  must "$squint" generate --model "$data" --samples 30 --length 257 --seed 9 --out stories
  # What the tables alone choose, then what moves make of it.
  for moves in 0 120; do
    must "$squint" allocate --teacher "$data" --data stories-train-00000.h5 --length 256 --sequences 4 --density 0.12 --threads 1 --evaluations $moves \
      --kinds 'masks:candidates=window(4),masks:candidates=window(8),masks:candidates=window(15),masks:candidates=window(48),full' --json stories$moves.json
    holds stories$moves.json 'r["density"] <= 0.12 * (1 + 1e-9)'
    holds stories$moves.json "r['kl'] < 0.6 * $best"
    holds stories$moves.json "r['check_kl'] < 0.6 * min([u['check_kl'] for u in r['uniform'] if u['within']])"
  done
  tables=$(python3 -c 'import json; print(json.load(open("stories0.json"))["kl"])')
  holds stories120.json "r['kl'] < $tables"
else
  echo "left out: $data is not there"
fi
[ $bad = 0 ] && echo "allocate: recipes, budgets, ranks and messages agree"
exit $bad
