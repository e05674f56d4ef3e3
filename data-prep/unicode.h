/* UTF-8 and the classes of code points that split patterns ask for. The tables (unicode_table.c) are Unicode 16's. */
#ifndef SQUINT_DATA_PREP_UNICODE_H
#define SQUINT_DATA_PREP_UNICODE_H

#include <stddef.h>
#include <stdint.h>

/* Letter: general category L*; number: N*; space: the property White_Space. */
enum unicode_class { UNICODE_OTHER = 0, UNICODE_LETTER, UNICODE_NUMBER, UNICODE_SPACE };

enum { UNICODE_BLOCK = 256 };
#define UNICODE_INVALID UINT32_MAX

extern const uint8_t unicode_stage[0x110000 / UNICODE_BLOCK];
extern const uint64_t unicode_blocks[][UNICODE_BLOCK / 32]; /* two bits a code point */

/* The class of `code`; UNICODE_INVALID is UNICODE_OTHER, as U+FFFD, which others put in its place, is. */
static inline enum unicode_class unicode_class(uint32_t code) {
    if (code >= 0x110000) return UNICODE_OTHER;
    uint64_t word = unicode_blocks[unicode_stage[code / UNICODE_BLOCK]][code % UNICODE_BLOCK / 32];
    return (enum unicode_class)(word >> (2 * (code % 32)) & 3);
}

/* Reads one code point at `at`, `left` >= 1 bytes before the end; returns its length in bytes. What is not UTF-8
 * (overlong forms, surrogates, values above U+10FFFF, truncated sequences) is UNICODE_INVALID, one byte at a time. */
static inline size_t unicode_decode(const unsigned char *at, size_t left, uint32_t *code) {
    uint32_t first = at[0];
    if (first < 0x80) {
        *code = first;
        return 1;
    }
    size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    *code = UNICODE_INVALID;
    if (first < 0xC2 || first > 0xF4 || left < length) return 1;
    uint32_t value = first & (0x7F >> length);
    for (size_t i = 1; i < length; i++) {
        if ((at[i] & 0xC0) != 0x80) return 1;
        value = value << 6 | (at[i] & 0x3F);
    }
    if (length == 3 && (value < 0x800 || (value >= 0xD800 && value < 0xE000))) return 1;
    if (length == 4 && (value < 0x10000 || value >= 0x110000)) return 1;
    *code = value;
    return length;
}

/* Writes `code` (at most U+10FFFF) as UTF-8; returns its length, 1 to 4. */
static inline size_t unicode_encode(uint32_t code, char out[4]) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code & 0x3F));
    return 4;
}

#endif
