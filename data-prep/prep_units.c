/* Text -> ids, unit by unit. A unit is the documents and pieces that begin in one stretch of unit_bytes of all text; a
 * finished one is a file in PREFIX.work/ that carries the key of the work and a checksum. */
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "data-prep/prep_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t unit_magic = 0x3130544e55515331u;

struct unit_header { /* the file's first bytes, in the machine's byte order: nobody else reads it */
    uint64_t magic, key, payload_hash;
    int64_t unit, tokens[PREP_SPLITS], documents[PREP_SPLITS];
};

struct unit_builder {
    int64_t unit; /* -1: none is being built */
    bool wanted;
    struct token_buffer ids[PREP_SPLITS];
    int64_t *starts[PREP_SPLITS];
    size_t start_count[PREP_SPLITS];
};

/* A walk over the text by one rank. */
struct walk {
    struct prep *prep;
    bool *wanted; /* [unit_count]: this rank's, and not there yet */
    struct unit_builder builder;
    int64_t offset, document; /* of the next piece, over all files */
    int64_t fresh_tokens;
    double started_s;
    bool progressing;
    struct log_progress progress;
};

static enum status unit_path(const struct prep *prep, int64_t index, char **path) {
    return memory_format(path, "%s/unit-%06" PRId64, prep->work, index);
}

static size_t unit_payload_bytes(const struct unit_header *header) {
    size_t bytes = 0;
    for (int split = 0; split < PREP_SPLITS; split++) {
        bytes += (size_t)header->documents[split] * sizeof(int64_t) + (size_t)header->tokens[split] * sizeof(uint32_t);
    }
    return bytes;
}

enum status prep_unit_open(const struct prep *prep, int64_t index, struct prep_unit *unit) {
    char *path = NULL;
    *unit = (struct prep_unit){0};
    TRY(unit_path(prep, index, &path));
    enum status status = file_exists(path) ? file_map_open(path, &unit->map) : STATUS_NOT_FOUND;
    if (status != STATUS_OK) goto done;
    struct unit_header header = {0};
    const char *data = unit->map.data;
    if (unit->map.bytes >= sizeof header) memcpy(&header, data, sizeof header);
    if (header.magic != unit_magic || header.key != prep->key || header.unit != index ||
        unit->map.bytes != sizeof header + unit_payload_bytes(&header) ||
        header.payload_hash != hash_bytes(data + sizeof header, unit->map.bytes - sizeof header)) {
        file_map_close(&unit->map);
        status = error_set(STATUS_DAMAGED,
                           "%s: is not whole; it goes back to an interrupted run: remove it and try again", path);
        goto done;
    }
    data += sizeof header;
    for (int split = 0; split < PREP_SPLITS; split++) { /* the 8-byte numbers first: all stay aligned */
        unit->tokens[split] = header.tokens[split];
        unit->documents[split] = header.documents[split];
        unit->starts[split] = (const int64_t *)data;
        data += (size_t)header.documents[split] * sizeof(int64_t);
    }
    for (int split = 0; split < PREP_SPLITS; split++) {
        unit->ids[split] = (const uint32_t *)data;
        data += (size_t)header.tokens[split] * sizeof(uint32_t);
    }
done:
    free(path);
    return status;
}

static enum status append_id(struct token_buffer *ids, int64_t id) {
    if (ids->count == ids->capacity) {
        size_t capacity = 2 * ids->capacity + 64;
        TRY(memory_grow(&ids->ids, capacity, sizeof *ids->ids, "token ids"));
        ids->capacity = capacity;
    }
    ids->ids[ids->count++] = (uint32_t)id;
    return STATUS_OK;
}

static enum status add_piece(struct walk *walk, const struct reader_piece *piece) {
    const struct prep *prep = walk->prep;
    struct unit_builder *builder = &walk->builder;
    enum prep_split split = prep_split_of(prep, walk->document);
    struct token_buffer *ids = &builder->ids[split];
    size_t before = ids->count;
    if (piece->begins) {
        size_t *count = &builder->start_count[split];
        TRY(memory_grow(&builder->starts[split], *count + 1, sizeof *builder->starts[split], "document starts"));
        builder->starts[split][(*count)++] = (int64_t)ids->count;
        if (prep->begin_of_text >= 0) TRY(append_id(ids, prep->begin_of_text));
    }
    TRY(tokenizer_encode(prep->tokenizer, piece->text, piece->length, false, ids));
    if (piece->ends && prep->end_of_text >= 0) TRY(append_id(ids, prep->end_of_text));
    walk->fresh_tokens += (int64_t)(ids->count - before);
    return STATUS_OK;
}

static enum status write_unit(const struct prep *prep, struct unit_builder *builder) {
    enum status status = STATUS_OK;
    struct unit_header header = {.magic = unit_magic, .key = prep->key, .unit = builder->unit};
    char *block = NULL, *path = NULL;
    for (int split = 0; split < PREP_SPLITS; split++) {
        header.tokens[split] = (int64_t)builder->ids[split].count;
        header.documents[split] = (int64_t)builder->start_count[split];
    }
    size_t payload = unit_payload_bytes(&header), used = sizeof header;
    TRY_GOTO(done, memory_new(sizeof header + payload, 1, "a unit of token ids", &block));
    for (int split = 0; split < PREP_SPLITS; split++) {
        size_t bytes = builder->start_count[split] * sizeof(int64_t);
        if (bytes) memcpy(block + used, builder->starts[split], bytes);
        used += bytes;
    }
    for (int split = 0; split < PREP_SPLITS; split++) {
        size_t bytes = builder->ids[split].count * sizeof(uint32_t);
        if (bytes) memcpy(block + used, builder->ids[split].ids, bytes);
        used += bytes;
    }
    header.payload_hash = hash_bytes(block + sizeof header, payload);
    memcpy(block, &header, sizeof header);
    TRY_GOTO(done, unit_path(prep, builder->unit, &path));
    status = file_write(path, block, used);
done:
    free(block);
    free(path);
    return status;
}

static void show_progress(struct walk *walk) {
    char detail[64], rate[32];
    double seconds = time_now_s() - walk->started_s;
    int64_t all = walk->fresh_tokens * comm_size(walk->prep->comm); /* the ranks take turns, so they are equally far */
    count_text(seconds > 0 ? (int64_t)((double)all / seconds) : 0, rate);
    snprintf(detail, sizeof detail, "MiB  %s tok/s", rate);
    log_progress_show(&walk->progress, walk->offset >> 20, detail);
}

/* Ends the unit that is being built, if any, and begins `unit`. */
static enum status turn_to_unit(struct walk *walk, int64_t unit) {
    struct unit_builder *builder = &walk->builder;
    if (builder->unit >= 0 && builder->wanted) {
        TRY(write_unit(walk->prep, builder));
        walk->wanted[builder->unit] = false;
        show_progress(walk);
    }
    TRY(prep_check_stop(walk->prep));
    builder->unit = unit;
    builder->wanted = unit >= 0 && walk->wanted[unit];
    for (int split = 0; split < PREP_SPLITS; split++) builder->ids[split].count = builder->start_count[split] = 0;
    if (builder->wanted && !walk->progressing) {
        log_progress_start(&walk->progress, "tokenise", walk->offset >> 20, (walk->prep->bytes + (1 << 20) - 1) >> 20);
        walk->started_s = time_now_s();
        walk->progressing = true;
    }
    return STATUS_OK;
}

static bool any_wanted(const struct walk *walk, int64_t bytes) {
    int64_t first = walk->offset / walk->prep->unit_bytes, last = (walk->offset + bytes - 1) / walk->prep->unit_bytes;
    for (int64_t unit = first; unit <= last && bytes > 0; unit++) {
        if (walk->wanted[unit]) return true;
    }
    return false;
}

static enum status walk_file(struct walk *walk, size_t index) {
    enum status status = STATUS_OK;
    struct prep *prep = walk->prep;
    const struct prep_count *count = &prep->counts[index];
    const int64_t end = walk->offset + count->bytes, last_document = walk->document + count->documents;
    struct reader *reader = NULL;
    bool more = any_wanted(walk, count->bytes);
    if (!more) goto done;
    TRY_GOTO(done, reader_open(prep->paths[index], &prep->reader, &reader));
    for (;;) {
        struct reader_piece piece;
        TRY_GOTO(done, reader_next(reader, &piece, &more));
        if (!more) break;
        walk->document += piece.begins;
        if (walk->offset + (int64_t)piece.length > end || walk->document > last_document) break;
        int64_t unit = walk->offset / prep->unit_bytes;
        if (unit != walk->builder.unit) TRY_GOTO(done, turn_to_unit(walk, unit));
        if (walk->builder.wanted) TRY_GOTO(done, add_piece(walk, &piece));
        walk->offset += (int64_t)piece.length;
    }
    if (more || walk->offset != end || walk->document != last_document) {
        status = error_set(STATUS_FAILED, "%s: changed while it was being read", prep->paths[index]);
    }
done:
    reader_close(&reader);
    walk->offset = end;
    walk->document = last_document;
    return status;
}

/* Which units this rank has to make. What an earlier run left whole is kept; what is not whole is made again. */
static enum status find_wanted(struct walk *walk, int64_t *kept) {
    const struct prep *prep = walk->prep;
    for (int64_t i = comm_rank(prep->comm); i < prep->unit_count; i += comm_size(prep->comm)) {
        struct prep_unit unit;
        enum status status = prep_unit_open(prep, i, &unit);
        if (status == STATUS_OK) {
            (*kept)++;
        } else if (status == STATUS_NOT_FOUND || status == STATUS_DAMAGED) {
            error_clear();
            walk->wanted[i] = true;
        } else {
            return status;
        }
        file_map_close(&unit.map);
    }
    return STATUS_OK;
}

static enum status walk_all(struct walk *walk) {
    struct prep *prep = walk->prep;
    for (size_t i = 0; i < prep->file_count; i++) TRY(walk_file(walk, i));
    TRY(turn_to_unit(walk, -1));
    for (int64_t i = 0; i < prep->unit_count; i++) { /* stretches in which nothing begins */
        if (!walk->wanted[i]) continue;
        TRY(turn_to_unit(walk, i));
        TRY(turn_to_unit(walk, -1));
    }
    if (walk->progressing) {
        char detail[64], tokens[32];
        count_text(walk->fresh_tokens, tokens);
        snprintf(detail, sizeof detail, "MiB  %s tokens on this rank", tokens);
        log_progress_end(&walk->progress, walk->progress.total, detail);
    }
    return STATUS_OK;
}

enum status prep_tokenise(struct prep *prep) {
    struct walk walk = {.prep = prep, .builder = {.unit = -1}, .document = -1};
    int64_t kept = 0;
    enum status status = memory_new((size_t)prep->unit_count, sizeof *walk.wanted, "the list of units", &walk.wanted);
    if (status == STATUS_OK) status = find_wanted(&walk, &kept);
    if (status == STATUS_OK) status = walk_all(&walk);
    free(walk.wanted);
    for (int split = 0; split < PREP_SPLITS; split++) {
        token_buffer_free(&walk.builder.ids[split]);
        free(walk.builder.starts[split]);
    }
    TRY(comm_agree(prep->comm, status));
    TRY(comm_all_reduce(prep->comm, tensor_1d(&kept, DTYPE_I64, 1), COMM_SUM));
    prep->summary->kept_units = kept;
    prep->summary->units = prep->unit_count;
    return STATUS_OK;
}
