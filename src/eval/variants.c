/* See variants.h. */
#include "eval/variants.h"

#include "base/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = CANDIDATES_MAX + 1, WORD_BYTES = 32, OPTIONS = 16 };
static const char *const where = "evaluation";

/* One rule with room for what it says: candidates and where they start; or a kind's few options. */
struct rule_space {
    struct config_option options[OPTIONS];
    char *words[2][WORDS];
    char text[2][WORDS][WORD_BYTES];
};

static void space_words(struct rule_space *space, int slot, const char *key, struct config_option *option) {
    for (int i = 0; i < WORDS; i++) space->words[slot][i] = space->text[slot][i];
    *option = (struct config_option){.key = (char *)(uintptr_t)key, .words = space->words[slot]};
}

/* Layer `layer` of kind masks with one window of `width` that starts at `coefficient`. */
static struct config_attention window_rule(struct rule_space *space, int64_t layer, int64_t width, int coefficient) {
    space_words(space, 0, "candidates", &space->options[0]);
    space_words(space, 1, "start", &space->options[1]);
    snprintf(space->text[0][0], WORD_BYTES, "window(%lld)", (long long)width);
    snprintf(space->text[1][0], WORD_BYTES, "%d", coefficient);
    space->options[0].count = space->options[1].count = 1;
    return (struct config_attention){.first = layer,
                                     .last = layer,
                                     .kind = (char *)(uintptr_t) "masks",
                                     .options = space->options,
                                     .option_count = 2};
}

static bool is_full(const struct attention_layer *layer) {
    return strcmp(layer->kind->name, "full") == 0;
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

/* masks: the first candidate becomes a window over everything and starts at 1, the others stay and start at 0. */
static void cover_masks(struct config_attention *rule, struct rule_space *space, int64_t length) {
    size_t used = 0;
    for (size_t i = 0; i < rule->option_count && used < 2; i++) {
        const struct config_option *option = &rule->options[i];
        if (strcmp(option->key, "start") == 0) continue;
        space->options[used] = *option;
        if (strcmp(option->key, "candidates") == 0) {
            space_words(space, 0, "candidates", &space->options[used]);
            space->options[used].count = option->count;
            for (size_t w = 0; w < option->count && w < WORDS; w++) space->words[0][w] = option->words[w];
            space->words[0][0] = space->text[0][0];
            snprintf(space->text[0][0], WORD_BYTES, "window(%lld)", (long long)length);
            space_words(space, 1, "start", &space->options[2]);
            space->options[2].count = option->count;
            for (size_t w = 0; w < option->count && w < WORDS; w++)
                snprintf(space->text[1][w], WORD_BYTES, "%d", w == 0);
        }
        used++;
    }
    if (used < 2) space->options[used] = space->options[2];
    rule->options = space->options;
    rule->option_count = used + 1;
}

/* kerformer: a window over everything, so that nothing is left to the features. */
static void cover_kerformer(struct config_attention *rule, struct rule_space *space, int64_t length) {
    size_t used = 0;
    for (size_t i = 0; i < rule->option_count && used < OPTIONS - 1; i++) {
        const char *key = rule->options[i].key;
        if (strcmp(key, "window") != 0 && strcmp(key, "window_dropout") != 0) space->options[used++] = rule->options[i];
    }
    space_words(space, 0, "window", &space->options[used]);
    space->options[used].count = 1;
    snprintf(space->text[0][0], WORD_BYTES, "%lld", (long long)length);
    rule->options = space->options;
    rule->option_count = used + 1;
}

/* nsa: all blocks and a window over everything; the compressed branch is switched off in the model that is made. */
static void cover_nsa(struct config_attention *rule, struct rule_space *space, int64_t length) {
    size_t used = 0;
    int64_t block = 64;
    for (size_t i = 0; i < rule->option_count && used < OPTIONS - 2; i++) {
        const struct config_option *option = &rule->options[i];
        if (strcmp(option->key, "block") == 0) block = strtoll(option->words[0], NULL, 10);
        if (strcmp(option->key, "select") == 0 || strcmp(option->key, "window") == 0) continue;
        space->options[used++] = *option;
    }
    const int64_t blocks = block > 0 ? (length + block - 1) / block : 0;
    space_words(space, 0, "select", &space->options[used]);
    snprintf(space->text[0][0], WORD_BYTES, "%lld", (long long)(blocks > 3 ? blocks : 3));
    space->options[used++].count = 1;
    space_words(space, 1, "window", &space->options[used]);
    snprintf(space->text[1][0], WORD_BYTES, "%lld", (long long)length);
    space->options[used++].count = 1;
    rule->options = space->options;
    rule->option_count = used;
}

static enum status switch_compressed_off(struct model *model) {
    for (int64_t l = 0; l < model->config.layers; l++) {
        struct attention_layer *layer = &model->layers[l];
        char name[ATTENTION_BRANCH_NAME];
        for (int branch = 0; layer->kind->branch_name && layer->kind->branch_name(layer, branch, name); branch++)
            if (strcmp(name, "compressed") == 0) TRY(layer->kind->switch_off(layer, 1u << branch));
    }
    return STATUS_OK;
}

enum status variant_covered(const struct model *teacher, const struct config_attention *rules, size_t rule_count,
                            int64_t length, uint64_t seed, struct model *out) {
    struct config_attention *covered = NULL;
    struct rule_space *spaces = NULL;
    enum status status = new_rules((int64_t)rule_count, &covered, &spaces);
    for (size_t r = 0; r < rule_count && status == STATUS_OK; r++) {
        covered[r] = rules[r];
        if (strcmp(rules[r].kind, "full") == 0) continue;
        if (strcmp(rules[r].kind, "masks") == 0) {
            cover_masks(&covered[r], &spaces[r], length);
        } else if (strcmp(rules[r].kind, "kerformer") == 0) {
            cover_kerformer(&covered[r], &spaces[r], length);
        } else if (strcmp(rules[r].kind, "nsa") == 0) {
            cover_nsa(&covered[r], &spaces[r], length);
        } else {
            status = error_set(STATUS_NOT_FOUND, "kind %s: has no form that reads everything", rules[r].kind);
        }
    }
    if (status == STATUS_OK) status = model_student(teacher, where, covered, rule_count, NULL, 0, false, seed, out);
    if (status == STATUS_OK) {
        status = switch_compressed_off(out);
        if (status != STATUS_OK) model_free(out);
    }
    free(covered);
    free(spaces);
    return status;
}
