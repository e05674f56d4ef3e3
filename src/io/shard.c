/* Token shards: see shard.h and docs/formats.md. */
#include "io/shard.h"

#include "base/hash.h"
#include "base/memory.h"
#include "io/h5.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FORMAT_VERSION = 1, ALIGN_FROM = 4096, SPOOL_IDS = 1 << 16 };

/* --- writing ---------------------------------------------------------------------------------------------------- */

struct shard_writer {
    char *path, *spool_path;
    struct shard_info info;
    FILE *spool;
    void *buffer; /* SPOOL_IDS ids as stored */
    uint64_t *documents;
    size_t document_capacity;
};

static int bytes_per_token(int64_t vocabulary) {
    return vocabulary <= 65536 ? 2 : 4;
}

enum status shard_writer_open(const char *path, const struct shard_info *info, struct shard_writer **handle) {
    enum status status = STATUS_OK;
    struct shard_writer *writer = NULL;
    *handle = NULL;
    if (info->vocabulary < 1 || info->vocabulary > INT32_MAX) {
        return error_set(STATUS_FAILED, "%s: vocabulary: expected 1 to 2147483647, found %" PRId64, path,
                         info->vocabulary);
    }
    TRY(memory_new(1, sizeof *writer, path, &writer));
    writer->info = *info;
    writer->info.tokens = writer->info.documents = 0;
    writer->info.tokens_hash = 0;
    writer->info.bytes_per_token = bytes_per_token(info->vocabulary);
    TRY_GOTO(done, memory_copy_text(path, &writer->path));
    TRY_GOTO(done, memory_format(&writer->spool_path, "%s.ids.tmp-%ld", path, (long)getpid()));
    TRY_GOTO(done, memory_new(SPOOL_IDS, (size_t)writer->info.bytes_per_token, path, &writer->buffer));
    writer->spool = fopen(writer->spool_path, "wbe");
    if (!writer->spool) {
        status = error_set(STATUS_IO, "%s: cannot create it: %s", writer->spool_path, strerror(errno));
    }
done:
    if (status != STATUS_OK) shard_writer_abort(&writer);
    *handle = writer;
    return status;
}

static enum status note_document(struct shard_writer *writer) {
    size_t count = (size_t)writer->info.documents;
    /* Two beginnings at one place would be an empty document: the later one counts. */
    if (count > 0 && writer->documents[count - 1] == (uint64_t)writer->info.tokens) return STATUS_OK;
    if (count == writer->document_capacity) {
        size_t capacity = count * 2 + 64;
        TRY(memory_grow(&writer->documents, capacity, sizeof *writer->documents, writer->path));
        writer->document_capacity = capacity;
    }
    writer->documents[count] = (uint64_t)writer->info.tokens;
    writer->info.documents++;
    return STATUS_OK;
}

enum status shard_writer_append(struct shard_writer *writer, const uint32_t *ids, int64_t count, bool begins_document) {
    size_t width = (size_t)writer->info.bytes_per_token;
    if (count == 0) return STATUS_OK;
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < (uint64_t)writer->info.vocabulary) continue;
        return error_set(STATUS_FAILED, "%s: token %" PRId64 ": expected an id below %" PRId64 ", found %" PRIu32,
                         writer->path, writer->info.tokens + i, writer->info.vocabulary, ids[i]);
    }
    /* The first token of a shard always begins a document, or the rest of one. */
    if (begins_document || writer->info.tokens == 0) TRY(note_document(writer));
    for (int64_t done = 0; done < count;) {
        int64_t part = count - done < SPOOL_IDS ? count - done : SPOOL_IDS;
        const void *from = ids + done;
        if (width == 2) {
            uint16_t *narrow = writer->buffer;
            for (int64_t i = 0; i < part; i++) narrow[i] = (uint16_t)ids[done + i];
            from = narrow;
        }
        if (fwrite(from, width, (size_t)part, writer->spool) != (size_t)part) {
            return error_set(STATUS_IO, "%s: cannot write it: %s", writer->spool_path, strerror(errno));
        }
        done += part;
    }
    writer->info.tokens += count;
    return STATUS_OK;
}

static uint64_t hash_documents(const uint64_t *documents, int64_t count) {
    return hash_bytes(count > 0 ? (const void *)documents : "", (size_t)count * sizeof *documents);
}

int64_t shard_writer_tokens(const struct shard_writer *writer) {
    return writer->info.tokens;
}

static enum status write_attributes(struct h5 *file, const struct shard_info *info, uint64_t documents_hash) {
    TRY(h5_attribute_set_text(file, "/", "format", "squint tokens"));
    TRY(h5_attribute_set_i64(file, "/", "version", FORMAT_VERSION));
    TRY(h5_attribute_set_text(file, "/", "tokenizer", info->tokenizer_name));
    TRY(h5_attribute_set_u64(file, "/", "tokenizer_hash", info->tokenizer_hash));
    TRY(h5_attribute_set_i64(file, "/", "vocabulary", info->vocabulary));
    TRY(h5_attribute_set_i64(file, "/", "end_of_text", info->end_of_text));
    TRY(h5_attribute_set_text(file, "/", "source", info->source));
    TRY(h5_attribute_set_u64(file, "/", "source_hash", info->source_hash));
    TRY(h5_attribute_set_i64(file, "/", "tokens_count", info->tokens));
    TRY(h5_attribute_set_i64(file, "/", "documents_count", info->documents));
    TRY(h5_attribute_set_u64(file, "/", "tokens_hash", info->tokens_hash));
    return h5_attribute_set_u64(file, "/", "documents_hash", documents_hash);
}

static enum status write_shard(struct shard_writer *writer) {
    enum status status = STATUS_OK;
    struct shard_info *info = &writer->info;
    struct file_map spool = {0};
    struct h5 *file = NULL;
    enum dtype dtype = info->bytes_per_token == 2 ? DTYPE_U16 : DTYPE_U32;
    int closed = fclose(writer->spool);
    writer->spool = NULL;
    if (closed != 0) return error_set(STATUS_IO, "%s: cannot write it: %s", writer->spool_path, strerror(errno));
    TRY(file_map_open(writer->spool_path, &spool));
    info->tokens_hash = hash_bytes(spool.data, spool.bytes);
    TRY_GOTO(done, h5_create(writer->path, ALIGN_FROM, &file));
    TRY_GOTO(done, h5_write(file, "/tokens", dtype, 1, &info->tokens, spool.data));
    TRY_GOTO(done, h5_write(file, "/documents", DTYPE_U64, 1, &info->documents, writer->documents));
    uint64_t documents_hash = hash_documents(writer->documents, info->documents);
    TRY_GOTO(done, write_attributes(file, info, documents_hash));
    status = h5_publish(&file);
done:
    h5_close(&file);
    file_map_close(&spool);
    return status;
}

enum status shard_writer_close(struct shard_writer **handle) {
    enum status status = write_shard(*handle);
    shard_writer_abort(handle);
    return status;
}

void shard_writer_abort(struct shard_writer **handle) {
    if (!handle || !*handle) return;
    struct shard_writer *writer = *handle;
    if (writer->spool) fclose(writer->spool);
    if (writer->spool_path) (void)unlink(writer->spool_path);
    free(writer->spool_path);
    free(writer->path);
    free(writer->buffer);
    free(writer->documents);
    free(writer);
    *handle = NULL;
}

/* --- reading ---------------------------------------------------------------------------------------------------- */

static enum status read_text(struct h5 *file, const char *name, char *out, size_t capacity) {
    char *text = NULL;
    TRY(h5_attribute_get_text(file, "/", name, &text));
    snprintf(out, capacity, "%s", text);
    free(text);
    return STATUS_OK;
}

static enum status read_attributes(struct h5 *file, struct shard_info *info) {
    char format[32];
    int64_t version = 0;
    if (!h5_attribute_exists(file, "/", "format")) {
        return error_set(STATUS_DAMAGED,
                         "%s: expected a token shard (attribute format \"squint tokens\"), found another "
                         "HDF5 file",
                         h5_path(file));
    }
    TRY(read_text(file, "format", format, sizeof format));
    if (strcmp(format, "squint tokens") != 0) {
        return error_set(STATUS_DAMAGED, "%s: attribute format: expected \"squint tokens\", found \"%s\"",
                         h5_path(file), format);
    }
    TRY(h5_attribute_get_i64(file, "/", "version", &version));
    if (version != FORMAT_VERSION) {
        return error_set(STATUS_DAMAGED, "%s: attribute version: expected %d, found %" PRId64, h5_path(file),
                         FORMAT_VERSION, version);
    }
    TRY(read_text(file, "tokenizer", info->tokenizer_name, sizeof info->tokenizer_name));
    TRY(h5_attribute_get_u64(file, "/", "tokenizer_hash", &info->tokenizer_hash));
    TRY(h5_attribute_get_i64(file, "/", "vocabulary", &info->vocabulary));
    TRY(h5_attribute_get_i64(file, "/", "end_of_text", &info->end_of_text));
    TRY(read_text(file, "source", info->source, sizeof info->source));
    TRY(h5_attribute_get_u64(file, "/", "source_hash", &info->source_hash));
    TRY(h5_attribute_get_i64(file, "/", "tokens_count", &info->tokens));
    TRY(h5_attribute_get_i64(file, "/", "documents_count", &info->documents));
    TRY(h5_attribute_get_u64(file, "/", "tokens_hash", &info->tokens_hash));
    if (info->vocabulary < 1 || info->vocabulary > INT32_MAX) {
        return error_set(STATUS_DAMAGED, "%s: attribute vocabulary: expected 1 to 2147483647, found %" PRId64,
                         h5_path(file), info->vocabulary);
    }
    if (info->end_of_text < -1 || info->end_of_text >= info->vocabulary) {
        return error_set(STATUS_DAMAGED, "%s: attribute end_of_text: expected -1 to %" PRId64 ", found %" PRId64,
                         h5_path(file), info->vocabulary - 1, info->end_of_text);
    }
    if (info->tokens < 0 || info->tokens > INT64_MAX / 8) {
        return error_set(STATUS_DAMAGED, "%s: attribute tokens_count: expected 0 or more, found %" PRId64,
                         h5_path(file), info->tokens);
    }
    info->bytes_per_token = bytes_per_token(info->vocabulary);
    return STATUS_OK;
}

/* Whether dataset `name` is one-dimensional, of `dtype`, with `count` elements. */
static enum status check_dataset(struct h5 *file, const char *name, enum dtype dtype, int64_t count,
                                 struct h5_dataset *found) {
    enum status status = h5_dataset_find(file, name, found);
    if (status == STATUS_NOT_FOUND) return STATUS_DAMAGED;
    if (status != STATUS_OK) return status;
    if (found->rank == 1 && found->dtype == dtype && found->count == count) return STATUS_OK;
    return error_set(
        STATUS_DAMAGED,
        "%s: %s: expected %" PRId64 " numbers of type %s in one dimension, found %" PRId64 " of type %s in %d",
        h5_path(file), name, count, dtype_name(dtype), found->count, dtype_name(found->dtype), found->rank);
}

static enum status check_documents(struct h5 *file, const struct shard *shard) {
    const struct shard_info *info = &shard->info;
    uint64_t expected, found = hash_documents(shard->documents, info->documents);
    TRY(h5_attribute_get_u64(file, "/", "documents_hash", &expected));
    if ((info->tokens == 0) != (info->documents == 0) || info->documents > info->tokens) {
        return error_set(STATUS_DAMAGED, "%s: /documents: expected 1 to %" PRId64 " documents, found %" PRId64,
                         shard->path, info->tokens, info->documents);
    }
    for (int64_t i = 0; i < info->documents; i++) {
        uint64_t least = i == 0 ? 0 : shard->documents[i - 1] + 1, most = i == 0 ? 0 : (uint64_t)info->tokens - 1;
        if (shard->documents[i] >= least && shard->documents[i] <= most) continue;
        return error_set(STATUS_DAMAGED,
                         "%s: /documents: entry %" PRId64 ": expected a start from %" PRIu64 " to %" PRIu64
                         ", found %" PRIu64,
                         shard->path, i, least, most, shard->documents[i]);
    }
    if (found == expected) return STATUS_OK;
    return error_set(STATUS_DAMAGED, "%s: /documents: expected hash %016" PRIx64 ", found %016" PRIx64, shard->path,
                     expected, found);
}

static enum status open_tokens(struct shard *shard, const struct h5_dataset *tokens) {
    int64_t bytes = shard->info.tokens * shard->info.bytes_per_token;
    TRY(file_map_open(shard->path, &shard->map));
    if (bytes == 0) return STATUS_OK;
    if (tokens->offset < 0) {
        return error_set(STATUS_DAMAGED, "%s: /tokens: expected one piece without compression, found another layout",
                         shard->path);
    }
    if ((uint64_t)tokens->offset + (uint64_t)bytes > shard->map.bytes) {
        return error_set(STATUS_DAMAGED,
                         "%s: /tokens: expected %" PRId64 " bytes at %" PRId64
                         ", found a file of %zu bytes: it was cut "
                         "short",
                         shard->path, bytes, tokens->offset, shard->map.bytes);
    }
    if (tokens->offset % shard->info.bytes_per_token != 0) {
        return error_set(STATUS_DAMAGED, "%s: /tokens: expected an offset divisible by %d, found %" PRId64, shard->path,
                         shard->info.bytes_per_token, tokens->offset);
    }
    shard->ids = (const char *)shard->map.data + tokens->offset;
    return STATUS_OK;
}

enum status shard_open(const char *path, struct shard *shard) {
    enum status status = STATUS_OK;
    struct h5 *file = NULL;
    struct h5_dataset tokens, documents;
    *shard = (struct shard){0};
    TRY_GOTO(done, memory_copy_text(path, &shard->path));
    TRY_GOTO(done, h5_open(path, &file));
    TRY_GOTO(done, read_attributes(file, &shard->info));
    struct shard_info *info = &shard->info;
    enum dtype dtype = info->bytes_per_token == 2 ? DTYPE_U16 : DTYPE_U32;
    TRY_GOTO(done, check_dataset(file, "/tokens", dtype, info->tokens, &tokens));
    TRY_GOTO(done, check_dataset(file, "/documents", DTYPE_U64, info->documents, &documents));
    TRY_GOTO(done, memory_new((size_t)info->documents, sizeof *shard->owned_documents, path, &shard->owned_documents));
    TRY_GOTO(done, h5_read(file, "/documents", DTYPE_U64, 0, info->documents, shard->owned_documents));
    shard->documents = shard->owned_documents;
    TRY_GOTO(done, check_documents(file, shard));
    TRY_GOTO(done, open_tokens(shard, &tokens));
done:
    h5_close(&file);
    if (status != STATUS_OK) shard_close(shard);
    return status;
}

void shard_close(struct shard *shard) {
    if (!shard) return;
    file_map_close(&shard->map);
    free(shard->owned_documents);
    free(shard->path);
    *shard = (struct shard){0};
}

static uint32_t id_at(const struct shard *shard, int64_t token) {
    return shard->info.bytes_per_token == 2 ? ((const uint16_t *)shard->ids)[token]
                                            : ((const uint32_t *)shard->ids)[token];
}

enum status shard_verify(const struct shard *shard) {
    const struct shard_info *info = &shard->info;
    for (int64_t i = 0; i < info->tokens; i++) {
        if (id_at(shard, i) < (uint64_t)info->vocabulary) continue;
        return error_set(STATUS_DAMAGED,
                         "%s: /tokens: token %" PRId64 ": expected an id below %" PRId64 ", found %" PRIu32,
                         shard->path, i, info->vocabulary, id_at(shard, i));
    }
    size_t bytes = (size_t)info->tokens * (size_t)info->bytes_per_token;
    uint64_t found = hash_bytes(bytes ? shard->ids : "", bytes);
    if (found == info->tokens_hash) return STATUS_OK;
    return error_set(STATUS_DAMAGED, "%s: /tokens: expected hash %016" PRIx64 ", found %016" PRIx64, shard->path,
                     info->tokens_hash, found);
}

void shard_read(const struct shard *shard, int64_t first, int64_t count, int32_t *ids) {
    if (shard->info.bytes_per_token == 2) {
        const uint16_t *from = (const uint16_t *)shard->ids + first;
        for (int64_t i = 0; i < count; i++) ids[i] = from[i];
    } else if (count > 0) {
        memcpy(ids, (const uint32_t *)shard->ids + first, (size_t)count * sizeof *ids);
    }
}

int64_t shard_document_of(const struct shard *shard, int64_t token) {
    int64_t low = 0, high = shard->info.documents;
    /* documents[low] <= token < documents[high] */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (shard->documents[middle] <= (uint64_t)token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}
