/* See reader_source.h. Concatenated gzip members and several zstd frames are one text, as gzip and zstd themselves do.
 */
#include "data-prep/reader_source.h"

#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

enum { SOURCE_BUFFER = 1 << 17 };
enum packing { PACKING_NONE, PACKING_GZIP, PACKING_ZSTD };

struct source {
    char *path; /* for messages */
    int fd;
    enum packing packing;
    unsigned char *buffer; /* packed bytes not yet used: buffer[used .. filled-1] */
    size_t used, filled;
    int64_t read_bytes; /* from the file so far */
    bool ended;         /* the file has no more bytes */
    bool inside;        /* a gzip member or a zstd frame has begun and not ended */
    bool padding;       /* only zero bytes may follow (gzip on tapes and block devices) */
    z_stream gzip;
    bool gzip_ready;
    ZSTD_DStream *zstd;
};

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static enum status fill(struct source *source) {
    if (source->used < source->filled || source->ended) return STATUS_OK;
    source->used = source->filled = 0;
    while (source->filled < SOURCE_BUFFER && !source->ended) { /* pipes give little at a time */
        ssize_t got = read(source->fd, source->buffer + source->filled, SOURCE_BUFFER - source->filled);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return error_set(STATUS_IO, "%s: cannot read it: %s", source->path, strerror(errno));
        if (got == 0) source->ended = true;
        source->filled += (size_t)got;
        source->read_bytes += got;
    }
    return STATUS_OK;
}

static enum packing packing_of(const unsigned char *bytes, size_t length) {
    if (length >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b) return PACKING_GZIP;
    if (length < 4) return PACKING_NONE;
    uint32_t magic = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    return magic == ZSTD_MAGICNUMBER || (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START
               ? PACKING_ZSTD
               : PACKING_NONE;
}

static enum status start_unpacking(struct source *source) {
    TRY(fill(source));
    source->packing = packing_of(source->buffer, source->filled);
    bool named_gzip = ends_with(source->path, ".gz"), named_zstd = ends_with(source->path, ".zst");
    if (source->filled == 0) return STATUS_OK;
    if (named_gzip && source->packing != PACKING_GZIP) {
        return error_set(STATUS_DAMAGED, "%s: expected gzip because of its name, found other bytes at its start",
                         source->path);
    }
    if (named_zstd && source->packing != PACKING_ZSTD) {
        return error_set(STATUS_DAMAGED, "%s: expected zstd because of its name, found other bytes at its start",
                         source->path);
    }
    if (source->packing == PACKING_GZIP) {
        if (inflateInit2(&source->gzip, 15 + 16) != Z_OK)
            return error_set(STATUS_MEMORY, "no memory to unpack %s", source->path);
        source->gzip_ready = true;
    }
    if (source->packing == PACKING_ZSTD) {
        source->zstd = ZSTD_createDStream();
        if (!source->zstd || ZSTD_isError(ZSTD_initDStream(source->zstd))) {
            return error_set(STATUS_MEMORY, "no memory to unpack %s", source->path);
        }
    }
    return STATUS_OK;
}

enum status source_open(const char *path, struct source **out) {
    enum status status = STATUS_OK;
    struct stat info;
    struct source *source = NULL;
    *out = NULL;
    TRY(memory_new(1, sizeof *source, path, &source));
    source->fd = -1;
    TRY_GOTO(done, memory_copy_text(strcmp(path, "-") == 0 ? "standard input" : path, &source->path));
    TRY_GOTO(done, memory_new(SOURCE_BUFFER, 1, path, &source->buffer));
    source->fd = strcmp(path, "-") == 0 ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    if (source->fd < 0) {
        status = error_set(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot open it: %s", source->path,
                           strerror(errno));
        goto done;
    }
    if (fstat(source->fd, &info) == 0 && S_ISDIR(info.st_mode)) {
        status = error_set(STATUS_IO, "%s: is a directory, expected a file", source->path);
        goto done;
    }
    status = start_unpacking(source);
done:
    if (status != STATUS_OK) source_close(&source);
    *out = source;
    return status;
}

void source_close(struct source **source) {
    if (!*source) return;
    if ((*source)->fd >= 0) close((*source)->fd);
    if ((*source)->gzip_ready) inflateEnd(&(*source)->gzip);
    ZSTD_freeDStream((*source)->zstd);
    free((*source)->buffer);
    free((*source)->path);
    free(*source);
    *source = NULL;
}

static enum status truncated(const struct source *source, const char *packing) {
    return error_set(STATUS_DAMAGED, "%s: truncated %s: it ends inside compressed data, after %lld bytes", source->path,
                     packing, (long long)source->read_bytes);
}

/* After a member: another one, zero padding, or nothing may follow. */
static enum status begin_gzip_member(struct source *source) {
    const unsigned char *next = source->buffer + source->used;
    if (source->padding || *next == 0) {
        while (source->used < source->filled && source->buffer[source->used] == 0) source->used++;
        source->padding = true;
        if (source->used == source->filled) return STATUS_OK;
        next = source->buffer + source->used;
    }
    if (source->padding || *next != 0x1f) {
        return error_set(STATUS_DAMAGED, "%s: gzip data is followed by something else at byte %lld", source->path,
                         (long long)(source->read_bytes - (int64_t)(source->filled - source->used)));
    }
    source->inside = true;
    return inflateReset(&source->gzip) == Z_OK
               ? STATUS_OK
               : error_set(STATUS_FAILED, "%s: cannot unpack a second part", source->path);
}

static enum status read_gzip(struct source *source, char *data, size_t capacity, size_t *got) {
    while (*got == 0) {
        TRY(fill(source));
        if (source->used == source->filled) return source->inside ? truncated(source, "gzip") : STATUS_OK;
        if (!source->inside) {
            TRY(begin_gzip_member(source));
            if (!source->inside) continue;
        }
        source->gzip.next_in = source->buffer + source->used;
        source->gzip.avail_in = (uInt)(source->filled - source->used);
        source->gzip.next_out = (unsigned char *)data;
        source->gzip.avail_out = (uInt)(capacity < (1u << 30) ? capacity : 1u << 30);
        uInt room = source->gzip.avail_out;
        int result = inflate(&source->gzip, Z_NO_FLUSH);
        if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
            return error_set(result == Z_MEM_ERROR ? STATUS_MEMORY : STATUS_DAMAGED,
                             "%s: damaged gzip near byte %lld: %s", source->path,
                             (long long)(source->read_bytes - source->gzip.avail_in),
                             source->gzip.msg ? source->gzip.msg : zError(result));
        }
        source->used = source->filled - source->gzip.avail_in;
        *got = room - source->gzip.avail_out;
        if (result == Z_STREAM_END) source->inside = false;
    }
    return STATUS_OK;
}

static enum status read_zstd(struct source *source, char *data, size_t capacity, size_t *got) {
    while (*got == 0) {
        TRY(fill(source));
        /* A frame may still hold unpacked bytes back when its last packed byte is used; only then is empty input asked.
         */
        bool drained = source->used == source->filled;
        ZSTD_inBuffer in = {source->buffer, source->filled, source->used};
        ZSTD_outBuffer out = {data, capacity, 0};
        if (drained && !source->inside) return STATUS_OK;
        size_t left = ZSTD_decompressStream(source->zstd, &out, &in);
        if (ZSTD_isError(left)) {
            return error_set(STATUS_DAMAGED, "%s: damaged zstd near byte %lld: %s", source->path,
                             (long long)(source->read_bytes - (int64_t)(in.size - in.pos)), ZSTD_getErrorName(left));
        }
        source->used = in.pos;
        source->inside = left != 0;
        *got = out.pos;
        if (drained && *got == 0 && source->inside) return truncated(source, "zstd");
    }
    return STATUS_OK;
}

enum status source_read(struct source *source, char *data, size_t capacity, size_t *got) {
    *got = 0;
    if (capacity == 0) return STATUS_OK;
    if (source->packing == PACKING_GZIP) return read_gzip(source, data, capacity, got);
    if (source->packing == PACKING_ZSTD) return read_zstd(source, data, capacity, got);
    TRY(fill(source));
    size_t ready = source->filled - source->used;
    *got = ready < capacity ? ready : capacity;
    memcpy(data, source->buffer + source->used, *got);
    source->used += *got;
    return STATUS_OK;
}
