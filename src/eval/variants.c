/* See variants.h. */
#include "eval/variants.h"

#include "base/memory.h"
#include "eval/evaluate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORD_BYTES = 32 };
static const char *const where = "evaluation";

/* One rule with room for what it says: a window, and where it starts. */
struct rule_space {
    struct config_option options[2];
    char *words[2];
    char text[2][WORD_BYTES];
};

/* Layer `layer` of kind masks with one window of `width` that starts at `coefficient`. */
static struct config_attention window_rule(struct rule_space *space, int64_t layer, int64_t width, int coefficient) {
    static const char *const keys[] = {"candidates", "start"};
    snprintf(space->text[0], WORD_BYTES, "window(%lld)", (long long)width);
    snprintf(space->text[1], WORD_BYTES, "%d", coefficient);
    for (int i = 0; i < 2; i++) {
        space->words[i] = space->text[i];
        space->options[i] =
            (struct config_option){.key = (char *)(uintptr_t)keys[i], .words = &space->words[i], .count = 1};
    }
    return (struct config_attention){.first = layer,
                                     .last = layer,
                                     .kind = (char *)(uintptr_t) "masks",
                                     .options = space->options,
                                     .option_count = 2};
}

static bool is_full(const struct attention_layer *layer) {
    return kind_is_full(layer->kind);
}

static enum status new_rules(int64_t count, struct config_attention **rules, struct rule_space **spaces) {
    *rules = NULL;
    *spaces = NULL;
    TRY(memory_new((size_t)count, sizeof **rules, "rules of a baseline", rules));
    return memory_new((size_t)count, sizeof **spaces, "rules of a baseline", spaces);
}

enum status variant_untrained(const struct model *teacher, const struct config_attention *rules, size_t rule_count,
                              uint64_t seed, struct model *out) {
    return model_student(teacher, where, rules, rule_count, NULL, 0, false, seed, out);
}

enum status variant_calibrate(const struct windows *windows, struct model *student) {
    const int64_t length = windows->options.length, enough = (CALIBRATION_TOKENS + length - 1) / length;
    struct batch batch = {.batch = enough < windows->count ? enough : windows->count, .length = length};
    const size_t tokens = (size_t)(batch.batch * length);
    int32_t *numbers = NULL;
    if (!model_calibrates(student)) return STATUS_OK;
    TRY(evaluate_check_fit(student->teacher, "teacher", windows));
    TRY(memory_new(3 * tokens, sizeof *numbers, "a calibration batch", &numbers));
    batch.ids = numbers;
    batch.targets = numbers + tokens;
    batch.start = numbers + 2 * tokens;
    for (int64_t b = 0; b < batch.batch; b++)
        windows_read(windows, b, numbers + b * length, numbers + tokens + (size_t)(b * length),
                     numbers + 2 * tokens + (size_t)(b * length));
    enum status status = model_calibrate(student, &batch);
    free(numbers);
    return status;
}

/* widths: [L], 0 where the layer stays `full`. */
static enum status make_windows(const struct model *teacher, const int64_t *widths, int coefficient,
                                struct model *out) {
    struct config_attention *rules = NULL;
    struct rule_space *spaces = NULL;
    int64_t layers = teacher->config.layers;
    size_t count = 0;
    enum status status = new_rules(layers, &rules, &spaces);
    for (int64_t l = 0; l < layers && status == STATUS_OK; l++) {
        if (widths[l] == 0) continue;
        rules[count] = window_rule(&spaces[count], l, widths[l], coefficient);
        count++;
    }
    if (status == STATUS_OK) status = model_student(teacher, where, rules, count, NULL, 0, false, 0, out);
    free(rules);
    free(spaces);
    return status;
}

enum status variant_no_attention(const struct model *teacher, const struct model *student, struct model *out) {
    int64_t *widths = NULL;
    TRY(memory_new((size_t)teacher->config.layers, sizeof *widths, "windows of a baseline", &widths));
    for (int64_t l = 0; l < teacher->config.layers; l++) widths[l] = is_full(&student->layers[l]) ? 0 : 1;
    enum status status = make_windows(teacher, widths, 0, out);
    free(widths);
    return status;
}

int64_t variant_window_width(double density, int64_t length) {
    double t = (double)length, all = t * (t + 1) / 2, best_distance = INFINITY;
    int64_t best = 1;
    for (int64_t w = 1; w <= length; w++) {
        double x = (double)w, pairs = x * (x + 1) / 2 + (t - x) * x, distance = fabs(pairs / all - density);
        if (distance >= best_distance) break;
        best_distance = distance;
        best = w;
    }
    return best;
}

enum status variant_window(const struct model *teacher, const struct model *student, int64_t length, int64_t *narrowest,
                           int64_t *widest, struct model *out) {
    int64_t layers = teacher->config.layers, known = 0, *widths = NULL;
    double *densities = NULL, mean = 0;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new((size_t)layers, sizeof *widths, "windows of a baseline", &widths));
    TRY_GOTO(done, memory_new((size_t)layers, sizeof *densities, "densities of a baseline", &densities));
    for (int64_t l = 0; l < layers; l++) {
        const struct attention_layer *layer = &student->layers[l];
        struct attention_cost cost;
        if (is_full(layer)) continue;
        TRY_GOTO(done, layer->kind->cost(layer, length, &cost));
        densities[l] = cost.density;
        if (cost.density < 0) continue;
        mean += cost.density;
        known++;
    }
    if (known == 0) {
        status = error_set(STATUS_NOT_FOUND, "window baseline: no layer of the student has a density");
        goto done;
    }
    *narrowest = length;
    *widest = 1;
    for (int64_t l = 0; l < layers; l++) {
        if (is_full(&student->layers[l])) continue;
        widths[l] = variant_window_width(densities[l] < 0 ? mean / (double)known : densities[l], length);
        if (widths[l] < *narrowest) *narrowest = widths[l];
        if (widths[l] > *widest) *widest = widths[l];
    }
    status = make_windows(teacher, widths, 1, out);
done:
    free(widths);
    free(densities);
    return status;
}
