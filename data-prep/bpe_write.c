/* A learnt BPE as the files that Hugging Face's tokenizers and transformers read. */
#include "base/file.h"
#include "base/memory.h"
#include "data-prep/bpe_train.h"
#include "data-prep/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

static enum status no_memory(void) {
    return error_set(STATUS_MEMORY, "no memory for a tokenizer's JSON");
}

static enum status write_file(const char *directory, const char *name, const char *text, size_t length) {
    char *path = NULL;
    TRY(file_join(directory, name, &path));
    enum status status = file_write(path, text, length);
    free(path);
    return status;
}

struct dump { /* JSON on its way into a text; jansson forgets some failures, so the first is kept here */
    struct text text;
    enum status status;
};

static int dump_append(const char *bytes, size_t length, void *context) {
    struct dump *dump = context;
    if (dump->status == STATUS_OK) dump->status = text_append(&dump->text, bytes, length);
    return dump->status == STATUS_OK ? 0 : -1;
}

static enum status write_json(const char *directory, const char *name, const json_t *value) {
    struct dump dump = {0};
    enum status status = STATUS_OK;
    if (!value || json_dump_callback(value, dump_append, &dump, JSON_COMPACT) != 0) status = no_memory();
    if (dump.status != STATUS_OK) status = dump.status;
    if (status == STATUS_OK) status = write_file(directory, name, dump.text.bytes, dump.text.length);
    free(dump.text.bytes);
    return status;
}

static json_t *token_text(const struct bpe_vocabulary *v, uint32_t id) {
    return json_stringn(v->bytes + v->begin[id], v->length[id]);
}

static enum status make_vocabulary(const struct bpe_vocabulary *v, json_t **out) {
    *out = json_object();
    for (uint32_t id = 0; *out && id < v->count; id++) {
        json_t *name = token_text(v, id);
        int refused = !name || json_object_set_new(*out, json_string_value(name), json_integer(id));
        json_decref(name);
        if (refused) return no_memory();
    }
    return *out ? STATUS_OK : no_memory();
}

/* "left right" lines. */
static enum status make_merges(const struct bpe_learnt *learnt, struct text *lines, json_t **list) {
    const struct bpe_vocabulary *v = &learnt->vocabulary;
    *list = json_array();
    TRY(text_append(lines, "#version: 0.2\n", 14));
    for (size_t i = 0; i < 2 * learnt->merge_count; i += 2) {
        size_t begin = lines->length;
        uint32_t left = learnt->merges[i], right = learnt->merges[i + 1];
        TRY(text_append(lines, v->bytes + v->begin[left], v->length[left]));
        TRY(text_append(lines, " ", 1));
        TRY(text_append(lines, v->bytes + v->begin[right], v->length[right]));
        if (json_array_append_new(*list, json_stringn(lines->bytes + begin, lines->length - begin))) return no_memory();
        TRY(text_append(lines, "\n", 1));
    }
    return *list ? STATUS_OK : no_memory();
}

/* Takes the references to both. */
static json_t *make_tokenizer(json_t *vocabulary, json_t *merges) {
    return json_pack(
        "{s:s, s:n, s:n, s:[{s:i, s:s, s:b, s:b, s:b, s:b, s:b}], s:n, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:b, s:b, s:b},"
        " s:{s:s, s:b, s:b, s:b}, s:{s:s, s:n, s:n, s:s, s:s, s:b, s:b, s:b, s:o, s:o}}",
        "version", "1.0", "truncation", "padding", "added_tokens", "id", 0, "content", BPE_TRAIN_SPECIAL, "single_word",
        0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1, "normalizer", "pre_tokenizer", "type", "ByteLevel",
        "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1, "post_processor", "type", "ByteLevel",
        "add_prefix_space", 0, "trim_offsets", 0, "use_regex", 1, "decoder", "type", "ByteLevel", "add_prefix_space", 0,
        "trim_offsets", 1, "use_regex", 1, "model", "type", "BPE", "dropout", "unk_token", "continuing_subword_prefix",
        "", "end_of_word_suffix", "", "fuse_unk", 0, "byte_fallback", 0, "ignore_merges", 0, "vocab", vocabulary,
        "merges", merges);
}

enum status bpe_learnt_write(const struct bpe_learnt *learnt, const char *directory) {
    struct text lines = {0};
    json_t *vocabulary = NULL, *merges = NULL, *tokenizer = NULL;
    json_t *config =
        json_pack("{s:s, s:s, s:s, s:s, s:b}", "tokenizer_class", "GPT2Tokenizer", "bos_token", BPE_TRAIN_SPECIAL,
                  "eos_token", BPE_TRAIN_SPECIAL, "unk_token", BPE_TRAIN_SPECIAL, "add_prefix_space", 0);
    enum status status = STATUS_OK;
    TRY_GOTO(done, make_vocabulary(&learnt->vocabulary, &vocabulary));
    TRY_GOTO(done, make_merges(learnt, &lines, &merges));
    tokenizer = make_tokenizer(json_incref(vocabulary), json_incref(merges));
    TRY_GOTO(done, file_make_directory(directory));
    TRY_GOTO(done, write_json(directory, "vocab.json", vocabulary));
    TRY_GOTO(done, write_file(directory, "merges.txt", lines.bytes, lines.length));
    TRY_GOTO(done, write_json(directory, "tokenizer_config.json", config));
    TRY_GOTO(done, write_json(directory, "tokenizer.json", tokenizer));
done:
    json_decref(tokenizer);
    json_decref(config);
    json_decref(vocabulary);
    json_decref(merges);
    free(lines.bytes);
    return status;
}
