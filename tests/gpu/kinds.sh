#!/usr/bin/env bash
# Training stories260K to students of every kind: on a GPU (in tests/simt: its kernels executed on the host) the losses of both stages are
# those of the CPU, in fp32 and in bf16; decoding from the cache writes the CPU's text; evaluation finds the CPU's divergence.
#   SQUINT: the program on the CPU; GPU: the one with the CUDA table (SQUINT's by default); SQUINT_DATA: a folder with the model stories260K;
#   LENGTH (64), BATCH (2), STEPS (2) of a stage; the arguments: names of students, all without any.
set -uo pipefail
cpu=$(realpath "${SQUINT:-build/release/squint}")
gpu=$(realpath "${GPU:-$cpu}")
compare=$(realpath "${COMPARE:-${SQUINT_BUILD:-build/release}/tests/compare_runs}")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$here/tests/support/check.sh"
data=${SQUINT_DATA:-$here/../shared/data}
[ -d "$data/stories260K" ] || { echo "skipped: no model in $data/stories260K; set SQUINT_DATA"; exit 77; }
data=$(realpath "$data")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work
length=${LENGTH:-64} batch=${BATCH:-2} steps=${STEPS:-2}

"$gpu" train --help >/dev/null 2>&1 || { echo "FAIL $gpu does not start"; exit 1; }
{ "$cpu" corpus --out c.jsonl --documents 30 && "$cpu" prep --tokenizer "$data/stories260K" --out c --valid 0.1 c.jsonl; } >prep.txt 2>&1 ||
    { cat prep.txt; exit 1; }

# name | attention | what trains in the stage `align`, and its options | how far a loss in bf16 may be: kinds that choose may choose
# something else where rounding moves scores past each other, and a step of two sequences sees it. (The svd of a head 8 wide leaves an index
# of 32 directions that hold rounding noise alone, which Adam makes as large as any: two devices then part. So that one starts at random. Rates are low
# for the same reason: an optimizer's first updates are the signs of gradients, however small these are.)
students='
masks     | kind: masks, candidates: [window(8), sinks(2), dilated(4, 8)] | [new] | 6e-2
performer | kind: performer, features: 16, redraw_every: 3 | [attn.qkv] | 6e-2
hedgehog  | kind: kerformer, window: 8, window_dropout: 0.5 | [new] | 6e-2
exp       | kind: kerformer, map: exp, features: 16, window: 4 | [new], weights: true | 6e-2
relu-se   | kind: kerformer, map: relu-se, features: 16, hidden: 4, window: 8 | [new] | 6e-2
nsa       | kind: nsa, compress: 8, stride: 4, block: 8, select: 4, window: 12 | [new] | 1e-1
nsa-apart | kind: nsa, compress: 4, stride: 4, block: 8, select: 4, window: 8, union: false, branch_kv: separate, select_group: 1 | [new] | 1e-1
indexer   | kind: indexer, tokens: 8, window: 6, sinks: 2 | [new] | 1e-1
coarse    | kind: indexer, tokens: 8, window: 6, sinks: 2, coarse: 8, coarse_blocks: 2, per: head, init: random | [new] | 1e-1
'
recipe() { # name, attention, what trains in align and its options
    cat >"$1.yaml" <<Y
run: $1
teacher: $data/stories260K
data: {train: c-train-*.h5, valid: c-valid-*.h5}
student: {attention: [{layers: all, $2}]}
stages:
  - {name: align, objective: attention, train: $3, length: $length, batch: $batch, steps: $steps, lr: 1.0e-3, warmup_steps: 1}
  - {name: distil, objective: kl, train: [new, attn.qkv], length: $length, batch: $batch, steps: $steps, lr: 1.0e-4, warmup_steps: 1}
train: {micro_batch: 1}
checkpoint: {every: $steps, keep: 2}
eval: {every: 0, sequences: 1}
deterministic: true
Y
}
written() { "$@" --prompt "Once upon a time" --tokens 20 2>/dev/null; }
divergence() {
    "$@" --teacher "$data/stories260K" --data c-valid-*.h5 --length "$length" --sequences 1 --no-baselines --json - 2>/dev/null |
        grep -oE '"kl": [-0-9.e]+' | head -n 1 | cut -d' ' -f2
}
near() { awk -v a="$1" -v b="$2" 'BEGIN { d = a - b; if (d < 0) d = -d; print a ", " b; exit !(a != "" && b != "" && d <= 1e-4 * (a > 1e-2 ? a : 1e-2)) }'; }

for name in "$@"; do
    grep -q "^$name *|" <<<"$students" || { echo "FAIL $name: no student of that name"; exit 1; }
done
while IFS='|' read -r name attention options tolerance; do
    name=${name// /}
    [ -n "$name" ] || continue
    case " ${*:-$name} " in *" $name "*) ;; *) continue ;; esac
    recipe "$name" "$(sed 's/^ *//; s/ *$//' <<<"$attention")" "$(sed 's/^ *//; s/ *$//' <<<"$options")"
    check "$name, CPU" "$cpu" train "$name.yaml" --device=cpu --run="$name-cpu"
    check "$name, CUDA in fp32" "$gpu" train "$name.yaml" --device=cuda --run="$name-f32"
    check "$name: fp32 as on the CPU" "$compare" "$name-cpu" "$name-f32" 1e-4
    check "$name, CUDA in bf16" "$gpu" train "$name.yaml" --device=cuda --precision=bf16 --run="$name-bf16"
    check "$name: bf16 near the CPU" "$compare" "$name-cpu" "$name-bf16" "${tolerance// /}"
    check "$name: divergence as on the CPU" near "$(divergence "$cpu" eval --model "$name-cpu" --device cpu)" \
        "$(divergence "$gpu" eval --model "$name-cpu" --device cuda)"
    text=$(written "$cpu" generate --model "$name-cpu" --device cpu)
    check "$name: text as on the CPU" test -n "$text" -a "$text" = "$(written "$gpu" generate --model "$name-cpu" --device cuda)"
done <<<"$students"
[ $failures = 0 ] || { echo "$failures failures"; exit 1; }
echo "students of every kind on CUDA: as on the CPU"
