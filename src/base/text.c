/* See text.h. */
#include "base/text.h"

#include <string.h>

enum { WORD_MAX = 64, NEAR = 3 };

size_t text_distance(const char *a, const char *b) {
    size_t rows = strlen(a), columns = strlen(b);
    size_t previous[WORD_MAX], current[WORD_MAX];
    if (rows >= WORD_MAX || columns >= WORD_MAX) return WORD_MAX;
    for (size_t j = 0; j <= columns; j++) previous[j] = j;
    for (size_t i = 1; i <= rows; i++) {
        current[0] = i;
        for (size_t j = 1; j <= columns; j++) {
            size_t change = previous[j - 1] + (a[i - 1] != b[j - 1]);
            size_t skip = (previous[j] < current[j - 1] ? previous[j] : current[j - 1]) + 1;
            current[j] = change < skip ? change : skip;
        }
        memcpy(previous, current, (columns + 1) * sizeof *previous);
    }
    return previous[columns];
}

const char *text_nearest(const char *word, const char *const *candidates, size_t count) {
    const char *nearest = NULL;
    size_t best = NEAR + 1;
    for (size_t i = 0; i < count; i++) {
        size_t distance = text_distance(word, candidates[i]);
        if (distance < best) {
            best = distance;
            nearest = candidates[i];
        }
    }
    return nearest;
}
