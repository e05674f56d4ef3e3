/* Students to put beside a student: its own kinds untrained, no attention, a window alone at its density. All share the teacher's values. Model them with model_free. */
#ifndef SQUINT_EVAL_VARIANTS_H
#define SQUINT_EVAL_VARIANTS_H

#include "eval/windows.h"
#include "model/model.h"

/* The same kinds with their initial parameters. rules: as model_student takes them. */
enum status variant_untrained(const struct model *teacher, const struct config_attention *rules, size_t rule_count,
                              uint64_t seed, struct model *out);
/* Starts the rows of kinds that start from data (model_calibrate) on the first CALIBRATION_TOKENS tokens of the windows. */
enum status variant_calibrate(const struct windows *windows, struct model *student);
/* Attention outputs zero in every layer of `student` that is not `full` (masks with one candidate whose coefficient is
 * 0). */
enum status variant_no_attention(const struct model *teacher, const struct model *student, struct model *out);
/* In every layer that is not `full`: the last w tokens, w chosen so that the layer's density at `length` is nearest to
 * the student's. *narrowest, *widest: the smallest and largest w. A layer whose kind has no density keeps its share of
 * the mean of the others; STATUS_NOT_FOUND when none has one. */
enum status variant_window(const struct model *teacher, const struct model *student, int64_t length, int64_t *narrowest,
                           int64_t *widest, struct model *out);
/* The w of 1 … length whose causal window reads a share of the pairs nearest to `density`. */
int64_t variant_window_width(double density, int64_t length);

#endif
