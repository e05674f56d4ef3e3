/* What prep has to do: the files, what is in them, the key of the work and its units. */
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"
#include "data-prep/prep_internal.h"
#include "data-prep/reader_source.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t format_version = 1; /* of the work files and of what the key means */
static const int64_t smallest_unit = 1 << 20, largest_unit = 1 << 24;
enum { PIECE_BYTES = 1 << 20, UNITS_WANTED = 256, COPY_BYTES = 1 << 16 };

enum status prep_check_stop(const struct prep *prep) {
    if (!prep->options->stop || !*prep->options->stop) return STATUS_OK;
    return error_set(STATUS_STOPPED, "stopped on request; the same command goes on from here");
}

enum prep_split prep_split_of(const struct prep *prep, int64_t document) {
    uint64_t place = rng_permute(prep->options->seed, RNG_SPLIT, (uint64_t)document, (uint64_t)prep->documents);
    return (int64_t)place < prep->valid_documents ? PREP_VALID : PREP_TRAIN;
}

enum status prep_standard_input_path(const char *out, char **path) {
    return memory_format(path, "%s-stdin.tmp", out);
}

static enum status copy_standard_input(const char *path) {
    enum status status = STATUS_OK;
    struct source *source = NULL;
    char block[COPY_BYTES];
    FILE *file = NULL;
    TRY_GOTO(done, source_open("-", &source));
    file = fopen(path, "wbe");
    if (!file) {
        status = error_set(STATUS_IO, "%s: cannot create it: %s", path, strerror(errno));
        goto done;
    }
    for (size_t got = 1, total = 0; got > 0; total += got) {
        TRY_GOTO(done, source_read(source, block, sizeof block, &got));
        if (got == 0 && total == 0) {
            status = error_set(STATUS_DAMAGED, "standard input: is empty; expected text");
            goto done;
        }
        if (fwrite(block, 1, got, file) == got) continue;
        status = error_set(STATUS_IO, "%s: cannot write it: %s", path, strerror(errno));
        goto done;
    }
done:
    if (file && fclose(file) != 0 && status == STATUS_OK) {
        status = error_set(STATUS_IO, "%s: cannot write it: %s", path, strerror(errno));
    }
    source_close(&source);
    return status;
}

static enum status make_parent(const char *out) {
    const char *slash = strrchr(out, '/');
    if (!slash || slash == out) return STATUS_OK;
    char *folder = NULL;
    enum status status = memory_format(&folder, "%.*s", (int)(slash - out), out);
    if (status == STATUS_OK) status = file_make_directory(folder);
    free(folder);
    return status;
}

/* Standard input can be read only once and only by rank 0: it becomes a file that every rank reads. */
static enum status replace_standard_input(struct prep *prep) {
    enum status status = STATUS_OK;
    for (size_t i = 0; i < prep->file_count; i++) {
        if (strcmp(prep->paths[i], "-") != 0) continue;
        free(prep->paths[i]);
        prep->paths[i] = NULL;
        status = prep_standard_input_path(prep->options->out, &prep->paths[i]);
        prep->standard_input = true;
        if (status == STATUS_OK && comm_rank(prep->comm) == 0) {
            status = make_parent(prep->options->out);
            if (status == STATUS_OK) status = copy_standard_input(prep->paths[i]);
        }
        break;
    }
    return comm_agree(prep->comm, status);
}

/* Does encoding a text in two pieces, cut before a line feed that follows printable ASCII, give the same ids as in one?
 * True of GPT-2's splitter, where no chunk spans such a place; false where a normalizer changes every beginning. */
static enum status probe_cuts(const struct tokenizer *tokenizer, bool *cuts) {
    static const char *const rights[] = {"\n", "\n\n", "\na", "\n\nB", "\n 1", "\n \n ."};
    enum status status = STATUS_OK;
    struct token_buffer whole = {0}, parts = {0};
    *cuts = true;
    for (char left = '!'; left <= '~' && *cuts; left++) {
        for (size_t i = 0; i < sizeof rights / sizeof *rights && *cuts; i++) {
            char text[16];
            int length = snprintf(text, sizeof text, "ab %c%s", left, rights[i]);
            whole.count = parts.count = 0;
            TRY_GOTO(done, tokenizer_encode(tokenizer, text, (size_t)length, false, &whole));
            TRY_GOTO(done, tokenizer_encode(tokenizer, text, 4, false, &parts));
            TRY_GOTO(done, tokenizer_encode(tokenizer, text + 4, (size_t)length - 4, false, &parts));
            *cuts = whole.count == parts.count && memcmp(whole.ids, parts.ids, whole.count * sizeof *whole.ids) == 0;
        }
    }
done:
    token_buffer_free(&whole);
    token_buffer_free(&parts);
    return status;
}

static enum status open_tokenizer(struct prep *prep) {
    bool cuts = false;
    TRY(tokenizer_open(prep->options->tokenizer, &prep->tokenizer));
    prep->end_of_text = tokenizer_end_of_text(prep->tokenizer);
    prep->begin_of_text = tokenizer_begin_of_text(prep->tokenizer);
    /* GPT-2 has one token for both: after every document is before the next. */
    if (prep->options->no_begin_of_text || prep->begin_of_text == prep->end_of_text) prep->begin_of_text = -1;
    if (prep->options->no_end_of_text) prep->end_of_text = -1;
    TRY(probe_cuts(prep->tokenizer, &cuts));
    prep->reader.piece_bytes = cuts ? PIECE_BYTES : 0;
    return STATUS_OK;
}

static enum status scan_file(struct prep *prep, size_t index, struct log_progress *progress, int64_t *scanned) {
    enum status status = STATUS_OK;
    struct reader *reader = NULL;
    struct reader_piece piece;
    struct prep_count *count = &prep->counts[index];
    uint64_t hash = 0;
    bool more = true;
    TRY(reader_open(prep->paths[index], &prep->reader, &reader));
    for (;;) {
        TRY_GOTO(done, prep_check_stop(prep));
        TRY_GOTO(done, reader_next(reader, &piece, &more));
        if (!more) break;
        size_t first = 0;
        int64_t invalid = reader_count_invalid(piece.text, piece.length, &first);
        if (invalid > 0 && count->invalid == 0) count->invalid_at = count->bytes + (int64_t)first;
        count->invalid += invalid;
        count->documents += piece.begins;
        count->bytes += (int64_t)piece.length;
        hash = hash_combine(hash_combine(hash, hash_bytes(piece.text, piece.length)),
                            (uint64_t)(piece.begins | piece.ends << 1));
        *scanned += (int64_t)piece.length;
        log_progress_show(progress, *scanned >> 20, "MiB read");
    }
    count->empty = reader_empty(reader);
    memcpy(&count->hash, &hash, sizeof hash);
done:
    reader_close(&reader);
    return status;
}

static enum status scan(struct prep *prep) {
    enum status status = STATUS_OK;
    struct log_progress progress;
    int64_t scanned = 0;
    size_t rank = (size_t)comm_rank(prep->comm), size = (size_t)comm_size(prep->comm);
    log_progress_start(&progress, "scan", 0, 0);
    for (size_t i = rank; i < prep->file_count && status == STATUS_OK; i += size) {
        status = scan_file(prep, i, &progress, &scanned);
    }
    TRY(comm_agree(prep->comm, status));
    int64_t numbers = (int64_t)prep->file_count * PREP_COUNT_FIELDS;
    return comm_all_reduce(prep->comm, tensor_1d(prep->counts, DTYPE_I64, numbers), COMM_SUM);
}

/* A rank that sees other files (a folder that is not shared) would tokenise other text. */
static enum status check_same_files(struct prep *prep) {
    int64_t seen[2] = {(int64_t)prep->file_count, 0}, most[2], least[2];
    uint64_t hash = 0;
    for (size_t i = 0; i < prep->file_count; i++)
        hash = hash_combine(hash, hash_bytes(prep->paths[i], strlen(prep->paths[i])));
    seen[1] = (int64_t)(hash >> 1);
    memcpy(most, seen, sizeof most);
    memcpy(least, seen, sizeof least);
    TRY(comm_all_reduce(prep->comm, tensor_1d(most, DTYPE_I64, 2), COMM_MAX));
    TRY(comm_all_reduce(prep->comm, tensor_1d(least, DTYPE_I64, 2), COMM_MIN));
    if (memcmp(most, least, sizeof most) == 0) return STATUS_OK;
    return error_set(STATUS_FAILED,
                     "the ranks see different input files (this one %lld); the inputs must be on a shared disk",
                     (long long)seen[0]);
}

/* How the text was read (format, field, separator) needs no place here: the files' hashes are of documents. */
static void set_key(struct prep *prep) {
    const struct prep_options *options = prep->options;
    uint64_t share;
    memcpy(&share, &options->valid, sizeof share);
    const uint64_t numbers[] = {format_version,
                                tokenizer_hash(prep->tokenizer),
                                share,
                                options->seed,
                                options->pack,
                                (uint64_t)options->shard_tokens,
                                (uint64_t)prep->begin_of_text,
                                (uint64_t)prep->end_of_text,
                                prep->reader.piece_bytes,
                                (uint64_t)prep->unit_bytes};
    prep->key = hash_bytes(numbers, sizeof numbers);
    const char *name = tokenizer_name(prep->tokenizer);
    prep->key = hash_combine(prep->key, hash_bytes(name, strlen(name)));
    for (size_t i = 0; i < prep->file_count; i++) {
        prep->key = hash_combine(prep->key, hash_bytes(&prep->counts[i], sizeof prep->counts[i]));
    }
}

static void set_units(struct prep *prep) {
    int64_t wanted = prep->bytes / UNITS_WANTED;
    prep->unit_bytes = wanted < smallest_unit ? smallest_unit : wanted > largest_unit ? largest_unit : wanted;
    prep->unit_count = (prep->bytes + prep->unit_bytes - 1) / prep->unit_bytes;
    double share = prep->options->valid;
    prep->valid_documents = (int64_t)llround(share * (double)prep->documents);
    if (share > 0 && share < 1 && prep->valid_documents == 0 && prep->documents > 1) prep->valid_documents = 1;
    if (share < 1 && prep->valid_documents == prep->documents) prep->valid_documents--;
}

static enum status add_up(struct prep *prep) {
    for (size_t i = 0; i < prep->file_count; i++) {
        const struct prep_count *count = &prep->counts[i];
        prep->documents += count->documents;
        prep->bytes += count->bytes;
        prep->summary->empty_documents += count->empty;
        prep->summary->invalid_utf8 += count->invalid;
        prep->summary->invalid_files += count->invalid > 0;
        if (count->invalid == 0) continue;
        log_line("warning: %s: %lld byte sequences are not UTF-8, the first at byte %lld of its text; kept as bytes",
                 prep->paths[i], (long long)count->invalid, (long long)count->invalid_at);
    }
    prep->summary->files = (int64_t)prep->file_count;
    prep->summary->text_bytes = prep->bytes;
    if (prep->documents > 0) return STATUS_OK;
    return error_set(STATUS_DAMAGED, "%s: no document has any text", prep->paths[0]);
}

enum status prep_plan(struct prep *prep) {
    enum status status = open_tokenizer(prep);
    if (status == STATUS_OK) {
        status = reader_list(prep->options->inputs, prep->options->input_count, &prep->paths, &prep->file_count);
    }
    TRY(comm_agree(prep->comm, status));
    TRY(check_same_files(prep));
    TRY(replace_standard_input(prep));
    TRY(memory_new(prep->file_count, sizeof *prep->counts, "the counts of the files", &prep->counts));
    TRY(scan(prep));
    TRY(add_up(prep));
    set_units(prep);
    set_key(prep);
    return STATUS_OK;
}
