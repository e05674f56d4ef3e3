#!/bin/sh
# Compares the program's tokenizers with Hugging Face's and tiktoken, where those are installed (launch/setup --oracles).
python=$SQUINT_SOURCE/build/oracles/bin/python
if ! "$python" -c 'import tokenizers, tiktoken, numpy' 2>/dev/null; then
    echo "skipped: no oracles in build/oracles; launch/setup --oracles installs them"
    exit 77
fi
[ -x "$SQUINT" ] || { echo "expected the program at $SQUINT"; exit 1; }
exec "$python" "$SQUINT_SOURCE/tests/oracles/tokenizer.py" check
