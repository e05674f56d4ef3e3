"""Writes unicode_table.c: the class (other, letter, number, space) of every Unicode code point, in two stages.

    pip install unicodedata2==16.0.0 && python3 data-prep/make_unicode.py > data-prep/unicode_table.c

The classes are those of the regular expressions that tokenizers are defined by: letter = general category L*, number =
N*, space = the property White_Space. The version has to be the one that the tokenizers of the models were run with:
Unicode 16, as tokenizers >= 0.21.2 and tiktoken 0.11 have it.
"""
import sys

import unicodedata2 as unicodedata

VERSION = "16.0.0"
BLOCK = 256  # code points a block
# White_Space, PropList.txt; unchanged since Unicode 6.3.
SPACES = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def code_point_class(code):
    if code in SPACES:
        return 3
    return {"L": 1, "N": 2}.get(unicodedata.category(chr(code))[0], 0)


def rows(values, form, per_row):
    for first in range(0, len(values), per_row):
        print("    " + ", ".join(form % value for value in values[first:first + per_row]) + ",")


def main():
    if unicodedata.unidata_version != VERSION:
        sys.exit(f"expected Unicode {VERSION}, found {unicodedata.unidata_version}: pip install unicodedata2=={VERSION}")
    blocks, stage = {}, []
    for first in range(0, 0x110000, BLOCK):
        words = []
        for word in range(first, first + BLOCK, 32):
            words.append(sum(code_point_class(word + bit) << (2 * bit) for bit in range(32)))
        stage.append(blocks.setdefault(tuple(words), len(blocks)))
    print(f"/* Unicode {VERSION}: written by make_unicode.py, not by hand. */")
    print("// clang-format off")
    print('#include "data-prep/unicode.h"\n')
    print("const uint8_t unicode_stage[0x110000 / UNICODE_BLOCK] = {")
    rows(stage, "%d", 27)
    print("};\n\nconst uint64_t unicode_blocks[][UNICODE_BLOCK / 32] = {")
    for block in blocks:
        rows(["{" + ", ".join(f"0x{word:x}" for word in block) + "}"], "%s", 1)
    print("};")
    assert len(blocks) < 256


main()
