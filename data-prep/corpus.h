/* The sample corpus: simple English stories that introduce people, things and places early and ask for them late, so
 * that a model must look far back to be right. Document i is a function of (seed, i, shape) alone. The text is ASCII.
 */
#ifndef SQUINT_DATA_PREP_CORPUS_H
#define SQUINT_DATA_PREP_CORPUS_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

struct corpus_recall { /* an answer that only an earlier sentence gives away; in bytes */
    int64_t start, length;
    int64_t distance; /* from the place where the story last said it to `start` */
};

struct corpus_document {
    char *text; /* NUL-terminated */
    size_t length;
    struct corpus_recall *recalls; /* ascending by start */
    size_t recall_count;
};

/* What stories are like; 0 stands for the default. */
struct corpus_shape {
    int64_t shortest, longest; /* bytes that a story is meant to have; it misses them by a few hundred; 550; 7,000 */
    int64_t facts;             /* things to remember, at most CORPUS_FACTS_MAX; 2 and one for 1,000 bytes, at most 8 */
    int64_t asked;             /* how often the end asks for each; 1 */
};
enum { CORPUS_FACTS_MAX = 24 };

/* Makes document `index`; lengths are spread evenly on a logarithmic scale from shortest to longest. shape: NULL stands
 * for the defaults. Release with corpus_document_free. STATUS_USAGE when the shortest is longer than the longest, or
 * facts are too many. */
enum status corpus_document_make(uint64_t seed, int64_t index, const struct corpus_shape *shape,
                                 struct corpus_document *document);
void corpus_document_free(struct corpus_document *document); /* NULL-safe, twice-safe */

struct corpus_options {
    uint64_t seed;
    int64_t first;     /* index of the first document */
    int64_t documents; /* so many; 0: until `bytes` of text are reached */
    int64_t bytes;
    struct corpus_shape shape;
};

struct corpus_summary {
    int64_t documents, bytes, recalls;
};

/* Writes JSON lines {"document": i, "text": …, "recall": [{"start":, "length":, "distance":}, …]} and publishes them at
 * `path`, or on standard output when `path` is "-". STATUS_IO names a path that cannot be written. */
enum status corpus_write(const char *path, const struct corpus_options *options, struct corpus_summary *summary);

#endif
