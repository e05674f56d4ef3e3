#!/usr/bin/env bash
# Stories, a tokenizer, a model of a few steps and a student of it, and eval --recall: the answers that it counts, by distance in
# tokens, as counted here another way; the same figures at any number of ranks; what is said to wrong corpora.
set -u
squint=${SQUINT:-build/release/squint}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
bad=0
fail() { echo "FAILED: $*"; bad=1; }
must() { "$@" >out 2>log || { fail "$* (exit $?)"; cat log; exit 1; }; }

must "$squint" corpus --out stories.jsonl --documents 60 --shortest 500 --longest 4000 --facts 5
must "$squint" tokenizer train --vocab 400 --out tokenizer stories.jsonl
must "$squint" prep --tokenizer tokenizer --out data --valid 0.1 stories.jsonl
cat >teacher.yaml <<RECIPE
run: teacher
tokenizer: tokenizer
data: {train: data-train-00000.h5}
from_scratch: {type: llama, layers: 2, heads: 2, width: 16, positions: 1024}
stages: [{name: teach, objective: lm, train: [all], length: 256, batch: 8, steps: 60, lr: 1.0e-2}]
RECIPE
cat >student.yaml <<RECIPE
run: student
teacher: teacher/model
data: {train: data-train-00000.h5}
student: {attention: [{layers: all, kind: masks, candidates: [window(32), sinks(2)]}]}
stages: [{name: distil, objective: kl, train: [new], length: 64, batch: 1, steps: 1, lr: 1.0e-9}]
RECIPE
must "$squint" train teacher.yaml
must "$squint" train student.yaml
head -20 stories.jsonl >some.jsonl
echo >>some.jsonl
evaluate() { must mpirun -np "$1" --oversubscribe "$squint" eval --model student --data data-valid-00000.h5 --length 640 --sequences 3 --batch 3 --threads 1 --audit --recall some.jsonl --json "$2"; }
evaluate 1 one.json
for text in 'some.jsonl, 20 documents cut after 640 tokens' '0-127 ' '512-1023 ' 'all '; do grep -q "^\(recall *\)\?$text" out || fail "the table has no line \"$text\": $(cat out)"; done
evaluate 2 two.json
cmp one.json two.json || fail "1 and 2 ranks differ"
evaluate 3 three.json
cmp one.json three.json || fail "1 and 3 ranks differ"

while IFS= read -r line; do
  [ -z "$line" ] || printf '%s' "$line" | python3 -c 'import json, sys; sys.stdout.write(json.load(sys.stdin)["text"])' |
    "$squint" tokenizer encode --tokenizer tokenizer
done <some.jsonl >ids.txt 2>log || { fail "ids: $(cat log)"; }
python3 - <<'PYTHON' || fail "the figures are not those of the corpus"
import json
# A byte-level token has a character for each of its bytes.
tokens = {i: t for t, i in json.load(open("tokenizer/tokenizer.json"))["model"]["vocab"].items()}
lines = [json.loads(l) for l in open("some.jsonl") if l.strip()]
expected, left_out = {}, 0
for line, ids in zip(lines, map(json.loads, open("ids.txt"))):
    holder = [i for i, id in enumerate(ids) for _ in tokens[id]]  # byte -> token
    assert len(holder) == len(line["text"])
    for r in line["recall"]:
        first, last = holder[r["start"]], holder[r["start"] + r["length"] - 1]
        # As many tokens as the words take, the space before them with the first; its bytes are those of the answer.
        said = "".join(tokens[i] for i in ids[first:last + 1]).replace("\u0120", " ")
        assert said.strip() == line["text"][r["start"]:r["start"] + r["length"]], said
        if last > 640: left_out += 1; continue
        bucket = max(b for b in (0, 128, 256, 512, 1024) if first - holder[r["start"] - r["distance"]] >= b)
        expected[bucket] = expected.get(bucket, 0) + 1
found = json.load(open("one.json"))
assert left_out > 0 and len(expected) > 3, (left_out, expected)
assert found["recall"] == {"corpus": "some.jsonl", "documents": 20, "answers": sum(expected.values()), "left_out": left_out}, found["recall"]
names = [row["name"] for row in found["rows"]]
assert names[:2] == ["teacher", "student"] and "no window(32)" in names and "untrained" in names, names
for row in found["rows"]:
    recall = row["recall"]
    assert {b["first"]: b["answers"] for b in recall["by_distance"]} == expected, (row["name"], recall)
    for key in "accuracy", "nll":
        mean = sum(b["answers"] * b[key] for b in recall["by_distance"]) / recall["answers"]
        assert abs(mean - recall[key]) <= 1e-9 * (1 + recall[key]), (row["name"], key, recall)
    assert 0 <= recall["accuracy"] <= 1 and recall["nll"] > 0
assert len({row["recall"]["nll"] for row in found["rows"]}) > 3  # the rows are different models
PYTHON

# --- wrong corpora: the line, what was expected and found ---
# row EXIT "PART OF THE MESSAGE" ARGUMENTS...
row() {
  local code=$1 message=$2 output found
  shift 2
  output=$("$squint" eval --model teacher/model --tokenizer tokenizer --data data-valid-00000.h5 --length 64 --sequences 1 --threads 1 "$@" 2>&1 >/dev/null)
  found=$?
  [ "$found" = "$code" ] && [[ "$output" = *"$message"* ]] || fail "$*: expected exit $code and \"$message\", found exit $found and \"$output\""
}
answer() { printf '{"text": "Tom has a cat. It is a cat.", "recall": [{"start": %s, "length": %s, "distance": %s}]}\n' "$1" "$2" "$3"; }
answer 23 3 13 >good.jsonl
(cat good.jsonl && answer 23 4 24) >before.jsonl
answer 25 3 13 >past.jsonl
answer 23 0 13 >nothing.jsonl
answer 23 3 '"far"' >word.jsonl
answer 9223372036854775807 3 13 >huge.jsonl
echo '{"text": "Tom.", "recall": [7]}' >flat.jsonl
echo '{"text": "Tom."}' >plain.jsonl
echo '{"text": 4, "recall": []}' >number.jsonl
echo '{"text": "Tom.", "recall": []}' >unasked.jsonl
(cat good.jsonl && echo '{"text": "Tom') >cut.jsonl
: >empty.jsonl
row 0 "" --recall good.jsonl
row 1 "absent.jsonl" --recall absent.jsonl
row 3 "before.jsonl:2: recall[0]: expected bytes of the text's 27 and an earlier place, found start 23, length 4, distance 24" --recall before.jsonl
row 3 "past.jsonl:1: recall[0]: expected bytes" --recall past.jsonl
row 3 "nothing.jsonl:1: recall[0]: expected bytes" --recall nothing.jsonl
row 3 "word.jsonl:1: recall[0]: expected an object with the numbers start, length and distance" --recall word.jsonl
row 3 "huge.jsonl:1: recall[0]: expected bytes" --recall huge.jsonl
row 3 "flat.jsonl:1: recall[0]: expected an object" --recall flat.jsonl
row 3 "plain.jsonl:1: expected a JSON object with \"text\" and the list \"recall\", as squint corpus writes it; \"recall\" is missing" --recall plain.jsonl
row 3 "number.jsonl:1: expected a JSON object" --recall number.jsonl
row 3 "unasked.jsonl: expected documents with answers to recall, found none" --recall unasked.jsonl
row 3 "cut.jsonl:2: not a JSON object" --recall cut.jsonl
row 3 "empty.jsonl: expected documents" --recall empty.jsonl
row 2 "recall: no answer lies in the first 2 tokens" --recall good.jsonl --length 2
row 1 "nowhere" --recall good.jsonl --tokenizer nowhere
row 2 "--tokenizer: expected --recall FILE beside it, found none"
must "$squint" tokenizer train --vocab 300 --out other stories.jsonl
row 2 "other: tokenizer: expected tokenizer (hash " --recall good.jsonl --tokenizer other
cp -r teacher/model bare && rm -f bare/tokenizer.json bare/vocab.json bare/merges.txt
output=$("$squint" eval --model bare --data data-valid-00000.h5 --length 64 --recall good.jsonl 2>&1 >/dev/null)
[ $? = 2 ] && [[ "$output" = *"bare: no tokenizer in it; name one with --tokenizer DIR"* ]] || fail "a model without a tokenizer: $output"
[ "$bad" = 0 ]
