/* See reader.h. A window of the file's text slides over it: data[start .. end-1] is read and not yet given out. */
#include "data-prep/reader.h"

#include "base/file.h"
#include "base/memory.h"
#include "data-prep/reader_source.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { READER_WINDOW = 1 << 18 };

struct reader {
    char *path; /* for messages */
    struct reader_options options;
    char *text_field, *separator; /* owned copies that `options` points to */
    struct source *source;
    char *data;
    size_t start, end, capacity;
    size_t searched;     /* no document boundary begins before start + searched */
    size_t cut_searched; /* no cut lies before start + cut_searched */
    bool ended;          /* the source has no more bytes */
    bool any;            /* it had some */
    bool inside;         /* a document's earlier piece has been given out */
    bool content;        /* WikiText: the document has more than white space before `searched` */
    int64_t line, empty;
    json_t *object; /* holds the text of the piece given out */
};

static bool ends_with(const char *text, size_t length, const char *end) {
    size_t tail = strlen(end);
    return length >= tail && memcmp(text + length - tail, end, tail) == 0;
}

static enum reader_format format_of(const char *path) {
    size_t length = strlen(path);
    if (ends_with(path, length, ".gz"))
        length -= 3;
    else if (ends_with(path, length, ".zst"))
        length -= 4;
    return ends_with(path, length, ".jsonl") || ends_with(path, length, ".ndjson") ? READER_JSONL : READER_TEXT;
}

static enum status check_options(const struct reader_options *options) {
    if (options->separator && options->separator[0] == '\0') {
        return error_set(STATUS_USAGE, "the document separator is empty; expected at least one byte");
    }
    if (options->separator && options->wikitext) {
        return error_set(STATUS_USAGE, "documents begin either at WikiText headings or after a separator, not both");
    }
    return STATUS_OK;
}

enum status reader_open(const char *path, const struct reader_options *options, struct reader **out) {
    enum status status = STATUS_OK;
    struct reader *reader = NULL;
    *out = NULL;
    TRY(check_options(options));
    TRY(memory_new(1, sizeof *reader, path, &reader));
    reader->options = *options;
    if (options->format == READER_AUTO) reader->options.format = format_of(path);
    TRY_GOTO(done, memory_copy_text(strcmp(path, "-") == 0 ? "standard input" : path, &reader->path));
    TRY_GOTO(done, memory_copy_text(options->text_field ? options->text_field : "text", &reader->text_field));
    if (options->separator) TRY_GOTO(done, memory_copy_text(options->separator, &reader->separator));
    TRY_GOTO(done, source_open(path, &reader->source));
done:
    if (status != STATUS_OK) reader_close(&reader);
    *out = reader;
    return status;
}

void reader_close(struct reader **reader) {
    if (!*reader) return;
    json_decref((*reader)->object);
    source_close(&(*reader)->source);
    free((*reader)->data);
    free((*reader)->text_field);
    free((*reader)->separator);
    free((*reader)->path);
    free(*reader);
    *reader = NULL;
}

int64_t reader_empty(const struct reader *reader) {
    return reader->empty;
}

/* Makes the window longer by what the source gives, or sets `ended`. */
static enum status extend(struct reader *reader) {
    size_t length = reader->end - reader->start;
    if (reader->start > 0 && (length == 0 || reader->start >= reader->capacity / 2)) {
        memmove(reader->data, reader->data + reader->start, length);
        reader->start = 0;
        reader->end = length;
    }
    if (reader->end == reader->capacity) {
        size_t capacity = reader->capacity ? 2 * reader->capacity : READER_WINDOW;
        TRY(memory_grow(&reader->data, capacity, 1, reader->path));
        reader->capacity = capacity;
    }
    size_t got = 0;
    TRY(source_read(reader->source, reader->data + reader->end, reader->capacity - reader->end, &got));
    reader->end += got;
    if (got)
        reader->any = true;
    else
        reader->ended = true;
    return reader->any ? STATUS_OK : error_set(STATUS_DAMAGED, "%s: is empty; expected text", reader->path);
}

/* Moves the window's start `count` bytes on. */
static void consume(struct reader *reader, size_t count) {
    reader->start += count;
    reader->searched = reader->searched > count ? reader->searched - count : 0;
    reader->cut_searched = reader->cut_searched > count ? reader->cut_searched - count : 0;
}

static bool is_blank(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (!memchr(" \t\r\n\v\f", text[i], 6)) return false;
    }
    return true;
}

/* " = Title = ": one sign on either side; sections have two and more. */
static bool is_heading(const char *line, size_t length) {
    if (length > 0 && line[length - 1] == '\r') length--;
    return length >= 7 && memcmp(line, " = ", 3) == 0 && memcmp(line + length - 3, " = ", 3) == 0 && line[3] != '=' &&
           line[length - 4] != '=';
}

/* Looks on from `searched` for the place where the document ends; *skip = bytes there that belong to no document. */
static bool find_boundary(struct reader *reader, size_t *boundary, size_t *skip) {
    const char *text = reader->data + reader->start;
    size_t length = reader->end - reader->start;
    if (reader->separator) {
        size_t separator = strlen(reader->separator);
        const char *found = length > reader->searched ? memmem(text + reader->searched, length - reader->searched,
                                                               reader->separator, separator)
                                                      : NULL;
        size_t hidden = reader->ended ? 0 : separator - 1; /* bytes at the end that may begin a separator */
        if (found)
            reader->searched = (size_t)(found - text);
        else if (length > reader->searched + hidden)
            reader->searched = length - hidden;
        *boundary = reader->searched;
        *skip = separator;
        return found != NULL;
    }
    *skip = 0;
    if (!reader->options.wikitext) {
        reader->searched = length;
        return false;
    }
    while (reader->searched < length) {
        size_t line = reader->searched;
        const char *feed = memchr(text + line, '\n', length - line);
        if (!feed && !reader->ended) return false;
        size_t line_length = feed ? (size_t)(feed - text) - line : length - line;
        if (line > 0 && reader->content && is_heading(text + line, line_length)) {
            *boundary = line;
            return true;
        }
        reader->content = reader->content || !is_blank(text + line, line_length);
        reader->searched = feed ? (size_t)(feed - text) + 1 : length;
    }
    return false;
}

/* The first place to cut at or after piece_bytes and before `limit`; 0: none yet. */
static size_t find_cut(struct reader *reader, size_t limit) {
    const char *text = reader->data + reader->start;
    size_t i = reader->options.piece_bytes;
    if (i == 0) return 0;
    if (i < reader->cut_searched) i = reader->cut_searched;
    while (i < limit) {
        const char *feed = memchr(text + i, '\n', limit - i);
        if (!feed) break;
        i = (size_t)(feed - text);
        if (text[i - 1] > ' ' && text[i - 1] <= '~') return i;
        i++;
    }
    if (limit > reader->cut_searched) reader->cut_searched = limit;
    return 0;
}

static void give(struct reader *reader, struct reader_piece *piece, size_t length, size_t skip, bool ends) {
    *piece = (struct reader_piece){
        .text = reader->data + reader->start, .length = length, .begins = !reader->inside, .ends = ends};
    reader->inside = !ends;
    consume(reader, length + skip);
    if (ends) {
        reader->content = false;
        reader->cut_searched = 0;
    }
}

static enum status next_text(struct reader *reader, struct reader_piece *piece, bool *more) {
    for (;;) {
        size_t boundary = 0, skip = 0;
        bool found = find_boundary(reader, &boundary, &skip);
        size_t cut = find_cut(reader, found ? boundary : reader->searched);
        size_t length = reader->end - reader->start;
        if (cut) {
            give(reader, piece, cut, 0, false);
            return STATUS_OK;
        }
        if (found && boundary == 0) {
            reader->empty++;
            consume(reader, skip);
            continue;
        }
        if (found) {
            give(reader, piece, boundary, skip, true);
            return STATUS_OK;
        }
        if (reader->ended) {
            *more = length > 0;
            if (length > 0) give(reader, piece, length, 0, true);
            return STATUS_OK;
        }
        TRY(extend(reader));
    }
}

/* The next line without its feed, or *more = false. */
static enum status next_line(struct reader *reader, const char **line, size_t *line_length, bool *more) {
    for (;;) {
        const char *text = reader->data + reader->start;
        size_t length = reader->end - reader->start;
        const char *feed =
            length > reader->searched ? memchr(text + reader->searched, '\n', length - reader->searched) : NULL;
        if (feed || (reader->ended && length > 0)) {
            *line = text;
            *line_length = feed ? (size_t)(feed - text) : length;
            consume(reader, *line_length + (feed ? 1 : 0));
            reader->searched = 0;
            reader->line++;
            return STATUS_OK;
        }
        reader->searched = length;
        if (reader->ended) {
            *more = false;
            return STATUS_OK;
        }
        TRY(extend(reader));
    }
}

static enum status read_object(struct reader *reader, const char *line, size_t length, const json_t **text) {
    json_error_t fault;
    reader->object = json_loadb(line, length, JSON_ALLOW_NUL, &fault);
    if (!reader->object) {
        return error_set(STATUS_DAMAGED, "%s:%lld: not a JSON object: %s (column %d)", reader->path,
                         (long long)reader->line, fault.text, fault.column);
    }
    *text = json_object_get(reader->object, reader->text_field);
    if (!json_is_object(reader->object)) {
        return error_set(STATUS_DAMAGED, "%s:%lld: expected a JSON object with the field \"%s\", found an array",
                         reader->path, (long long)reader->line, reader->text_field);
    }
    if (!json_is_string(*text)) {
        return error_set(STATUS_DAMAGED, "%s:%lld: the field \"%s\" is %s; expected text", reader->path,
                         (long long)reader->line, reader->text_field, *text ? "not text" : "missing");
    }
    return STATUS_OK;
}

static enum status next_json(struct reader *reader, struct reader_piece *piece, bool *more) {
    const char *line = NULL;
    size_t length = 0;
    json_decref(reader->object);
    reader->object = NULL;
    for (;;) {
        TRY(next_line(reader, &line, &length, more));
        if (!*more) return STATUS_OK;
        if (reader->line == 1 && length >= 3 && memcmp(line, "\xEF\xBB\xBF", 3) == 0) { /* byte order mark */
            line += 3;
            length -= 3;
        }
        if (is_blank(line, length)) continue;
        const json_t *text = NULL;
        TRY(read_object(reader, line, length, &text));
        *piece = (struct reader_piece){
            .text = json_string_value(text), .length = json_string_length(text), .begins = true, .ends = true};
        if (piece->length > 0) return STATUS_OK;
        reader->empty++;
        json_decref(reader->object);
        reader->object = NULL;
    }
}

enum status reader_next(struct reader *reader, struct reader_piece *piece, bool *more) {
    *more = true;
    return reader->options.format == READER_JSONL ? next_json(reader, piece, more) : next_text(reader, piece, more);
}

/* Length of the sequence that begins at text[0]: positive when it is UTF-8, else minus the bytes to pass over. */
static int sequence_length(const unsigned char *text, size_t length) {
    unsigned char lead = text[0], low = 0x80, high = 0xBF;
    if (lead < 0x80) return 1;
    int wanted = lead >= 0xC2 && lead <= 0xDF   ? 2
                 : lead >= 0xE0 && lead <= 0xEF ? 3
                 : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                : 0;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    for (int i = 1; i < wanted; i++) {
        if ((size_t)i >= length || text[i] < low || text[i] > high) return -i;
        low = 0x80;
        high = 0xBF;
    }
    return wanted ? wanted : -1;
}

int64_t reader_count_invalid(const char *text, size_t length, size_t *first) {
    int64_t invalid = 0;
    for (size_t i = 0; i < length;) {
        uint64_t word;
        if (i + sizeof word <= length) { /* eight ASCII bytes at once */
            memcpy(&word, text + i, sizeof word);
            if ((word & 0x8080808080808080u) == 0) {
                i += sizeof word;
                continue;
            }
        }
        int step = sequence_length((const unsigned char *)text + i, length - i);
        if (step < 0 && invalid++ == 0) *first = i;
        i += (size_t)(step < 0 ? -step : step);
    }
    return invalid;
}
