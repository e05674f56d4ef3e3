#!/usr/bin/env bash
# squint inspect --attention: a page of a student beside its teacher, of a model alone, of a text with everything in it that HTML and
# UTF-8 make difficult; what is said to wrong options, and that nothing is left behind then. Models and texts are made here.
#   inspect_attention.sh [FOLDER]    keeps the pages there
set -u
squint=$(realpath "${SQUINT:-build/release/squint}")
pages=${1:+$(realpath "$1")}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
bad=0
fail() { echo "FAILED: $*"; bad=1; }
must() { "$@" >out 2>log || { fail "$* (exit $?)"; cat log; exit 1; }; }

# --- a teacher, a student of two kinds, a text ---
cat >lm.yaml <<'Y'
run: lm
tokenizer: tok
from_scratch: {type: gpt2, layers: 2, heads: 2, width: 16, positions: 128}
data: {train: c-train-*.h5, valid: c-valid-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 16, batch: 4, steps: 2, lr: 2.0e-2}
eval: {sequences: 2}
Y
cat >kl.yaml <<'Y'
run: kl
teacher: lm
data: {train: c-train-*.h5, valid: c-valid-*.h5}
student:
  attention:
    - {layers: 0, kind: masks, candidates: [window(5), sinks(2), offset(9)], start: [0.7, 0.4, -0.1]}
    - {layers: 1, kind: nsa, compress: 4, stride: 4, block: 4, select: 4, window: 4}
stages:
  - {name: distil, objective: kl, train: [new], length: 16, batch: 4, steps: 2, lr: 1.0e-3}
eval: {sequences: 2}
Y
must "$squint" corpus --out c.jsonl --documents 12
must "$squint" tokenizer train --vocab 300 --out tok c.jsonl
must "$squint" prep --tokenizer tok --out c --valid 0.2 c.jsonl
must "$squint" train lm.yaml
must "$squint" train kl.yaml
must "$squint" train lm.yaml --run=other --from_scratch.layers=3
printf 'Caf\303\251 \342\230\203 <b>"quoted"</b> & \\back\\\t\377 </script><!--\r\nA new line \360\237\230\200, and e\314\201; \342\200\256.' >odd.txt
printf 'The key that Ada hid is in the red box. Bob took the lamp and the map to the old mill. The key is in the' >text.txt

# --- pages ---
inspect() { must "$squint" inspect "$@"; }
inspect --attention @text.txt --model kl --out both.html --json
python3 - out both.html <<'PYTHON' || fail "the figures of --json: $(cat out)"
import json, os, sys
said = json.load(open(sys.argv[1]))
masks, nsa = said["layers"]
assert said["bytes"] == os.path.getsize(sys.argv[2]) and said["tokens"] > 40
assert [masks["kind"], nsa["kind"]] == ["masks", "nsa"]
# Masks: window(5), two sinks and offset(9), as long as all of them are there.
T = said["tokens"]
read = sum(len({j for j in range(i + 1) if i - j < 5 or j < 2 or i - j == 9}) for i in range(T))
assert abs(masks["density"] - read / (T * (T + 1) / 2)) < 1e-6, (masks["density"], read)
# A query's own block is chosen, and every block before it is compressed.
assert masks["in_summaries"] == 0 and nsa["density"] < 0.5 and abs(nsa["in_summaries"] + nsa["density"] - 1) < 1e-6
for layer in said["layers"]:
    assert layer["density"] < layer["hit_rate"] + 0.5 and 0 < layer["in_common"] <= 1
PYTHON
grep -q '<script type="application/json" id="data">{"tokens"' both.html || fail "both.html holds no data"
grep -qE '(src|href)=|https?://|@(STYLE|DATA|SCRIPT)@' <(sed 's/http:\/\/www.w3.org\/2000\/svg//' both.html) && fail "both.html points elsewhere"
inspect --attention - --model kl --layers 1 --out one.html --json <text.txt
[ "$(grep -o '"layer":' out | wc -l)" = 1 ] || fail "--layers 1: $(cat out)"
inspect --attention "$(cat text.txt)" --model kl --out literal.html
must cmp both.html literal.html
inspect --attention @odd.txt --model lm --out odd.html
grep -q "both directions\|teacher's attention" out && fail "a model alone has no teacher: $(cat out)"
yes 'The key is in the red box.' | head -n 60 >long.txt
inspect --attention @long.txt --model kl --out long.html
grep -q "the first 128 of" <(sed "s/the page shows the text's/the/" log) || fail "a long text is cut, and that is said: $(cat log)"
inspect --attention @long.txt --model kl --length 200 --positions interpolate --out longer.html --json
grep -q '"tokens": 200' out || fail "--length with longer positions: $(cat out)"

# --- wrong ones ---
mkdir folder
: >empty.txt
before=$(find . | sort)
row() { # EXIT MESSAGE ARGUMENTS...
    local code=$1 message=$2 output found
    shift 2
    output=$("$squint" inspect "$@" 2>&1 >/dev/null </dev/null)
    found=$?
    [ "$found" = "$code" ] && [[ "$output" == *"$message"* ]] || fail "squint inspect $*: expected exit $code and \"$message\", found $found and \"$output\""
    [ "$(find . | sort)" = "$before" ] || { fail "squint inspect $*: left files behind"; before=$(find . | sort); }
}
row 2 "inspect: --out: expected the page's name, such as page.html, found none" --attention x --model kl
row 2 "inspect: --model: expected a model, found none" --attention x --out p.html
row 2 "--attention: expected a value, found none" --attention --model kl --out p.html
row 2 "--out: expected --attention TEXT beside it" kl --out p.html
row 2 "--layers: expected --attention TEXT beside it" kl --layers 1
row 2 "expected neither a path nor --verify beside it, found kl" --attention x kl --model kl --out p.html
row 2 "expected neither a path nor --verify beside it, found --verify" --attention x --verify --model kl --out p.html
row 2 "--attention: TEXT: expected a text, found an empty one" --attention "" --model kl --out p.html
row 2 "--attention: empty.txt: expected a text, found an empty one" --attention @empty.txt --model kl --out p.html
row 2 "--attention: standard input: expected a text, found an empty one" --attention - --model kl --out p.html
row 2 "expected a file's name behind the @, found none" --attention @ --model kl --out p.html
row 1 "absent.txt" --attention @absent.txt --model kl --out p.html
row 1 "nowhere: expected a Hugging Face directory" --attention x --model nowhere --out p.html
row 2 "--layers: expected all, a layer from 0 to 1, or FIRST-LAST, found \"2\"" --attention x --model kl --out p.html --layers 2
for word in 1-0 -1 x 1,2 0-9 99999999999999999999; do row 2 "found \"$word\"" --attention x --model kl --out p.html --layers "$word"; done
row 2 "--length: expected a number from 1 to 4096, found \"0\"" --attention x --model kl --out p.html --length 0
row 2 "--length 200: lm/checkpoints/step-00000002: expected at most its 128 learned positions" --attention @long.txt --model lm --out p.html --length 200
row 2 "other/model: expected 2 layers of 2 heads as in lm/checkpoints/step-00000002, found 3 of 2" --attention x --model lm --teacher other --out p.html
row 2 "folder: expected a regular file to write" --attention x --model kl --out folder
row 1 "no/such/p.html" --attention x --model kl --out no/such/p.html
echo "what was there" >kept.html
before=$(find . | sort)
row 2 "expected all" --attention x --model kl --out kept.html --layers 7
[ "$(cat kept.html)" = "what was there" ] || fail "a page that was there is lost to a wrong option"

[ -z "$pages" ] || cp both.html odd.html long.html "$pages"
[ $bad = 0 ] && echo "all as expected"
exit $bad
