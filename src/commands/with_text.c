/* See with_text.h. */
#include "commands/with_text.h"

#include "base/memory.h"

enum status with_text_tokenizer(const char *command, const char *directory, const struct loaded_model *loaded,
                                struct tokenizer **tokenizer) {
    const char *path = directory ? directory : loaded->tokenizer;
    if (!path) {
        return error_set(STATUS_USAGE, "%s: %s: no tokenizer in it; name one with --tokenizer DIR", command,
                         loaded->path);
    }
    TRY(tokenizer_open(path, tokenizer));
    if (tokenizer_vocabulary(*tokenizer) > loaded->model->config.vocabulary) {
        return error_set(STATUS_USAGE, "%s: %s: expected a vocabulary of at most the model's %lld, found %lld", command,
                         path, (long long)loaded->model->config.vocabulary,
                         (long long)tokenizer_vocabulary(*tokenizer));
    }
    return STATUS_OK;
}

enum status with_text_encode(const char *command, const char *option, const struct model_config *model,
                             const struct tokenizer *tokenizer, const char *text, size_t length,
                             struct token_buffer *ids, bool *begins) {
    int64_t begin = model->begin_of_text >= 0 ? model->begin_of_text : tokenizer_begin_of_text(tokenizer);
    *begins = (begin >= 0 && begin != model->end_of_text) || length == 0;
    if (*begins) {
        if (begin < 0) begin = tokenizer_end_of_text(tokenizer);
        if (begin < 0) {
            return error_set(STATUS_USAGE, "%s: --%s: expected a text, found an empty one and no begin-of-text id",
                             command, option);
        }
        TRY(memory_grow(&ids->ids, ids->count + 1, sizeof *ids->ids, option));
        ids->capacity = ids->count + 1;
        ids->ids[ids->count++] = (uint32_t)begin;
    }
    return tokenizer_encode(tokenizer, text, length, false, ids);
}
