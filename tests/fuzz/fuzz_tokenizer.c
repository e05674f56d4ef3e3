/* Any bytes as a tokenizer.json must open or be refused with a message; any bytes as text must come back.
 * fuzz_tokenizer.sh builds and runs it; it is no part of the default build. */
#include "base/file.h"
#include "data-prep/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "expected %s; message: %s\n", what, error_message());
    abort();
}

/* Encodes, decodes, and encodes again: nothing may fail but for an id outside the vocabulary. */
static void use(const struct tokenizer *tokenizer, const char *text, size_t length) {
    for (int special = 0; special < 2; special++) {
        struct token_buffer ids = {0};
        char *back = NULL;
        size_t back_length = 0;
        enum status status = tokenizer_encode(tokenizer, text, length, special, &ids);
        require(status == STATUS_OK || error_message()[0], "a message");
        if (status == STATUS_OK) {
            require(tokenizer_decode(tokenizer, ids.ids, ids.count, true, &back, &back_length) == STATUS_OK,
                    "ids that decode");
        }
        error_clear();
        free(back);
        token_buffer_free(&ids);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char path[64];
    static const char sample[] = "The  house's 12 \xE4\xB8\xAD\xFF\xE2\x96\x81 <s>\n\n";
    if (!path[0]) snprintf(path, sizeof path, "/tmp/fuzz-tokenizer-%ld.json", (long)getpid());
    FILE *file = fopen(path, "wb");
    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0, "to write a file");
    struct tokenizer *tokenizer = NULL;
    enum status status = tokenizer_open(path, &tokenizer);
    require(status == STATUS_OK || error_message()[0], "a message");
    error_clear();
    if (tokenizer) {
        use(tokenizer, sample, sizeof sample - 1);
        use(tokenizer, (const char *)data, size < 200 ? size : 200);
    }
    tokenizer_close(&tokenizer);
    unlink(path);
    return 0;
}
