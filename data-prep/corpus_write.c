/* The sample corpus as JSON lines; see corpus.h. */
#include "base/file.h"
#include "base/memory.h"
#include "data-prep/corpus.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status write_document(FILE *stream, int64_t index, const struct corpus_document *document) {
    json_t *recalls = json_array();
    for (size_t i = 0; i < document->recall_count && recalls; i++) {
        const struct corpus_recall *recall = &document->recalls[i];
        json_array_append_new(recalls, json_pack("{s:I, s:I, s:I}", "start", (json_int_t)recall->start, "length",
                                                 (json_int_t)recall->length, "distance", (json_int_t)recall->distance));
    }
    json_t *line = json_pack("{s:I, s:s#, s:o}", "document", (json_int_t)index, "text", document->text,
                             document->length, "recall", recalls);
    if (!line) return error_set(STATUS_MEMORY, "no memory for document %lld", (long long)index);
    int failed = json_dumpf(line, stream, JSON_COMPACT);
    json_decref(line);
    if (failed || fputc('\n', stream) == EOF)
        return error_set(STATUS_IO, "cannot write the corpus: %s", strerror(errno));
    return STATUS_OK;
}

static enum status write_all(FILE *stream, const struct corpus_options *options, struct corpus_summary *summary) {
    for (int64_t i = 0; options->documents ? i < options->documents : summary->bytes < options->bytes; i++) {
        struct corpus_document document;
        TRY(corpus_document_make(options->seed, options->first + i, &options->shape, &document));
        enum status status = write_document(stream, options->first + i, &document);
        summary->documents++;
        summary->bytes += (int64_t)document.length;
        summary->recalls += (int64_t)document.recall_count;
        corpus_document_free(&document);
        TRY(status);
    }
    return STATUS_OK;
}

enum status corpus_write(const char *path, const struct corpus_options *options, struct corpus_summary *summary) {
    enum status status = STATUS_OK;
    char *temporary = NULL;
    *summary = (struct corpus_summary){0};
    if (strcmp(path, "-") == 0) return write_all(stdout, options, summary);
    struct stat info;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode)) { /* a device would be replaced by the rename */
        return error_set(STATUS_IO, "%s: is not a file that can be replaced", path);
    }
    TRY(memory_format(&temporary, "%s.tmp-%ld", path, (long)getpid()));
    FILE *stream = fopen(temporary, "wbe");
    if (!stream) {
        status = error_set(STATUS_IO, "%s: cannot create it: %s", path, strerror(errno));
        goto done;
    }
    status = write_all(stream, options, summary);
    if (fclose(stream) != 0 && status == STATUS_OK) {
        status = error_set(STATUS_IO, "%s: cannot write it: %s", path, strerror(errno));
    }
    if (status == STATUS_OK)
        status = file_publish(temporary, path);
    else
        (void)file_remove_tree(temporary);
done:
    free(temporary);
    return status;
}
