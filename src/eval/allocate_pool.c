/* What every layer may be, and the best of it if divergences added up; see allocate_internal.h. */
#include "base/memory.h"
#include "eval/allocate_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Mixtures by head are made for students of these densities, and of the budget. */
static const double mixture_densities[] = {0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5};
enum { MIXTURES = sizeof mixture_densities / sizeof *mixture_densities + 1 };

static struct search_option option_of(bool by_density, double density, double kl, double share) {
    double cost = isnan(kl) ? HUGE_VAL : kl;
    return by_density ? (struct search_option){density * share, cost} : (struct search_option){cost, density * share};
}

enum status allocator_choose_heads(const struct allocator *a, size_t f, bool by_density, double budget, size_t *code) {
    const struct family *family = &a->families[f];
    size_t heads = (size_t)(a->layers * a->heads), rungs = a->full ? family->count : family->count - 1;
    struct search_option *options = NULL;
    struct search_slot *slots = NULL;
    size_t *choice = NULL;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new(heads * rungs, sizeof *options, "sizes of heads", &options));
    TRY_GOTO(done, memory_new(heads, sizeof *slots, "heads", &slots));
    TRY_GOTO(done, memory_new(heads, sizeof *choice, "heads", &choice));
    for (size_t n = 0; n < heads; n++) {
        slots[n] = (struct search_slot){options + n * rungs, rungs};
        for (size_t r = 0; r < rungs; r++) {
            double density = family_density(a, family, r), kl = a->head_kl[f][n * family->count + r];
            options[n * rungs + r] = option_of(by_density, density, kl, 1 / (double)heads);
        }
    }
    TRY_GOTO(done, search_choose(slots, heads, budget, choice));
    for (int64_t l = 0; l < a->layers; l++) {
        size_t *layer = code_layer(a, code, l);
        layer[0] = a->candidate_count + f;
        memcpy(layer + 1, choice + l * a->heads, (size_t)a->heads * sizeof *layer);
        code_reduce(a, layer);
        code_settle(a, layer);
    }
done:
    free(options);
    free(slots);
    free(choice);
    return status;
}

enum status allocator_choose_layers(const struct allocator *a, double budget, size_t *code) {
    size_t total = 0, used = 0;
    struct search_option *options = NULL;
    struct search_slot *slots = NULL;
    size_t *choice = NULL;
    enum status status = STATUS_OK;
    for (int64_t l = 0; l < a->layers; l++) total += a->pools[l].count;
    TRY_GOTO(done, memory_new(total, sizeof *options, "options of layers", &options));
    TRY_GOTO(done, memory_new((size_t)a->layers, sizeof *slots, "layers", &slots));
    TRY_GOTO(done, memory_new((size_t)a->layers, sizeof *choice, "layers", &choice));
    for (int64_t l = 0; l < a->layers; l++) {
        const struct layer_pool *pool = &a->pools[l];
        slots[l] = (struct search_slot){options + used, pool->count};
        for (size_t o = 0; o < pool->count; o++) {
            const struct layer_option *from = &pool->options[o];
            options[used++] = option_of(a->options->by_density, from->density, from->kl, 1 / (double)a->layers);
        }
    }
    TRY_GOTO(done, search_choose(slots, (size_t)a->layers, budget, choice));
    for (int64_t l = 0; l < a->layers; l++) {
        memcpy(code_layer(a, code, l), a->pools[l].options[choice[l]].code, a->code_width * sizeof *code);
    }
done:
    free(options);
    free(slots);
    free(choice);
    return status;
}

enum status pool_add(const struct allocator *a, struct layer_pool *pool, const size_t *layer_code, double density,
                     double kl) {
    size_t at = 0;
    struct layer_option option = {.density = density, .kl = kl};
    for (size_t o = 0; o < pool->count; o++) {
        if (memcmp(pool->options[o].code, layer_code, a->code_width * sizeof *layer_code) == 0) return STATUS_OK;
    }
    TRY(memory_new(a->code_width, sizeof *option.code, "an option of a layer", &option.code));
    memcpy(option.code, layer_code, a->code_width * sizeof *layer_code);
    enum status status = memory_grow(&pool->options, pool->count + 1, sizeof *pool->options, "options of a layer");
    if (status != STATUS_OK) {
        free(option.code);
        return status;
    }
    while (at < pool->count && (pool->options[at].density < density ||
                                (pool->options[at].density == density && !(pool->options[at].kl > kl))))
        at++;
    memmove(pool->options + at + 1, pool->options + at, (pool->count - at) * sizeof *pool->options);
    pool->options[at] = option;
    pool->count++;
    return STATUS_OK;
}

/* What a lighter or equal option is at least as good as is no choice. */
static void drop_dominated(struct layer_pool *pool) {
    size_t kept = 0;
    for (size_t o = 0; o < pool->count; o++) {
        const struct layer_option *option = &pool->options[o];
        if (isnan(option->kl) || (kept > 0 && option->kl >= pool->options[kept - 1].kl)) {
            free(option->code);
        } else {
            pool->options[kept++] = *option;
        }
    }
    pool->count = kept;
}

void pools_free(struct layer_pool *pools, int64_t count) {
    for (int64_t l = 0; pools && l < count; l++) {
        for (size_t o = 0; o < pools[l].count; o++) free(pools[l].options[o].code);
        free(pools[l].options);
    }
    free(pools);
}

static enum status add_candidates(struct allocator *a, int64_t layer, size_t *code) {
    struct layer_pool *pool = &a->pools[layer];
    memset(code, 0, a->code_width * sizeof *code);
    for (size_t c = 0; c < a->candidate_count; c++) {
        code[0] = c;
        TRY(pool_add(a, pool, code, a->densities[c], a->alone_kl[(size_t)layer * a->candidate_count + c]));
    }
    code[0] = FORM_FULL;
    return a->full ? pool_add(a, pool, code, 1, 0) : STATUS_OK;
}

/* mixtures: [count, student_width]; every layer of them is measured alone and added to its layer's pool. */
static enum status add_mixtures(struct allocator *a, size_t *mixtures, size_t count, size_t *codes) {
    double kl[MIXTURES];
    for (int64_t l = 0; l < a->layers; l++) {
        for (size_t m = 0; m < count; m++) {
            size_t *code = codes + m * a->student_width;
            code_fill_full(a, code);
            memcpy(code_layer(a, code, l), code_layer(a, mixtures + m * a->student_width, l),
                   a->code_width * sizeof *code);
        }
        TRY(allocator_measure(a, &a->search, codes, count, kl, NULL, NULL));
        for (size_t m = 0; m < count; m++) {
            const size_t *layer = code_layer(a, mixtures + m * a->student_width, l);
            if (layer[0] != FORM_FULL) TRY(pool_add(a, &a->pools[l], layer, code_density(a, layer), kl[m]));
        }
    }
    return STATUS_OK;
}

static enum status mix_heads(struct allocator *a, size_t family, size_t *mixtures, size_t *codes) {
    size_t count = 0;
    for (int m = 0; m < MIXTURES; m++) {
        if (m == MIXTURES - 1 && !a->options->by_density) continue;
        double density = m == MIXTURES - 1 ? a->options->budget : mixture_densities[m];
        enum status status = allocator_choose_heads(a, family, true, density, mixtures + count * a->student_width);
        if (status == STATUS_NOT_FOUND) {
            error_clear(); /* sizes of this family are larger */
            continue;
        }
        TRY(status);
        count++;
    }
    return add_mixtures(a, mixtures, count, codes);
}

enum status allocator_make_pools(struct allocator *a) {
    size_t *mixtures = NULL, *codes = NULL;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new(MIXTURES * a->student_width, sizeof *mixtures, "mixtures of heads", &mixtures));
    TRY_GOTO(done, memory_new(MIXTURES * a->student_width, sizeof *codes, "students' codes", &codes));
    for (int64_t l = 0; l < a->layers; l++) TRY_GOTO(done, add_candidates(a, l, codes));
    if (a->family_count > 0) allocator_start_progress(a, "mixtures", a->layers * (int64_t)a->family_count * MIXTURES);
    for (size_t f = 0; f < a->family_count; f++) TRY_GOTO(done, mix_heads(a, f, mixtures, codes));
    if (a->family_count > 0) allocator_end_progress(a);
    for (int64_t l = 0; l < a->layers && status == STATUS_OK; l++) {
        drop_dominated(&a->pools[l]);
        if (a->pools[l].count > 0) continue;
        status = error_set(STATUS_NONFINITE, "allocate: layer %lld: no candidate's KL is finite", (long long)l);
    }
done:
    free(mixtures);
    free(codes);
    return status;
}
