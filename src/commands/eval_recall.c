/* See eval_recall.h. */
#include "commands/eval_recall.h"

#include "base/file.h"
#include "base/memory.h"

#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* One line of the file on its way to a document. */
struct line {
    const char *path;
    int64_t number;
    const char *text; /* of the document */
    int64_t length;   /* bytes */
    struct token_buffer ids;
    int64_t *ends; /* [ids.count] byte of the text behind each token */
};

/* Where each token ends, by writing them out again. A first token may bring a space that the text has not. */
static enum status find_ends(struct line *line, const struct tokenizer *tokenizer) {
    char *written = NULL;
    size_t length = 0;
    enum status status = STATUS_OK;
    TRY(memory_grow(&line->ends, line->ids.count + 1, sizeof *line->ends, "places of tokens"));
    for (size_t i = 0; i < line->ids.count && status == STATUS_OK; i++) {
        status = tokenizer_decode_one(tokenizer, line->ids.ids[i], &written, &length);
        line->ends[i] = (int64_t)length;
    }
    int64_t before = (int64_t)length - line->length;
    if (status == STATUS_OK && (before < 0 || memcmp(written + before, line->text, (size_t)line->length) != 0)) {
        status = error_set(STATUS_USAGE,
                           "%s:%lld: recall needs a tokenizer whose tokens are the text's own bytes; %s changes them",
                           line->path, (long long)line->number, tokenizer_name(tokenizer));
    }
    for (size_t i = 0; i < line->ids.count; i++) line->ends[i] -= before;
    free(written);
    return status;
}

/* The token that holds byte `at` of the text. */
static int64_t token_of(const struct line *line, int64_t at) {
    int64_t low = 0, high = (int64_t)line->ids.count - 1;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (line->ends[middle] > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static enum status read_answer(const struct line *line, size_t index, const json_t *object,
                               struct recall_answer *answer) {
    json_int_t start, length, distance;
    if (json_unpack((json_t *)object, "{s:I, s:I, s:I}", "start", &start, "length", &length, "distance", &distance)) {
        return error_set(STATUS_DAMAGED,
                         "%s:%lld: recall[%zu]: expected an object with the numbers start, length and distance",
                         line->path, (long long)line->number, index);
    }
    if (length < 1 || distance < 1 || start < distance || start > line->length || length > line->length - start) {
        return error_set(STATUS_DAMAGED,
                         "%s:%lld: recall[%zu]: expected bytes of the text's %lld and an earlier place, found start "
                         "%lld, length %lld, distance %lld",
                         line->path, (long long)line->number, index, (long long)line->length, (long long)start,
                         (long long)length, (long long)distance);
    }
    answer->first = token_of(line, start);
    answer->count = token_of(line, start + length - 1) + 1 - answer->first;
    answer->distance = answer->first - token_of(line, start - distance);
    return STATUS_OK;
}

/* The line's ids and answers behind `begin`. */
static enum status fill(const struct line *line, const json_t *answers, int64_t begin,
                        struct recall_document *document) {
    int64_t before = begin >= 0;
    TRY(memory_new(line->ids.count + (size_t)before, sizeof *document->ids, "a document", &document->ids));
    TRY(memory_new(json_array_size(answers), sizeof *document->answers, "answers", &document->answers));
    if (begin >= 0) document->ids[document->count++] = (int32_t)begin;
    for (size_t i = 0; i < line->ids.count; i++) document->ids[document->count++] = (int32_t)line->ids.ids[i];
    for (size_t i = 0; i < json_array_size(answers); i++) {
        struct recall_answer *answer = &document->answers[i];
        TRY(read_answer(line, i, json_array_get(answers, i), answer));
        answer->first += before;
        document->answer_count++;
    }
    return STATUS_OK;
}

static enum status add_document(struct line *line, const json_t *object, const struct tokenizer *tokenizer,
                                int64_t begin, struct eval_recall *recall) {
    const json_t *text = json_object_get(object, "text"), *answers = json_object_get(object, "recall");
    if (!json_is_string(text) || !json_is_array(answers)) {
        return error_set(STATUS_DAMAGED,
                         "%s:%lld: expected a JSON object with \"text\" and the list \"recall\", as squint corpus "
                         "writes it; %s is %s",
                         line->path, (long long)line->number, json_is_string(text) ? "\"recall\"" : "\"text\"",
                         (json_is_string(text) ? answers : text) ? "of another type" : "missing");
    }
    if (json_array_size(answers) == 0) return STATUS_OK;
    line->text = json_string_value(text);
    line->length = (int64_t)json_string_length(text);
    line->ids.count = 0;
    TRY(tokenizer_encode(tokenizer, line->text, (size_t)line->length, false, &line->ids));
    TRY(find_ends(line, tokenizer));
    TRY(memory_grow(&recall->documents, recall->count + 1, sizeof *recall->documents, "documents"));
    struct recall_document *document = &recall->documents[recall->count++];
    *document = (struct recall_document){0};
    return fill(line, answers, begin, document);
}

static bool is_blank(const char *text, size_t length) {
    while (length > 0 && isspace((unsigned char)text[length - 1])) length--;
    return length == 0;
}

enum status eval_recall_read(const char *path, const struct tokenizer *tokenizer, int64_t begin,
                             struct eval_recall *recall) {
    struct line line = {.path = path};
    char *content = NULL;
    size_t length = 0;
    enum status status;
    *recall = (struct eval_recall){.path = path};
    TRY_GOTO(done, file_read(path, &content, &length));
    for (const char *at = content, *end = content + length; at < end;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t bytes = (size_t)((newline ? newline : end) - at);
        json_error_t fault;
        line.number++;
        json_t *object = is_blank(at, bytes) ? NULL : json_loadb(at, bytes, JSON_ALLOW_NUL, &fault);
        if (object) {
            status = add_document(&line, object, tokenizer, begin, recall);
        } else if (!is_blank(at, bytes)) {
            status = error_set(STATUS_DAMAGED, "%s:%lld: not a JSON object: %s (column %d)", path,
                               (long long)line.number, fault.text, fault.column);
        }
        json_decref(object);
        if (status != STATUS_OK) goto done;
        at += bytes + 1;
    }
    if (recall->count == 0)
        status = error_set(STATUS_DAMAGED, "%s: expected documents with answers to recall, found none", path);
done:
    free(content);
    free(line.ends);
    token_buffer_free(&line.ids);
    return status;
}

void eval_recall_free(struct eval_recall *recall) {
    if (!recall) return;
    for (size_t i = 0; i < recall->count; i++) {
        free(recall->documents[i].ids);
        free(recall->documents[i].answers);
    }
    free(recall->documents);
    *recall = (struct eval_recall){0};
}
