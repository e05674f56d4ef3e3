/* Steps 2 and 3: from the tables to a student, and moves that are measured on the whole of it; see allocate_internal.h.
 */
#include "base/memory.h"
#include "eval/allocate_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Divergences do not quite add up: under a budget of KL, starts are made for these multiples of it. */
static const double kl_multiples[] = {0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5};
enum { KL_MULTIPLES = sizeof kl_multiples / sizeof *kl_multiples };

struct search_measured allocator_weigh(const struct allocator *a, double density, double kl) {
    return a->options->by_density ? (struct search_measured){density, kl} : (struct search_measured){kl, density};
}

static void show_best(struct allocator *a, const struct search_measured *at, char text[96]) {
    bool by_density = a->options->by_density;
    snprintf(text, 96, "kl %.5f  density %.4f", by_density ? at->loss : at->weight, by_density ? at->weight : at->loss);
    a->detail = text;
}

static enum status measure_weighed(struct allocator *a, const size_t *codes, size_t count,
                                   struct search_measured *found) {
    double *kl = NULL, *density = NULL;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new(count, sizeof *kl, "figures of students", &kl));
    TRY_GOTO(done, memory_new(count, sizeof *density, "figures of students", &density));
    TRY_GOTO(done, allocator_measure(a, &a->search, codes, count, kl, NULL, density));
    for (size_t i = 0; i < count; i++) found[i] = allocator_weigh(a, density[i], kl[i]);
done:
    free(kl);
    free(density);
    return status;
}

/* --- step 2 ------------------------------------------------------------------------------------------------------ */

/* A start that the budget does not allow is left out. */
static enum status keep_start(enum status status, size_t *count) {
    if (status == STATUS_OK) ++*count;
    if (status != STATUS_NOT_FOUND) return status;
    error_clear();
    return STATUS_OK;
}

/* codes: room for 1 + candidates + (1 + families)·KL_MULTIPLES students. */
static enum status list_starts(struct allocator *a, size_t *codes, size_t *count) {
    for (size_t c = 0; c < a->candidate_count; c++, ++*count) {
        size_t *code = codes + *count * a->student_width;
        memset(code, 0, a->student_width * sizeof *code);
        for (int64_t l = 0; l < a->layers; l++) *code_layer(a, code, l) = c;
    }
    if (a->full) code_fill_full(a, codes + (*count)++ * a->student_width);
    for (int m = 0; m < (a->options->by_density ? 1 : KL_MULTIPLES); m++) {
        double budget = a->options->budget * (a->options->by_density ? 1 : kl_multiples[m]);
        TRY(keep_start(allocator_choose_layers(a, budget, codes + *count * a->student_width), count));
        for (size_t f = 0; f < a->family_count; f++) {
            size_t *code = codes + *count * a->student_width;
            TRY(keep_start(allocator_choose_heads(a, f, a->options->by_density, budget, code), count));
        }
    }
    return STATUS_OK;
}

enum status allocator_start(struct allocator *a, size_t *code, struct search_measured *at) {
    size_t *codes = NULL, count = 0, best = 0;
    struct search_measured *found = NULL;
    size_t most = 1 + a->candidate_count + (1 + a->family_count) * KL_MULTIPLES;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new(most * a->student_width, sizeof *codes, "starts", &codes));
    TRY_GOTO(done, memory_new(most, sizeof *found, "starts", &found));
    TRY_GOTO(done, list_starts(a, codes, &count));
    allocator_start_progress(a, "starts", (int64_t)count);
    TRY_GOTO(done, measure_weighed(a, codes, count, found));
    allocator_end_progress(a);
    for (size_t s = 1; s < count; s++) {
        if (search_better(&found[s], &found[best], a->options->budget)) best = s;
    }
    memcpy(code, codes + best * a->student_width, a->student_width * sizeof *code);
    *at = found[best];
    if (!search_within(at->weight, a->options->budget)) {
        status = error_set(STATUS_USAGE,
                           "allocate: --%s: no choice of the candidates is within %g: the nearest found has %.6g",
                           a->options->by_density ? "density" : "kl", a->options->budget, at->weight);
    }
done:
    free(codes);
    free(found);
    return status;
}

/* --- step 3 ------------------------------------------------------------------------------------------------------ */

/* A neighbourhood: how states of the search become students. */
struct neighbourhood {
    struct allocator *a;
    size_t *code;       /* [student_width] the student that the moves start from */
    bool heads;         /* slots are heads of divided layers; else layers */
    size_t *slot_layer; /* [slots] */
    size_t *slot_head;  /* [slots] */
    size_t *counts;     /* [slots] */
    size_t slots;
    size_t *scratch; /* [student_width] */
};

static void apply(const struct neighbourhood *n, const size_t *state, size_t *code) {
    const struct allocator *a = n->a;
    memcpy(code, n->code, a->student_width * sizeof *code);
    for (size_t s = 0; s < n->slots; s++) {
        size_t *layer = code_layer(a, code, (int64_t)n->slot_layer[s]);
        if (n->heads) {
            layer[1 + n->slot_head[s]] = state[s];
        } else {
            memcpy(layer, a->pools[n->slot_layer[s]].options[state[s]].code, a->code_width * sizeof *layer);
        }
    }
}

static enum status measure_states(void *context, const size_t *states, size_t count, struct search_measured *found) {
    const struct neighbourhood *n = context;
    struct allocator *a = n->a;
    size_t *codes = NULL;
    TRY(memory_new(count * a->student_width, sizeof *codes, "students' codes", &codes));
    for (size_t i = 0; i < count; i++) apply(n, states + i * n->slots, codes + i * a->student_width);
    enum status status = measure_weighed(a, codes, count, found);
    free(codes);
    return status;
}

static bool states_allowed(void *context, const size_t *state) {
    const struct neighbourhood *n = context;
    apply(n, state, n->scratch);
    for (int64_t l = 0; l < n->a->layers; l++) {
        if (!code_in_form(n->a, code_layer(n->a, n->scratch, l))) return false;
    }
    return true;
}

/* Slots: the heads of every layer that has sizes by head, or can be written so. */
static void list_heads(struct neighbourhood *n, size_t *state) {
    const struct allocator *a = n->a;
    for (int64_t l = 0; l < a->layers; l++) {
        size_t *layer = code_layer(a, n->code, l), family = code_divide(a, layer);
        if (family == SIZE_MAX) continue;
        for (int64_t h = 0; h < a->heads; h++, n->slots++) {
            n->slot_layer[n->slots] = (size_t)l;
            n->slot_head[n->slots] = (size_t)h;
            n->counts[n->slots] = a->families[family].count - !a->full;
            state[n->slots] = layer[1 + h];
        }
    }
}

/* Slots: layers, with what their pools hold; what a layer is now is put there first. */
static enum status list_layers(struct neighbourhood *n, size_t *state) {
    struct allocator *a = n->a;
    for (int64_t l = 0; l < a->layers; l++) {
        struct layer_pool *pool = &a->pools[l];
        size_t *layer = code_layer(a, n->code, l), at = 0;
        TRY(pool_add(a, pool, layer, code_density(a, layer), NAN));
        while (memcmp(pool->options[at].code, layer, a->code_width * sizeof *layer) != 0) at++;
        n->slot_layer[n->slots] = (size_t)l;
        n->counts[n->slots] = pool->count;
        state[n->slots++] = at;
    }
    return STATUS_OK;
}

static enum status improve_in(struct neighbourhood *n, size_t *state, struct search_measured *at,
                              int64_t *evaluations) {
    struct allocator *a = n->a;
    n->slots = 0;
    if (n->heads) {
        list_heads(n, state);
    } else {
        TRY(list_layers(n, state));
    }
    const struct search_problem problem = {.slots = n->slots,
                                           .counts = n->counts,
                                           .reach = n->heads ? 1 : 2,
                                           .budget = a->options->budget,
                                           .additive_weight = a->options->by_density,
                                           .allowed = states_allowed,
                                           .measure = measure_states,
                                           .context = n,
                                           .evaluations = evaluations};
    TRY(search_improve(&problem, state, at));
    apply(n, state, n->scratch);
    memcpy(n->code, n->scratch, a->student_width * sizeof *n->code);
    for (int64_t l = 0; l < a->layers; l++) code_settle(a, code_layer(a, n->code, l));
    return STATUS_OK;
}

/* By heads, then by layers, until neither gains. */
static enum status alternate(struct neighbourhood *n, size_t *state, struct search_measured *at) {
    struct allocator *a = n->a;
    int64_t evaluations = a->options->evaluations;
    char text[96];
    int idle = 0;
    n->heads = a->family_count > 0;
    allocator_start_progress(a, "search", evaluations);
    while (idle < 2 && evaluations > 0) {
        struct search_measured before = *at;
        show_best(a, at, text);
        TRY(improve_in(n, state, at, &evaluations));
        idle = search_better(at, &before, a->options->budget) ? 0 : idle + 1;
        if (a->family_count == 0) break; /* there is one neighbourhood only */
        n->heads = !n->heads;
    }
    show_best(a, at, text);
    allocator_end_progress(a);
    a->detail = NULL;
    return STATUS_OK;
}

enum status allocator_improve(struct allocator *a, size_t *code, struct search_measured *at) {
    struct neighbourhood n = {.a = a, .code = code};
    size_t slots = (size_t)(a->layers * a->heads), *state = NULL;
    enum status status = STATUS_OK;
    TRY_GOTO(done, memory_new(slots, sizeof *n.slot_layer, "slots", &n.slot_layer));
    TRY_GOTO(done, memory_new(slots, sizeof *n.slot_head, "slots", &n.slot_head));
    TRY_GOTO(done, memory_new(slots, sizeof *n.counts, "slots", &n.counts));
    TRY_GOTO(done, memory_new(slots, sizeof *state, "slots", &state));
    TRY_GOTO(done, memory_new(a->student_width, sizeof *n.scratch, "a student's code", &n.scratch));
    status = alternate(&n, state, at);
done:
    free(n.slot_layer);
    free(n.slot_head);
    free(n.counts);
    free(n.scratch);
    free(state);
    return status;
}
