/* See allocate_print.h. */
#include "commands/allocate_print.h"

#include "base/memory.h"
#include "eval/allocate_forms.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BAR_WIDTH = 40, UNIFORMS_SHOWN = 8 };

/* --- for people ----------------------------------------------------------------------------------------------------
 */

static void print_sizes(FILE *stream, const struct allocate_layer *layer, int64_t heads) {
    fprintf(stream, "%s by head:", layer->rule.kind);
    for (int64_t h = 0; h < heads; h++) {
        if (layer->sizes[h] == ALLOCATE_EVERYTHING) {
            fputs(" all", stream);
        } else {
            fprintf(stream, " %lld", (long long)layer->sizes[h]);
        }
    }
    fputc('\n', stream);
}

static enum status print_layers(FILE *stream, const struct allocate_results *r) {
    fprintf(stream, "\nlayer  density  KL alone  kind and size\n");
    for (int64_t l = 0; l < r->allocation->layer_count; l++) {
        const struct allocate_layer *layer = &r->allocation->layers[l];
        char *text = NULL;
        fprintf(stream, "%5lld  %7.4f  %8.5f  ", (long long)l, layer->density, layer->kl);
        if (layer->sizes) {
            print_sizes(stream, layer, r->heads);
            continue;
        }
        if (layer->rule.kind) TRY(rule_text(&layer->rule, &text));
        fprintf(stream, "%s\n", text ? text : "full");
        free(text);
    }
    return STATUS_OK;
}

static void print_bars(FILE *stream, const struct allocation *a) {
    double most = 0;
    for (int64_t l = 0; l < a->layer_count; l++) most = fmax(most, a->layers[l].density);
    fprintf(stream, "\ndensity by layer\n");
    for (int64_t l = 0; l < a->layer_count; l++) {
        int bar = (int)lround(a->layers[l].density / most * BAR_WIDTH);
        fprintf(stream, "%5lld  ", (long long)l);
        for (int i = 0; i < bar; i++) fputc('#', stream);
        fprintf(stream, " %.4f\n", a->layers[l].density);
    }
}

/* note: what stands at the line's end. */
static void print_figures(FILE *stream, const char *name, const struct allocate_figures *f, const char *note) {
    fprintf(stream, "%-16s %8.4f %10.5f", name, f->density, f->kl);
    if (isfinite(f->check_kl)) fprintf(stream, " %10.5f", f->check_kl);
    if (isfinite(f->check_kl) && isfinite(f->check_error)) fprintf(stream, " ±%-8.2g", f->check_error);
    fprintf(stream, "  %s\n", note);
}

/* The uniform students within the budget, best first. */
static void print_uniforms(FILE *stream, const struct allocate_results *r) {
    const struct allocation *a = r->allocation;
    int64_t last = -1;
    for (int shown = 0; shown < UNIFORMS_SHOWN; shown++) {
        int64_t best = -1;
        for (size_t u = 0; u < a->uniform_count; u++) {
            const struct allocate_figures *f = &a->uniforms[u].figures,
                                          *b = best < 0 ? NULL : &a->uniforms[best].figures;
            const struct allocate_figures *before = last < 0 ? NULL : &a->uniforms[last].figures;
            bool by_density = r->options->by_density;
            double loss = by_density ? f->kl : f->density, past = !before      ? -1
                                                                  : by_density ? before->kl
                                                                               : before->density;
            if (!a->uniforms[u].within || loss < past || (loss == past && (int64_t)u <= last)) continue;
            if (!b || loss < (by_density ? b->kl : b->density)) best = (int64_t)u;
        }
        if (best < 0) return;
        print_figures(stream, shown == 0 ? "best uniform" : "uniform", &a->uniforms[best].figures,
                      a->uniforms[best].text);
        last = best;
    }
}

enum status allocate_print(FILE *stream, const struct allocate_results *r) {
    const struct allocation *a = r->allocation;
    fprintf(stream, "teacher  %s\n", r->teacher);
    fprintf(stream, "budget   %s at most %g, at %lld tokens\n", r->options->by_density ? "density" : "KL",
            r->options->budget, (long long)r->length);
    fprintf(stream, "data     %lld windows to search on, %lld apart to check; %lld students measured, untrained\n",
            (long long)a->search_windows, (long long)a->check_windows, (long long)a->evaluations);
    TRY(print_layers(stream, r));
    print_bars(stream, a);
    fprintf(stream, "\n%-16s %8s %10s %10s\n", "whole model", "density", "KL", a->check_windows > 0 ? "KL apart" : "");
    print_figures(stream, "allocation", &a->figures, "as above");
    fprintf(stream, "%-16s %8s %10.5f\n", "  layers added", "", a->predicted_kl);
    if (a->best_uniform < 0) fprintf(stream, "best uniform     none is within the budget\n");
    print_uniforms(stream, r);
    return STATUS_OK;
}

/* --- for programs --------------------------------------------------------------------------------------------------
 */

static json_t *number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static void add_figures(json_t *object, const struct allocate_figures *f) {
    json_object_set_new(object, "density", number(f->density));
    json_object_set_new(object, "kl", number(f->kl));
    json_object_set_new(object, "check_kl", number(f->check_kl));
    json_object_set_new(object, "check_kl_error", number(f->check_error));
}

static json_t *layer_json(const struct allocate_layer *layer, int64_t index, int64_t heads) {
    json_t *object = json_object(), *options = json_object(), *sizes = json_array();
    json_object_set_new(object, "layer", json_integer(index));
    json_object_set_new(object, "kind", json_string(layer->rule.kind ? layer->rule.kind : "full"));
    for (size_t i = 0; i < layer->rule.option_count; i++) {
        const struct config_option *option = &layer->rule.options[i];
        json_t *words = json_array();
        for (size_t w = 0; w < option->count; w++) json_array_append_new(words, json_string(option->words[w]));
        json_object_set_new(options, option->key, words);
    }
    for (int64_t h = 0; layer->sizes && h < heads; h++) {
        bool all = layer->sizes[h] == ALLOCATE_EVERYTHING;
        json_array_append_new(sizes, all ? json_null() : json_integer(layer->sizes[h]));
    }
    json_object_set_new(object, "options", options);
    if (layer->sizes) json_object_set(object, "sizes_by_head", sizes);
    json_decref(sizes);
    json_object_set_new(object, "density", number(layer->density));
    json_object_set_new(object, "kl_alone", number(layer->kl));
    return object;
}

enum status allocate_json(const struct allocate_results *r, char **text) {
    const struct allocation *a = r->allocation;
    json_t *root = json_object(), *layers = json_array(), *uniforms = json_array();
    json_object_set_new(root, "teacher", json_string(r->teacher));
    json_object_set_new(root, "budget", json_string(r->options->by_density ? "density" : "kl"));
    json_object_set_new(root, "at_most", json_real(r->options->budget));
    json_object_set_new(root, "length", json_integer(r->length));
    json_object_set_new(root, "search_windows", json_integer(a->search_windows));
    json_object_set_new(root, "check_windows", json_integer(a->check_windows));
    json_object_set_new(root, "evaluations", json_integer(a->evaluations));
    add_figures(root, &a->figures);
    json_object_set_new(root, "predicted_kl", number(a->predicted_kl));
    for (int64_t l = 0; l < a->layer_count; l++) json_array_append_new(layers, layer_json(&a->layers[l], l, r->heads));
    json_object_set_new(root, "layers", layers);
    for (size_t u = 0; u < a->uniform_count; u++) {
        json_t *uniform = json_object();
        json_object_set_new(uniform, "candidate", json_string(a->uniforms[u].text));
        add_figures(uniform, &a->uniforms[u].figures);
        json_object_set_new(uniform, "within", json_boolean(a->uniforms[u].within));
        json_object_set_new(uniform, "best", json_boolean((int64_t)u == a->best_uniform));
        json_array_append_new(uniforms, uniform);
    }
    json_object_set_new(root, "uniform", uniforms);
    json_object_set_new(root, "recipe", json_string(r->recipe));
    char *dump = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (!dump) return error_set(STATUS_MEMORY, "allocate: no memory for the results as JSON");
    enum status status = memory_format(text, "%s\n", dump);
    free(dump);
    return status;
}
