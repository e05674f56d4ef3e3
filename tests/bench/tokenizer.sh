#!/bin/sh
# Tokenising wiki.train.tokens with GPT-2's vocabulary on one core, against tiktoken and Hugging Face's tokenizers.
#   SQUINT=build/release/squint SQUINT_DATA=../shared/data tests/bench/tokenizer.sh [--json]
here=$(cd "$(dirname "$0")/../.." && pwd)
: "${SQUINT:=$here/build/release/squint}" "${SQUINT_DATA:=$here/../shared/data}"
export SQUINT SQUINT_DATA TOKENIZERS_PARALLELISM=false RAYON_NUM_THREADS=1
exec taskset -c 0 "$here/build/oracles/bin/python" "$here/tests/bench/tokenizer.py" "$@"
