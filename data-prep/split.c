/* GPT-2's split pattern by hand: one pass, a table for ASCII, the Unicode tables for the rest. */
#include "data-prep/split.h"

#include "data-prep/unicode.h"

const char *const split_gpt2_pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char *const split_gpt2_pattern_short =
    "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

enum { LETTER = UNICODE_LETTER, NUMBER = UNICODE_NUMBER, SPACE = UNICODE_SPACE, WIDE = 4 };

/* The class of a byte; WIDE: the first byte of something that is not ASCII. */
static const unsigned char byte_class[256] = {
    ['\t'] = SPACE, ['\n'] = SPACE,         ['\v'] = SPACE,         ['\f'] = SPACE,         ['\r'] = SPACE,
    [' '] = SPACE,  ['0' ... '9'] = NUMBER, ['A' ... 'Z'] = LETTER, ['a' ... 'z'] = LETTER, [0x80 ... 0xFF] = WIDE,
};

/* The class of the character at text[at], and its length in bytes. */
static inline unsigned class_at(const unsigned char *text, size_t length, size_t at, size_t *bytes) {
    unsigned class = byte_class[text[at]];
    *bytes = 1;
    if (class != WIDE) return class;
    uint32_t code;
    *bytes = unicode_decode(text + at, length - at, &code);
    return unicode_class(code);
}

/* The end of the run of `class` that goes on at text[at]. */
static inline size_t run_end(const unsigned char *text, size_t length, size_t at, unsigned class) {
    while (at < length) {
        size_t bytes = 1;
        unsigned found = byte_class[text[at]];
        if (found == WIDE) found = class_at(text, length, at, &bytes);
        if (found != class) break;
        at += bytes;
    }
    return at;
}

/* `\s+(?!\S)|\s+`: white space up to the end of the text, or all of it but the last character, which belongs to what
 * follows; a single one stands alone. */
static size_t space_end(const unsigned char *text, size_t length, size_t from) {
    size_t at = from, last = from, bytes;
    while (at < length && class_at(text, length, at, &bytes) == SPACE) {
        last = at;
        at += bytes;
    }
    return at == length || last == from ? at : last;
}

/* The end of 's 't 'm 'd 're 've 'll at an apostrophe; `from` when none stands there. */
static inline size_t contraction_end(const unsigned char *text, size_t length, size_t from) {
    if (length - from < 2) return from;
    unsigned char a = text[from + 1];
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return from + 2;
    if (length - from < 3) return from;
    unsigned char b = text[from + 2];
    bool found = (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l');
    return found ? from + 3 : from;
}

size_t split_gpt2(const char *bytes, size_t length, size_t from) {
    const unsigned char *text = (const unsigned char *)bytes;
    size_t at = from, width;
    if (text[from] == '\'') {
        size_t end = contraction_end(text, length, from);
        if (end > from) return end;
    }
    if (text[from] == ' ' && from + 1 < length) at++;
    unsigned class = class_at(text, length, at, &width);
    if (class == SPACE) return space_end(text, length, from);
    return run_end(text, length, at + width, class);
}
