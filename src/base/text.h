/* Small helpers on words that people type. */
#ifndef SQUINT_BASE_TEXT_H
#define SQUINT_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Levenshtein distance; 64 when either text has 64 characters or more. */
size_t text_distance(const char *a, const char *b);
/* The candidate nearest to `word`, the first among equals; NULL when none is within three changes. */
const char *text_nearest(const char *word, const char *const *candidates, size_t count);

#endif
