/* The exactness ladder of one student on one table: the models and the students that every table's test climbs with. The rung that
 * measures time is left out. */
#ifndef SQUINT_TESTS_LADDER_CASE_H
#define SQUINT_TESTS_LADDER_CASE_H

#include "kernels/ops.h"
#include "model/model.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LADDER_WORDS = 5, LADDER_OPTIONS = 6, LADDER_POSITIONS = 1000 /* the longest text that every model takes */ };

struct ladder_student {
    const char *name, *kind;
    bool covers; /* has a form that reads everything: rung 1 */
    struct {
        const char *key, *words[LADDER_WORDS];
    } options[LADDER_OPTIONS];
};

extern const struct model_config ladder_models[]; /* awkward widths and numbers of heads */
extern const size_t ladder_model_count;
extern const struct ladder_student ladder_students[];
extern const size_t ladder_student_count;

/* A new shard of several documents: what ladder_climb reads. */
void ladder_text(const char *path);

/* Rungs 1 to 4 of a fresh student of a sharply attending teacher, on texts of `length` tokens of the shard `text`; `say`: with a line a
 * rung. Fails the test with what was expected and found. */
void ladder_climb(const struct ops *ops, const char *text, const struct model_config *config, const struct ladder_student *student,
                  int64_t length, bool say);

#endif
