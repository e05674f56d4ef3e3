/* squint tokenizer train | encode | decode. */
#include "data-prep/tokenizer.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "commands/commands.h"
#include "commands/input.h"
#include "data-prep/bpe_train.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: squint tokenizer train --vocab N --out DIR INPUT... [--min-count 2]\n"
    "       squint tokenizer encode --tokenizer DIR [FILE] [--special] [--count]\n"
    "       squint tokenizer decode --tokenizer DIR [FILE] [--special]\n\n"
    "train   learns a byte-level BPE of N tokens from texts (txt, .gz, .zst, .jsonl, directories, -) and writes\n"
    "        DIR/tokenizer.json, vocab.json, merges.txt, tokenizer_config.json. \"<|endoftext|>\" is token 0.\n"
    "encode  prints one JSON list: the ids of FILE's (or standard input's) text\n"
    "decode  prints the text of one JSON list of ids\n\n"
    "  --vocab N        tokens to learn, the 256 bytes and \"<|endoftext|>\" included (at least 257)\n"
    "  --out DIR        where the tokenizer goes; made when it is not there\n"
    "  --min-count N    a pair seen less often becomes no token (default 2)\n"
    "  --tokenizer DIR  a Hugging Face directory, or a tokenizer.json\n"
    "  --special        encode: the names of special tokens in the text are those tokens; decode: show them\n"
    "  --count          encode: print how many ids instead, as JSON, with bytes and seconds\n\n"
    "example: squint tokenizer train --vocab 8000 --out my-bpe corpus/*.txt.zst\n"
    "         echo \"Hello world\" | squint tokenizer encode --tokenizer my-bpe\n";

static enum status flush_output(void) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return STATUS_OK;
    return error_set(STATUS_IO, "standard output: writing: %s", strerror(errno));
}

/* [1, 2, 3] and a newline; the digits by hand, for there may be millions. */
static enum status print_ids(const struct token_buffer *ids) {
    putc_unlocked('[', stdout);
    for (size_t i = 0; i < ids->count; i++) {
        char digits[16];
        size_t at = sizeof digits;
        uint32_t value = ids->ids[i];
        do {
            digits[--at] = (char)('0' + value % 10);
            value /= 10;
        } while (value);
        if (i) fwrite_unlocked(", ", 1, 2, stdout);
        fwrite_unlocked(digits + at, 1, sizeof digits - at, stdout);
    }
    fwrite_unlocked("]\n", 1, 2, stdout);
    return flush_output();
}

static enum status read_ids(const char *name, const struct input *input, struct token_buffer *ids) {
    json_error_t fault;
    enum status status = STATUS_OK;
    json_t *list = json_loadb(input->length ? input->text : "", input->length, 0, &fault), *item;
    if (!list)
        return error_set(STATUS_DAMAGED, "%s: line %d: expected a JSON list of ids: %s", name, fault.line, fault.text);
    if (!json_is_array(list)) TRY_GOTO(done, error_set(STATUS_DAMAGED, "%s: expected a JSON list of ids", name));
    TRY_GOTO(done, memory_new(json_array_size(list), sizeof *ids->ids, "token ids", &ids->ids));
    size_t index;
    json_array_foreach(list, index, item) {
        json_int_t value = json_is_integer(item) ? json_integer_value(item) : -1;
        if (value < 0 || value > UINT32_MAX) {
            TRY_GOTO(done,
                     error_set(STATUS_DAMAGED, "%s: item %zu: expected an id, a whole number from 0 up", name, index));
        }
        ids->ids[ids->count++] = (uint32_t)value;
    }
done:
    json_decref(list);
    return status;
}

struct coding { /* what an encode or decode was asked to do */
    const char *directory, *path;
    bool special, count;
};

static enum status run_encode(const struct tokenizer *tokenizer, const struct coding *coding,
                              const struct input *input) {
    struct token_buffer ids = {0};
    double begun_s = time_now_s();
    enum status status = tokenizer_encode(tokenizer, input->text, input->length, coding->special, &ids);
    double seconds = time_now_s() - begun_s;
    if (status == STATUS_OK && coding->count) {
        printf("{\"ids\": %zu, \"bytes\": %zu, \"seconds\": %.6f}\n", ids.count, input->length, seconds);
        status = flush_output();
    } else if (status == STATUS_OK) {
        status = print_ids(&ids);
    }
    token_buffer_free(&ids);
    return status;
}

static enum status run_decode(const struct tokenizer *tokenizer, const struct coding *coding,
                              const struct input *input) {
    struct token_buffer ids = {0};
    char *text = NULL;
    size_t length = 0;
    enum status status = STATUS_OK;
    TRY_GOTO(done, read_ids(coding->path ? coding->path : "standard input", input, &ids));
    TRY_GOTO(done, tokenizer_decode(tokenizer, ids.ids, ids.count, coding->special, &text, &length));
    fwrite(text, 1, length, stdout);
    status = flush_output();
done:
    free(text);
    token_buffer_free(&ids);
    return status;
}

static enum status run_code(int argc, char **argv, bool encodes) {
    struct coding coding = {0};
    const struct option options[] = {{"tokenizer", OPTION_TEXT, &coding.directory, 0, 0},
                                     {"special", OPTION_FLAG, &coding.special, 0, 0},
                                     {"count", OPTION_FLAG, &coding.count, 0, 0}};
    struct option_list words = {0};
    struct tokenizer *tokenizer = NULL;
    struct input input = {0};
    enum status status = STATUS_OK;
    TRY_GOTO(done, options_read(argc, argv, options, encodes ? 3 : 2, &words, NULL));
    if (!coding.directory) {
        TRY_GOTO(done, error_set(STATUS_USAGE, "%s: --tokenizer DIR is missing; see squint tokenizer --help", argv[0]));
    }
    if (words.count > 1) {
        TRY_GOTO(done, error_set(STATUS_USAGE, "%s: expected one file, found \"%s\" and \"%s\"", argv[0],
                                 words.values[0], words.values[1]));
    }
    coding.path = words.count ? words.values[0] : NULL;
    TRY_GOTO(done, tokenizer_open(coding.directory, &tokenizer));
    TRY_GOTO(done, input_open(coding.path, &input));
    status = encodes ? run_encode(tokenizer, &coding, &input) : run_decode(tokenizer, &coding, &input);
done:
    input_close(&input);
    tokenizer_close(&tokenizer);
    options_free(&words);
    return status;
}

static enum status run_train(int argc, char **argv) {
    struct bpe_train_options train = {.min_count = 2};
    const struct option options[] = {{"vocab", OPTION_INTEGER, &train.vocabulary, 257, 1 << 22},
                                     {"out", OPTION_TEXT, &train.out, 0, 0},
                                     {"min-count", OPTION_INTEGER, &train.min_count, 1, 1e15}};
    struct option_list words = {0};
    enum status status = STATUS_OK;
    TRY_GOTO(done, options_read(argc, argv, options, 3, &words, NULL));
    if (!train.vocabulary || !train.out || !words.count) {
        const char *missing = !train.vocabulary ? "--vocab N" : !train.out ? "--out DIR" : "INPUT";
        TRY_GOTO(done, error_set(STATUS_USAGE, "%s: %s is missing; see squint tokenizer --help", argv[0], missing));
    }
    train.inputs = words.values;
    train.input_count = words.count;
    status = bpe_train(&train);
done:
    options_free(&words);
    return status;
}

static enum status run(int argc, char **argv) {
    const char *action = argc > 1 ? argv[1] : "";
    if (strcmp(action, "train") == 0) return run_train(argc - 1, argv + 1);
    if (strcmp(action, "encode") == 0) return run_code(argc - 1, argv + 1, true);
    if (strcmp(action, "decode") == 0) return run_code(argc - 1, argv + 1, false);
    return error_set(STATUS_USAGE,
                     "tokenizer: expected train, encode or decode, found \"%s\"; see squint tokenizer --help", action);
}

const struct command command_tokenizer = {"tokenizer", "train one; encode, decode", help, run};
