/* Units -> shards, the check of what already stands at PREFIX, and the record of the work. Shard i of a split holds its
 * tokens i × shard_tokens and on; a document that reaches over its end begins anew in the next. */
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "data-prep/prep_internal.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const char *const split_names[] = {"train", "valid"};

enum status prep_shard_path(const char *out, enum prep_split split, int64_t index, char **path) {
    return memory_format(path, "%s-%s-%05" PRId64 ".h5", out, split_names[split], index);
}

/* Calls `visit` for every path that matches PREFIX-<split>-[0-9]*<tail>. The prefix may hold pattern characters. */
static enum status each_output(const struct prep *prep, const char *tail,
                               enum status (*visit)(const struct prep *prep, const char *path)) {
    const char *out = prep->options->out;
    char *escaped = NULL;
    size_t used = 0;
    enum status status = STATUS_OK;
    TRY(memory_new(2 * strlen(out) + 1, 1, "a pattern", &escaped));
    for (const char *c = out; *c; c++) {
        if (strchr("*?[]\\", *c)) escaped[used++] = '\\';
        escaped[used++] = *c;
    }
    for (int split = 0; split < PREP_SPLITS && status == STATUS_OK; split++) {
        char *pattern = NULL, **paths = NULL;
        size_t count = 0;
        status = memory_format(&pattern, "%s-%s-[0-9][0-9][0-9][0-9][0-9]*.h5%s", escaped, split_names[split], tail);
        if (status == STATUS_OK) status = file_glob(pattern, &paths, &count);
        if (status == STATUS_NOT_FOUND) {
            error_clear();
            status = STATUS_OK;
        }
        for (size_t i = 0; i < count && status == STATUS_OK; i++) status = visit(prep, paths[i]);
        file_free_list(paths, count);
        free(pattern);
    }
    free(escaped);
    return status;
}

static enum status refuse_other(const struct prep *prep, const char *path) {
    struct shard shard = {0};
    enum status status = shard_open(path, &shard);
    bool same = status == STATUS_OK && shard.info.source_hash == prep->key &&
                shard.info.tokenizer_hash == tokenizer_hash(prep->tokenizer);
    shard_close(&shard);
    if (same) return STATUS_OK;
    if (status == STATUS_MEMORY) return status;
    error_clear();
    return error_set(STATUS_USAGE, "%s: exists and %s; choose another --out, or --force to remove it", path,
                     status == STATUS_OK ? "was made from other text or with other settings"
                                         : "is not a readable shard");
}

static enum status remove_output(const struct prep *prep, const char *path) {
    (void)prep;
    return file_remove_tree(path);
}

static enum status remove_outputs(const struct prep *prep) {
    char *record = NULL;
    TRY(prep_record_path(prep->options->out, &record));
    enum status status = file_remove_tree(record);
    free(record);
    if (status == STATUS_OK) status = file_remove_tree(prep->work);
    if (status == STATUS_OK) status = each_output(prep, "", remove_output);
    return status;
}

/* *done: the shard is there, of this work, and whole. `warn`: names a damaged one, which will be made again. */
static enum status shard_is_done(const struct prep *prep, const char *path, int64_t tokens, bool warn, bool *done) {
    struct shard shard = {0};
    *done = false;
    if (!file_exists(path)) return STATUS_OK;
    enum status status = shard_open(path, &shard);
    if (status == STATUS_OK && (shard.info.source_hash != prep->key || shard.info.tokens != tokens)) {
        status = error_set(STATUS_DAMAGED, "%s: holds something else than it should", path);
    }
    if (status == STATUS_OK) status = shard_verify(&shard);
    shard_close(&shard);
    if (status == STATUS_MEMORY) return status;
    if (status != STATUS_OK && warn) log_warning("%s; made again", error_message());
    error_clear();
    *done = status == STATUS_OK;
    return STATUS_OK;
}

static int64_t shard_count(const struct prep *prep, int64_t tokens) {
    return (tokens + prep->options->shard_tokens - 1) / prep->options->shard_tokens;
}

static int64_t shard_length(const struct prep *prep, int64_t tokens, int64_t index) {
    int64_t left = tokens - index * prep->options->shard_tokens;
    return left < prep->options->shard_tokens ? left : prep->options->shard_tokens;
}

/* Reads the record of a finished run of the same key into the summary; *found = false when there is none. */
static enum status read_record(const struct prep *prep, bool *found) {
    char *path = NULL, key[17];
    json_int_t documents[PREP_SPLITS], tokens[PREP_SPLITS];
    const char *recorded = NULL;
    *found = false;
    TRY(prep_record_path(prep->options->out, &path));
    json_t *record = json_load_file(path, 0, NULL); /* an unreadable record only means that the work is done again */
    free(path);
    if (!record) return STATUS_OK;
    hash_text(prep->key, key);
    if (json_unpack(record, "{s:s, s:{s:I, s:I}, s:{s:I, s:I}}", "key", &recorded, "documents", "train", &documents[0],
                    "valid", &documents[1], "tokens", "train", &tokens[0], "valid", &tokens[1]) == 0 &&
        strcmp(recorded, key) == 0) {
        *found = true;
        for (int split = 0; split < PREP_SPLITS; split++) {
            prep->summary->documents[split] = documents[split];
            prep->summary->tokens[split] = tokens[split];
            prep->summary->shards[split] = shard_count(prep, tokens[split]);
        }
    }
    json_decref(record);
    return STATUS_OK;
}

enum status prep_check_outputs(struct prep *prep, bool *done) {
    *done = false;
    if (prep->options->force) return remove_outputs(prep);
    TRY(each_output(prep, "", refuse_other));
    TRY(read_record(prep, done));
    for (int split = 0; split < PREP_SPLITS && *done; split++) {
        for (int64_t i = 0; i < prep->summary->shards[split] && *done; i++) {
            char *path = NULL;
            TRY(prep_shard_path(prep->options->out, (enum prep_split)split, i, &path));
            enum status status =
                shard_is_done(prep, path, shard_length(prep, prep->summary->tokens[split], i), false, done);
            free(path);
            TRY(status);
        }
    }
    /* What a killed run was writing when it ended. */
    return *done ? STATUS_OK : each_output(prep, ".*tmp-*", remove_output);
}

/* Appends tokens first … last−1 of a unit's split, document by document unless packed. */
static enum status append_unit(const struct prep *prep, struct shard_writer *writer, const struct prep_unit *unit,
                               enum prep_split split, int64_t first, int64_t last) {
    const int64_t *starts = unit->starts[split];
    int64_t document = 0;
    while (document < unit->documents[split] && starts[document] < first) document++;
    while (first < last) {
        bool begins = !prep->options->pack && document < unit->documents[split] && starts[document] == first;
        document += begins;
        int64_t end = !prep->options->pack && document < unit->documents[split] ? starts[document] : last;
        if (end > last) end = last;
        begins = begins || shard_writer_tokens(writer) == 0;
        TRY(shard_writer_append(writer, unit->ids[split] + first, end - first, begins));
        first = end;
    }
    return STATUS_OK;
}

static enum status write_tokens(const struct prep *prep, struct shard_writer *writer, enum prep_split split,
                                int64_t first, int64_t count) {
    int64_t unit_first = 0; /* the unit's first token, in tokens of the split */
    for (int64_t i = 0; i < prep->unit_count && unit_first < first + count; i++) {
        int64_t unit_end = unit_first + prep->unit_tokens[split][i];
        if (unit_end > first && unit_end > unit_first) {
            struct prep_unit unit;
            int64_t from = first > unit_first ? first - unit_first : 0;
            int64_t to = (unit_end < first + count ? unit_end : first + count) - unit_first;
            TRY(prep_check_stop(prep));
            TRY(prep_unit_open(prep, i, &unit));
            enum status status = append_unit(prep, writer, &unit, split, from, to);
            file_map_close(&unit.map);
            TRY(status);
        }
        unit_first = unit_end;
    }
    return STATUS_OK;
}

static void describe_source(const struct prep *prep, char *text, size_t capacity) {
    const char *word = prep->options->inputs[0];
    const char *first = strcmp(word, "-") == 0 ? "standard input" : word;
    if (prep->file_count == 1) {
        snprintf(text, capacity, "%s", first);
    } else {
        snprintf(text, capacity, "%.200s and others, %zu files", first, prep->file_count);
    }
}

static enum status make_shard(const struct prep *prep, enum prep_split split, int64_t index) {
    enum status status = STATUS_OK;
    char *path = NULL;
    struct shard_writer *writer = NULL;
    struct shard_info info = {.tokenizer_hash = tokenizer_hash(prep->tokenizer),
                              .vocabulary = tokenizer_vocabulary(prep->tokenizer),
                              .end_of_text = prep->end_of_text,
                              .source_hash = prep->key};
    snprintf(info.tokenizer_name, sizeof info.tokenizer_name, "%s", tokenizer_name(prep->tokenizer));
    describe_source(prep, info.source, sizeof info.source);
    int64_t count = shard_length(prep, prep->summary->tokens[split], index);
    TRY_GOTO(done, prep_shard_path(prep->options->out, split, index, &path));
    bool is_done = false;
    TRY_GOTO(done, shard_is_done(prep, path, count, true, &is_done));
    if (is_done) goto done;
    TRY_GOTO(done, shard_writer_open(path, &info, &writer));
    TRY_GOTO(done, write_tokens(prep, writer, split, index * prep->options->shard_tokens, count));
    status = shard_writer_close(&writer);
done:
    shard_writer_abort(&writer);
    free(path);
    return status;
}

/* Every rank learns how many tokens each unit has, from the units' files. */
static enum status gather_counts(struct prep *prep) {
    enum status status = STATUS_OK;
    int64_t documents[PREP_SPLITS] = {0};
    for (int split = 0; split < PREP_SPLITS; split++) {
        TRY(memory_new((size_t)prep->unit_count, sizeof(int64_t), "the units' counts", &prep->unit_tokens[split]));
    }
    for (int64_t i = comm_rank(prep->comm); i < prep->unit_count && status == STATUS_OK; i += comm_size(prep->comm)) {
        struct prep_unit unit;
        status = prep_unit_open(prep, i, &unit);
        for (int split = 0; split < PREP_SPLITS && status == STATUS_OK; split++) {
            prep->unit_tokens[split][i] = unit.tokens[split];
            documents[split] += unit.documents[split];
        }
        file_map_close(&unit.map);
    }
    TRY(comm_agree(prep->comm, status));
    TRY(comm_all_reduce(prep->comm, tensor_1d(documents, DTYPE_I64, PREP_SPLITS), COMM_SUM));
    for (int split = 0; split < PREP_SPLITS; split++) {
        TRY(comm_all_reduce(prep->comm, tensor_1d(prep->unit_tokens[split], DTYPE_I64, prep->unit_count), COMM_SUM));
        int64_t tokens = 0;
        for (int64_t i = 0; i < prep->unit_count; i++) tokens += prep->unit_tokens[split][i];
        prep->summary->documents[split] = documents[split];
        prep->summary->tokens[split] = tokens;
        prep->summary->shards[split] = shard_count(prep, tokens);
    }
    return STATUS_OK;
}

enum status prep_assemble(struct prep *prep) {
    enum status status = STATUS_OK;
    TRY(gather_counts(prep));
    int64_t all = prep->summary->shards[PREP_TRAIN] + prep->summary->shards[PREP_VALID], done = 0;
    struct log_progress progress;
    log_progress_start(&progress, "shards", 0, all);
    for (int64_t i = comm_rank(prep->comm); i < all && status == STATUS_OK; i += comm_size(prep->comm)) {
        bool valid = i >= prep->summary->shards[PREP_TRAIN];
        status = make_shard(prep, valid ? PREP_VALID : PREP_TRAIN, valid ? i - prep->summary->shards[PREP_TRAIN] : i);
        done += comm_size(prep->comm);
        log_progress_show(&progress, done < all ? done : all, "");
    }
    return comm_agree(prep->comm, status);
}
