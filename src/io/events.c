/* See events.h. Record: u64 length, masked CRC of it, payload, masked CRC of the payload, all little-endian.
 * Payload: Event {1: double wall_time, 2: int64 step, 3: string file_version, 5: Summary, 7: SessionLog}; Summary {1:
 * Value*}; Value {1: string tag, 2: float simple_value}; SessionLog {1: enum status}. (TensorBoard's event.proto,
 * summary.proto.) */
#include "io/events.h"

#include "base/file.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum wire { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { SESSION_START = 1, NAME_TRIES = 1000 };

struct buffer {
    unsigned char *data;
    size_t used, capacity;
};

struct events {
    char *path;
    int file;
    struct buffer record, event, summary; /* kept between steps: no allocation once they have grown */
};

uint32_t events_crc32c(const void *data, size_t length) {
    static uint32_t table[256];
    const unsigned char *bytes = data;
    uint32_t crc = 0xffffffff;
    for (uint32_t i = 0; table[255] == 0 && i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0x82f63b78 : value >> 1;
        table[i] = value;
    }
    for (size_t i = 0; i < length; i++) crc = table[(crc ^ bytes[i]) & 255] ^ crc >> 8;
    return ~crc;
}

static uint32_t masked_crc(const void *data, size_t length) {
    uint32_t crc = events_crc32c(data, length);
    return (crc >> 15 | crc << 17) + 0xa282ead8;
}

/* ---- protobuf --------------------------------------------------------------------------------------------------- */
static enum status put_bytes(struct buffer *buffer, const void *data, size_t length) {
    if (buffer->used + length > buffer->capacity) {
        size_t capacity = 2 * (buffer->used + length) + 256;
        TRY(memory_grow(&buffer->data, capacity, 1, "an event"));
        buffer->capacity = capacity;
    }
    memcpy(buffer->data + buffer->used, data, length);
    buffer->used += length;
    return STATUS_OK;
}

static enum status put_little(struct buffer *buffer, uint64_t value, int bytes) {
    unsigned char data[8];
    for (int i = 0; i < bytes; i++) data[i] = (unsigned char)(value >> (8 * i));
    return put_bytes(buffer, data, (size_t)bytes);
}

static enum status put_varint(struct buffer *buffer, uint64_t value) {
    unsigned char data[10];
    size_t used = 0;
    for (; value >= 128; value >>= 7) data[used++] = (unsigned char)(value | 128);
    data[used++] = (unsigned char)value;
    return put_bytes(buffer, data, used);
}

static enum status put_tag(struct buffer *buffer, int field, enum wire wire) {
    return put_varint(buffer, (uint64_t)(field << 3 | (int)wire));
}

static enum status put_block(struct buffer *buffer, int field, const void *data, size_t length) {
    TRY(put_tag(buffer, field, WIRE_BYTES));
    TRY(put_varint(buffer, length));
    return put_bytes(buffer, data, length);
}

static enum status start_event(struct buffer *event, double wall_s, int64_t step) {
    uint64_t bits;
    memcpy(&bits, &wall_s, sizeof bits);
    event->used = 0;
    TRY(put_tag(event, 1, WIRE_64));
    TRY(put_little(event, bits, 8));
    if (step == 0) return STATUS_OK; /* a field's default is not written */
    TRY(put_tag(event, 2, WIRE_VARINT));
    return put_varint(event, (uint64_t)step);
}

static enum status put_scalar(struct buffer *summary, struct buffer *value, const struct events_scalar *scalar) {
    float single = (float)scalar->value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    value->used = 0;
    TRY(put_block(value, 1, scalar->tag, strlen(scalar->tag)));
    TRY(put_tag(value, 2, WIRE_32));
    TRY(put_little(value, bits, 4));
    return put_block(summary, 1, value->data, value->used);
}

/* ---- the file --------------------------------------------------------------------------------------------------- */
static double wall_now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Frames the event in one write, so that a kill tears at most the last record. */
static enum status append_event(struct events *events) {
    struct buffer *record = &events->record;
    record->used = 0;
    TRY(put_little(record, events->event.used, 8));
    TRY(put_little(record, masked_crc(record->data, 8), 4));
    TRY(put_bytes(record, events->event.data, events->event.used));
    TRY(put_little(record, masked_crc(events->event.data, events->event.used), 4));
    for (size_t done = 0; done < record->used;) {
        ssize_t wrote = write(events->file, record->data + done, record->used - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) return error_set(STATUS_IO, "%s: cannot write it: %s", events->path, strerror(errno));
        done += (size_t)wrote;
    }
    return STATUS_OK;
}

static enum status create_file(const char *directory, struct events *events) {
    char host[64] = "host";
    (void)gethostname(host, sizeof host - 1);
    for (int number = 0; number < NAME_TRIES; number++) {
        free(events->path);
        TRY(memory_format(&events->path, "%s/events.out.tfevents.%010lld.%s.%ld.%d", directory, (long long)time(NULL),
                          host, (long)getpid(), number));
        events->file = open(events->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (events->file >= 0) return STATUS_OK;
        if (errno != EEXIST) break;
    }
    return error_set(STATUS_IO, "%s: cannot create it: %s", events->path, strerror(errno));
}

enum status events_open(const char *directory, int64_t first_step, struct events **events) {
    static const char version[] = "brain.Event:2";
    const unsigned char start[] = {1 << 3 | WIRE_VARINT, SESSION_START};
    enum status status = STATUS_OK;
    TRY(memory_new(1, sizeof **events, "an event file", events));
    (*events)->file = -1;
    TRY_GOTO(done, file_make_directory(directory));
    TRY_GOTO(done, create_file(directory, *events));
    struct buffer *event = &(*events)->event;
    TRY_GOTO(done, start_event(event, wall_now_s(), 0));
    TRY_GOTO(done, put_block(event, 3, version, sizeof version - 1));
    TRY_GOTO(done, append_event(*events));
    if (first_step < 0) goto done;
    TRY_GOTO(done, start_event(event, wall_now_s(), first_step));
    TRY_GOTO(done, put_block(event, 7, start, sizeof start));
    status = append_event(*events);
done:
    if (status != STATUS_OK) (void)events_close(events);
    return status;
}

enum status events_write(struct events *events, int64_t step, double wall_s, const struct events_scalar *scalars,
                         size_t count) {
    events->summary.used = 0;
    for (size_t i = 0; i < count; i++) TRY(put_scalar(&events->summary, &events->record, &scalars[i]));
    TRY(start_event(&events->event, wall_s > 0 ? wall_s : wall_now_s(), step));
    TRY(put_block(&events->event, 5, events->summary.data, events->summary.used));
    return append_event(events);
}

enum status events_close(struct events **events) {
    enum status status = STATUS_OK;
    struct events *e = events ? *events : NULL;
    if (!e) return status;
    if (e->file >= 0 && close(e->file) != 0)
        status = error_set(STATUS_IO, "%s: cannot write it: %s", e->path, strerror(errno));
    free(e->record.data);
    free(e->event.data);
    free(e->summary.data);
    free(e->path);
    free(e);
    *events = NULL;
    return status;
}
