/* What has been done: for people, as JSON, and as the record beside the shards. */
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "data-prep/prep_internal.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum status prep_record_path(const char *out, char **path) {
    return memory_format(path, "%s-prep.json", out);
}

static double bytes_per_token(const struct prep_summary *summary) {
    int64_t tokens = summary->tokens[PREP_TRAIN] + summary->tokens[PREP_VALID];
    return tokens > 0 ? (double)summary->text_bytes / (double)tokens : 0;
}

static double tokens_per_s(const struct prep_summary *summary) {
    double tokens = (double)(summary->tokens[PREP_TRAIN] + summary->tokens[PREP_VALID]);
    return summary->seconds > 0 ? tokens / summary->seconds : 0;
}

static json_t *pack_splits(const int64_t values[PREP_SPLITS]) {
    return json_pack("{s:I, s:I}", "train", (json_int_t)values[PREP_TRAIN], "valid", (json_int_t)values[PREP_VALID]);
}

/* NULL: no memory. */
static json_t *pack_paths(const struct prep_options *options, const struct prep_summary *summary) {
    json_t *list = json_array();
    for (int split = 0; split < PREP_SPLITS && list; split++) {
        for (int64_t i = 0; i < summary->shards[split]; i++) {
            char *path = NULL;
            bool added = prep_shard_path(options->out, (enum prep_split)split, i, &path) == STATUS_OK &&
                         json_array_append_new(list, json_string(path)) == 0;
            free(path);
            if (!added) {
                json_decref(list);
                return NULL;
            }
        }
    }
    return list;
}

/* What is the same however often and on however many ranks the work is done. NULL: no memory. */
static json_t *pack_result(const struct prep_options *options, const struct prep_summary *summary) {
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:I, s:I, s:f, s:I, s:I, s:f, s:I, s:b, s:I}", "out", options->out,
                     "tokenizer", options->tokenizer, "documents", pack_splits(summary->documents), "tokens",
                     pack_splits(summary->tokens), "shards", pack_paths(options, summary), "files",
                     (json_int_t)summary->files, "text_bytes", (json_int_t)summary->text_bytes, "bytes_per_token",
                     bytes_per_token(summary), "invalid_utf8", (json_int_t)summary->invalid_utf8, "empty_documents",
                     (json_int_t)summary->empty_documents, "valid", options->valid, "seed", (json_int_t)options->seed,
                     "pack", options->pack, "shard_tokens", (json_int_t)options->shard_tokens);
}

static enum status no_memory(void) {
    return error_set(STATUS_MEMORY, "no memory for the summary");
}

enum status prep_write_record(const struct prep *prep) {
    char *path = NULL, *text = NULL, key[17];
    enum status status = STATUS_OK;
    json_t *record = pack_result(prep->options, prep->summary);
    hash_text(prep->key, key);
    if (!record || json_object_set_new(record, "key", json_string(key)) != 0 ||
        !(text = json_dumps(record, JSON_INDENT(2) | JSON_REAL_PRECISION(9)))) {
        status = no_memory();
        goto done;
    }
    TRY_GOTO(done, prep_record_path(prep->options->out, &path));
    status = file_write(path, text, strlen(text));
done:
    json_decref(record);
    free(text);
    free(path);
    return status;
}

enum status prep_print_json(FILE *stream, const struct prep_options *options, const struct prep_summary *summary) {
    json_t *result = pack_result(options, summary);
    if (!result) return no_memory();
    json_object_set_new(result, "already_done", json_boolean(summary->already_done));
    json_object_set_new(result, "seconds", json_real(summary->seconds));
    json_object_set_new(result, "tokens_per_s", json_real(summary->already_done ? 0 : tokens_per_s(summary)));
    int failed = json_dumpf(result, stream, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(result);
    return failed || fputc('\n', stream) == EOF ? error_set(STATUS_IO, "cannot print the summary: %s", strerror(errno))
                                                : STATUS_OK;
}

static void print_split(FILE *stream, const char *name, const struct prep_options *options,
                        const struct prep_summary *summary, enum prep_split split) {
    char documents[32], tokens[32];
    count_text(summary->documents[split], documents);
    count_text(summary->tokens[split], tokens);
    if (summary->shards[split] == 0) {
        bool whole = summary->documents[PREP_TRAIN] == 1 && options->valid > 0;
        fprintf(stream, "%s  no documents%s\n", name,
                whole ? ": the text is one; --wikitext or --document-separator makes more of it" : "");
        return;
    }
    fprintf(stream, "%s  %s tokens in %s documents: %s-%s-00000.h5", name, tokens, documents, options->out, name);
    if (summary->shards[split] > 1) fprintf(stream, " … %05lld.h5", (long long)summary->shards[split] - 1);
    fputc('\n', stream);
}

enum status prep_print(FILE *stream, const struct prep_options *options, const struct prep_summary *summary) {
    char bytes[32], rate[32], time[16];
    if (summary->already_done)
        fprintf(stream, "already done: text, tokenizer and settings are the same, every shard verifies\n");
    print_split(stream, "train", options, summary, PREP_TRAIN);
    if (options->valid > 0) print_split(stream, "valid", options, summary, PREP_VALID);
    count_text(summary->text_bytes, bytes);
    fprintf(stream, "text   %s bytes, %.3f a token\n", bytes, bytes_per_token(summary));
    if (summary->invalid_utf8) {
        fprintf(stream, "       %lld byte sequences in %lld files are not UTF-8, kept as bytes\n",
                (long long)summary->invalid_utf8, (long long)summary->invalid_files);
    }
    if (summary->empty_documents)
        fprintf(stream, "       %lld empty documents left out\n", (long long)summary->empty_documents);
    count_text((int64_t)tokens_per_s(summary), rate);
    time_text(summary->seconds, time);
    if (!summary->already_done) fprintf(stream, "time   %s, %s tokens/s\n", time, rate);
    if (summary->kept_units) {
        fprintf(stream, "       %lld of %lld units were kept from an interrupted run\n", (long long)summary->kept_units,
                (long long)summary->units);
    }
    return ferror(stream) ? error_set(STATUS_IO, "cannot print the summary: %s", strerror(errno)) : STATUS_OK;
}
