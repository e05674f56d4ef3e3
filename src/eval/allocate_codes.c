/* Students as numbers; see allocate_internal.h. */
#include "eval/allocate_internal.h"

#include "base/memory.h"

#include <string.h>

void code_fill_full(const struct allocator *a, size_t *code) {
    memset(code, 0, a->student_width * sizeof *code);
    for (int64_t l = 0; l < a->layers; l++) *code_layer(a, code, l) = FORM_FULL;
}

size_t *code_layer(const struct allocator *a, size_t *code, int64_t layer) {
    return code + (size_t)layer * a->code_width;
}

static const struct family *family_of(const struct allocator *a, const size_t *layer_code) {
    bool has = layer_code[0] != FORM_FULL && layer_code[0] >= a->candidate_count;
    return has ? &a->families[layer_code[0] - a->candidate_count] : NULL;
}

void code_settle(const struct allocator *a, size_t *layer_code) {
    const struct family *family = family_of(a, layer_code);
    if (!family) return;
    for (int64_t h = 1; h < a->heads; h++) {
        if (layer_code[1 + h] != layer_code[1]) return;
    }
    size_t rung = layer_code[1];
    layer_code[0] = rung + 1 == family->count ? FORM_FULL : family->candidates[rung];
    memset(layer_code + 1, 0, (size_t)a->heads * sizeof *layer_code);
}

static void write_heads(const struct allocator *a, size_t family, size_t rung, size_t *layer_code) {
    layer_code[0] = a->candidate_count + family;
    for (int64_t h = 0; h < a->heads; h++) layer_code[1 + h] = rung;
}

size_t code_divide(const struct allocator *a, size_t *layer_code) {
    size_t form = layer_code[0];
    if (family_of(a, layer_code)) return form - a->candidate_count;
    if (form == FORM_FULL) {
        if (a->family_count == 0 || !a->full) return SIZE_MAX;
        write_heads(a, 0, a->families[0].count - 1, layer_code);
        return 0;
    }
    for (size_t f = 0; f < a->family_count; f++) {
        for (size_t r = 0; r + 1 < a->families[f].count; r++) {
            if (a->families[f].candidates[r] != form) continue;
            write_heads(a, f, r, layer_code);
            return f;
        }
    }
    return SIZE_MAX;
}

static int64_t heads_at(const struct allocator *a, const size_t *layer_code, size_t rung) {
    int64_t heads = 0;
    for (int64_t h = 0; h < a->heads; h++) heads += layer_code[1 + h] == rung;
    return heads;
}

static size_t sizes_in(const struct allocator *a, const size_t *layer_code, const struct family *family) {
    size_t sizes = 0;
    for (size_t r = 0; r < family->count; r++) sizes += heads_at(a, layer_code, r) > 0;
    return sizes;
}

bool code_in_form(const struct allocator *a, const size_t *layer_code) {
    const struct family *family = family_of(a, layer_code);
    return !family || sizes_in(a, layer_code, family) <= family->form->most;
}

void code_reduce(const struct allocator *a, size_t *layer_code) {
    while (!code_in_form(a, layer_code)) {
        const struct family *family = family_of(a, layer_code);
        size_t below = SIZE_MAX, victim = 0,
               heir = 0; /* the size with the fewest heads goes to the next smaller one in use */
        int64_t fewest = INT64_MAX;
        for (size_t r = 0; r < family->count; r++) {
            int64_t heads = heads_at(a, layer_code, r);
            if (heads == 0) continue;
            if (below != SIZE_MAX && heads < fewest) {
                fewest = heads;
                victim = r;
                heir = below;
            }
            below = r;
        }
        for (int64_t h = 0; h < a->heads; h++) {
            if (layer_code[1 + h] == victim) layer_code[1 + h] = heir;
        }
    }
}

double family_density(const struct allocator *a, const struct family *family, size_t rung) {
    return rung + 1 == family->count ? 1 : a->densities[family->candidates[rung]];
}

double code_density(const struct allocator *a, const size_t *layer_code) {
    const struct family *family = family_of(a, layer_code);
    if (layer_code[0] == FORM_FULL) return 1;
    if (!family) return a->densities[layer_code[0]];
    double sum = 0;
    for (int64_t h = 0; h < a->heads; h++) sum += family_density(a, family, layer_code[1 + h]);
    return sum / (double)a->heads;
}

enum status code_rule(const struct allocator *a, const size_t *layer_code, int64_t layer,
                      struct config_attention *out) {
    const struct family *family = family_of(a, layer_code);
    *out = (struct config_attention){.first = layer, .last = layer};
    if (layer_code[0] == FORM_FULL) return STATUS_OK;
    if (family) return family_rule(family, layer_code + 1, a->heads, layer, out);
    return rule_copy(&a->candidates[layer_code[0]], layer, out);
}

enum status code_sizes(const struct allocator *a, const size_t *layer_code, int64_t **sizes) {
    const struct family *family = family_of(a, layer_code);
    *sizes = NULL;
    if (!family) return STATUS_OK;
    TRY(memory_new((size_t)a->heads, sizeof **sizes, "sizes of heads", sizes));
    for (int64_t h = 0; h < a->heads; h++) (*sizes)[h] = family->sizes[layer_code[1 + h]];
    return STATUS_OK;
}
