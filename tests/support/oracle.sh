#!/bin/sh
# Runs a Python script with the oracles' interpreter (launch/setup --oracles); skips, exit 77, where it is not installed.
# usage: oracle.sh SCRIPT [ARGUMENTS...]
python="${SQUINT_SOURCE:-$(dirname "$0")/../..}/build/oracles/bin/python"
if [ ! -x "$python" ]; then
    echo "skipped: $python is not there; launch/setup --oracles installs it"
    exit 77
fi
exec "$python" "$@"
