/* See allocate_recipe.h. */
#include "commands/allocate_recipe.h"

#include "base/memory.h"
#include "eval/allocate_forms.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATTERNS_MAX = 8, PATTERN_BYTES = 32, FLOW_WORDS = 16 };

/* What the kinds have to learn beside the teacher's own projections, as patterns of `train`. */
struct learned {
    char patterns[PATTERNS_MAX][PATTERN_BYTES];
    size_t count;
};

/* --- what trains ---------------------------------------------------------------------------------------------------
 */

/* A sparse row starts at its final shape: one that is trained away from zero would read more than was allocated. */
static void find_learned(const struct model *student, struct learned *learned) {
    for (int64_t l = 0; l < student->config.layers; l++) {
        const char *kind = student->layers[l].kind->name;
        char part[PATTERN_BYTES + 2], pattern[PATTERN_BYTES];
        bool found = false;
        snprintf(pattern, sizeof pattern, "attn.%.20s", kind);
        snprintf(part, sizeof part, ".%s.", pattern);
        for (int64_t i = 0; i < student->params.count; i++) {
            const struct param *row = &student->params.rows[i];
            found = found || (row->added && !row->sparse && !row->constant && strstr(row->name, part));
        }
        for (size_t p = 0; p < learned->count; p++) found = found && strcmp(learned->patterns[p], pattern) != 0;
        if (found && learned->count < PATTERNS_MAX) strcpy(learned->patterns[learned->count++], pattern);
    }
}

static enum status read_learned(const struct allocate_recipe *r, struct learned *learned) {
    struct config_attention *rules = NULL;
    struct model student;
    size_t count = 0;
    TRY(memory_new((size_t)r->allocation->layer_count, sizeof *rules, "rules of a recipe", &rules));
    for (int64_t l = 0; l < r->allocation->layer_count; l++) {
        if (r->allocation->layers[l].rule.kind) rules[count++] = r->allocation->layers[l].rule;
    }
    enum status status =
        model_student(r->model, r->options->where, rules, count, NULL, 0, false, r->options->seed, &student);
    free(rules);
    if (status != STATUS_OK) return status;
    find_learned(&student, learned);
    model_free(&student);
    return STATUS_OK;
}

/* --- text ----------------------------------------------------------------------------------------------------------
 */

static void write_list(FILE *out, const char *const *words, size_t count) {
    fputc('[', out);
    for (size_t i = 0; i < count; i++) {
        if (i) fputs(", ", out);
        config_write_word(out, words[i]);
    }
    fputc(']', out);
}

static void write_figures(FILE *out, const char *label, const struct allocate_figures *f) {
    fprintf(out, "#   %-28s density %.4f, KL %.5f", label, f->density, f->kl);
    if (isfinite(f->check_kl)) fprintf(out, "; apart %.5f", f->check_kl);
    if (isfinite(f->check_kl) && isfinite(f->check_error)) fprintf(out, " ± %.5f", f->check_error);
    fputc('\n', out);
}

static void write_comment(FILE *out, const struct allocate_recipe *r) {
    const struct allocation *a = r->allocation;
    bool by_density = r->options->by_density;
    fprintf(out, "# %s\n", r->command);
    fprintf(out,
            "# Untrained students at T = %lld, KL(teacher‖student) in nats a token on %lld windows (apart: on %lld "
            "others);\n",
            (long long)r->length, (long long)a->search_windows, (long long)a->check_windows);
    fprintf(out, "# the least %s whose %s is at most %g:\n", by_density ? "KL" : "density",
            by_density ? "density" : "KL", r->options->budget);
    write_figures(out, "this allocation", &a->figures);
    fprintf(out, "#   %-28s KL %.5f\n", "the layers' own, added up", a->predicted_kl);
    if (a->best_uniform >= 0) {
        write_figures(out, "best in all layers alike", &a->uniforms[a->best_uniform].figures);
        fprintf(out, "#     %s\n", a->uniforms[a->best_uniform].text);
    } else {
        fprintf(out, "#   no candidate in all layers alike is within the budget\n");
    }
}

/* A row of numbers for every head is a line of its own. */
static void write_words(FILE *out, const struct config_option *option, int64_t heads, const char *indent) {
    bool rows = option->count > FLOW_WORDS && option->count % (size_t)heads == 0;
    size_t columns = rows ? option->count / (size_t)heads : option->count;
    if (option->count > 1) fputc('[', out);
    for (size_t w = 0; w < option->count; w++) {
        if (w > 0) fputs(w % columns == 0 ? ",\n" : ", ", out);
        if (w > 0 && w % columns == 0) fputs(indent, out);
        config_write_word(out, option->words[w]);
    }
    if (option->count > 1) fputc(']', out);
}

static void write_layers(FILE *out, int64_t first, int64_t last, int64_t layers) {
    if (first == 0 && last == layers - 1) {
        fputs("all", out);
    } else if (first == last) {
        fprintf(out, "%lld", (long long)first);
    } else {
        fprintf(out, "%lld-%lld", (long long)first, (long long)last);
    }
}

static void write_rule(FILE *out, const struct allocate_recipe *r, int64_t first, int64_t last) {
    const struct config_attention *rule = &r->allocation->layers[first].rule;
    bool block = false;
    for (size_t i = 0; i < rule->option_count; i++) block = block || rule->options[i].count > FLOW_WORDS;
    fputs(block ? "    - layers: " : "    - {layers: ", out);
    write_layers(out, first, last, r->allocation->layer_count);
    fputs(block ? "\n      kind: " : ", kind: ", out);
    config_write_word(out, rule->kind ? rule->kind : "full");
    for (size_t i = 0; i < rule->option_count; i++) {
        fputs(block ? "\n      " : ", ", out);
        config_write_word(out, rule->options[i].key);
        fputs(": ", out);
        write_words(out, &rule->options[i], r->model->config.heads, block ? "              " : " ");
    }
    fputs(block ? "\n" : "}\n", out);
}

/* Neighbouring layers that are alike share a rule. */
static enum status write_rules(FILE *out, const struct allocate_recipe *r) {
    const struct allocation *a = r->allocation;
    char *before = NULL;
    int64_t first = 0;
    enum status status = STATUS_OK;
    fputs("student:\n  attention:\n", out);
    for (int64_t l = 0; l < a->layer_count && status == STATUS_OK; l++) {
        const struct config_attention full = {.kind = (char *)(uintptr_t) "full"};
        char *text = NULL;
        status = rule_text(a->layers[l].rule.kind ? &a->layers[l].rule : &full, &text);
        if (status == STATUS_OK && before && strcmp(before, text) != 0) {
            write_rule(out, r, first, l - 1);
            first = l;
        }
        free(before);
        before = text;
    }
    if (status == STATUS_OK) write_rule(out, r, first, a->layer_count - 1);
    free(before);
    return status;
}

static void write_stages(FILE *out, const struct allocate_recipe *r, const struct learned *learned) {
    const int64_t width = r->model->config.width, length = r->length;
    /* Narrow models bear, and need, larger steps (docs/results.md: 1.5e-3 at 64, 5e-5 at 768). */
    const char *lr = width <= 128 ? "1.0e-3" : width <= 512 ? "3.0e-4" : "5.0e-5";
    const char *lr_end = width <= 128 ? "5.0e-5" : width <= 512 ? "2.0e-5" : "5.0e-6";
    bool begins_near = false; /* an indexer starts from the teacher's own scores */
    for (size_t p = 0; p < learned->count; p++)
        begins_near = begins_near || strcmp(learned->patterns[p], "attn.indexer") == 0;
    fputs("stages:\n", out);
    if (learned->count > 0) {
        fputs("  # What the kinds added, each layer beside the teacher's.\n", out);
        fputs("  - {name: align, objective: attention, train: [", out);
        for (size_t p = 0; p < learned->count; p++) fprintf(out, p ? ", %s" : "%s", learned->patterns[p]);
        fprintf(out, "], length: %lld, batch: 16, steps: 100, lr: %s, lr_end: 1.0e-4}\n", (long long)length,
                begins_near ? "3.0e-3" : "1.0e-2");
    } else {
        fputs("  # No kind here has anything of its own to learn beside the teacher: no stage `align`.\n", out);
    }
    fputs(
        "  # Attention's projections. Coefficients of masks rest, so that nothing is read beyond what was allocated.\n",
        out);
    fputs("  - {name: distil, objective: kl, train: [attn.qkv, attn.out", out);
    for (size_t p = 0; p < learned->count; p++) fprintf(out, ", %s", learned->patterns[p]);
    fprintf(out, "], length: %lld, batch: 16, steps: 300, lr: %s, lr_end: %s}\n", (long long)length, lr, lr_end);
}

static enum status write_recipe(FILE *out, const struct allocate_recipe *r, const struct learned *learned) {
    write_comment(out, r);
    fputs("run: ", out);
    config_write_word(out, r->run);
    fputs("\nteacher: ", out);
    config_write_word(out, r->teacher);
    if (r->same_data) fputs("\n# The shards that were measured on: name others to train on.", out);
    fputs("\ndata:\n  train: ", out);
    write_list(out, r->train, r->train_count);
    fputs("\n  valid: ", out);
    write_list(out, r->valid, r->valid_count);
    fputc('\n', out);
    if (r->positions) fprintf(out, "positions: %s\n", r->positions);
    TRY(write_rules(out, r));
    write_stages(out, r, learned);
    fputs(
        "train: {clip: 1.0, warmup_steps: 20}\ncheckpoint: {every: 100, keep: 3}\neval: {every: 100, sequences: 64}\n",
        out);
    if (r->precision) fprintf(out, "precision: %s\n", r->precision);
    fprintf(out, "seed: %llu\n", (unsigned long long)r->options->seed);
    return STATUS_OK;
}

enum status allocate_recipe_write(const struct allocate_recipe *recipe, const char *path, char **text) {
    struct learned learned = {.count = 0};
    struct config config;
    size_t length = 0;
    *text = NULL;
    TRY(read_learned(recipe, &learned));
    FILE *out = open_memstream(text, &length);
    if (!out) return error_set(STATUS_MEMORY, "allocate: no memory for the recipe");
    enum status status = write_recipe(out, recipe, &learned);
    bool failed = ferror(out) != 0;
    if ((fclose(out) != 0 || failed) && status == STATUS_OK) {
        status = error_set(STATUS_MEMORY, "allocate: no memory for the recipe");
    }
    if (status == STATUS_OK) {
        status = config_parse(path, *text, length, NULL, 0, &config);
        if (status == STATUS_OK) config_free(&config);
    }
    if (status != STATUS_OK) {
        free(*text);
        *text = NULL;
    }
    return status;
}
