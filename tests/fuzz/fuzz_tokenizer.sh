#!/bin/sh
# Builds and runs fuzz_tokenizer.c: tests/fuzz/fuzz_tokenizer.sh FOLDER [SECONDS]. FOLDER keeps the inputs that were found.
set -e
folder=${1:?expected a folder for the inputs} seconds=${2:-60}
cd "$(dirname "$0")/../.."
mkdir -p build/fuzz "$folder"
clang -g -O1 -std=gnu11 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined -Isrc -I. tests/fuzz/fuzz_tokenizer.c \
    data-prep/tokenizer*.c data-prep/bpe*.c data-prep/split*.c data-prep/unicode*.c data-prep/reader*.c src/base/*.c \
    -ljansson -lpcre2-8 -lzstd -lz -lxxhash -lm -o build/fuzz/fuzz_tokenizer
exec build/fuzz/fuzz_tokenizer -max_len=4000 -max_total_time="$seconds" "$folder"
