/* GPT-2's alphabet: every byte as a printable character, so that vocabularies are texts. Printable Latin-1 stands for
 * itself; the other 68 bytes, in order, are U+0100 and up. Radford et al. 2019. */
#include "base/memory.h"
#include "data-prep/tokenizer_parts.h"
#include "data-prep/unicode.h"

#include <string.h>

enum { MOVED = 0x100, MOVED_COUNT = 68 };

static bool stands_for_itself(unsigned byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

uint32_t byte_to_character(unsigned char byte) {
    if (stands_for_itself(byte)) return byte;
    if (byte <= 0x20) return MOVED + byte;
    return byte == 0xAD ? MOVED + MOVED_COUNT - 1 : MOVED + 0x21 + (byte - 0x7Fu);
}

int character_to_byte(uint32_t character) {
    if (character < MOVED) return stands_for_itself(character) ? (int)character : -1;
    if (character >= MOVED + MOVED_COUNT) return -1;
    uint32_t place = character - MOVED;
    if (place <= 0x20) return (int)place;
    return place == MOVED_COUNT - 1 ? 0xAD : (int)(place - 0x21 + 0x7F);
}

enum status text_append(struct text *text, const char *bytes, size_t length) {
    if (text->length + length + 1 > text->capacity) {
        size_t capacity = 2 * (text->length + length) + 32;
        TRY(memory_grow(&text->bytes, capacity, 1, "a text"));
        text->capacity = capacity;
    }
    if (length) memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
    text->bytes[text->length] = '\0';
    return STATUS_OK;
}

enum status bytes_to_characters(const char *bytes, size_t length, struct text *out) {
    for (size_t i = 0; i < length; i++) {
        char character[4];
        TRY(text_append(out, character, unicode_encode(byte_to_character((unsigned char)bytes[i]), character)));
    }
    return STATUS_OK;
}

enum status characters_to_bytes(const char *token, size_t length, struct text *out) {
    size_t before = out->length;
    for (size_t at = 0; at < length;) {
        uint32_t code;
        at += unicode_decode((const unsigned char *)token + at, length - at, &code);
        int byte = character_to_byte(code);
        if (byte < 0) {
            out->length = before;
            return text_append(out, token, length);
        }
        TRY(text_append(out, &(char){(char)byte}, 1));
    }
    return STATUS_OK;
}
