/* See stage.h. */
#include "train/stage.h"

#include "base/log.h"
#include "base/memory.h"

#include <stdlib.h>

enum { AUTO_TOKENS = 2048, AUTO_TOKENS_GPU = 16384 };
static const double memory_share = 0.9; /* of what is free; the rest is for HDF5, MPI and the libraries' own */

enum status stage_part(const struct config_stage *stage, int rank, int size, int64_t *first, int64_t *count) {
    int64_t each = stage->batch / size, larger = stage->batch % size;
    *count = each + (rank < larger ? 1 : 0);
    *first = rank * each + (rank < larger ? rank : larger);
    if (each > 0) return STATUS_OK;
    return error_set(STATUS_USAGE, "stages.%s.batch: expected at least a sequence for each of the %d ranks, found %lld",
                     stage->name, size, (long long)stage->batch);
}

static int64_t largest_divisor(int64_t part, int64_t limit) {
    int64_t divisor = limit < part ? limit : part;
    while (divisor > 1 && part % divisor != 0) divisor--;
    return divisor > 0 ? divisor : 1;
}

static enum status measure_with(const struct config_stage *stage, const struct model *teacher,
                                const struct model *student, int64_t part, size_t travelling,
                                struct stage_memory *memory) {
    const struct ops *ops = student->params.ops;
    bool align = stage->objective == OBJECTIVE_ATTENTION;
    int64_t micro = memory->micro_batch, rows = micro * stage->length;
    struct plan_options forward = {.batch = micro, .length = stage->length};
    struct plan_options train = {.batch = micro,
                                 .length = stage->length,
                                 .train = !align,
                                 .recompute = memory->recompute && !align,
                                 .align = align};
    struct head_options head = {.rows = rows, .gradient = true};
    const struct params *own = &student->params;
    memory->optimizer = tensor_bytes(own->grads) + tensor_bytes(own->m) + tensor_bytes(own->v);
    memory->parameters = params_bytes(own) - memory->optimizer + (teacher ? params_bytes(&teacher->params) : 0);
    memory->optimizer += travelling;
    memory->teacher_plan = memory->head = 0;
    if (teacher) TRY(plan_measure(teacher, &forward, &memory->teacher_plan));
    TRY(plan_measure(student, &train, &memory->student_plan));
    if (!align) {
        TRY(head_measure(teacher, student, &head, &memory->head));
        memory->head += (size_t)(rows * student->config.width) * dtype_size(ops->real); /* d hidden */
    }
    memory->batches = (size_t)(part * stage->length) * 3 * sizeof(int32_t);
    memory->total = memory->parameters + memory->optimizer + memory->teacher_plan + memory->student_plan +
                    memory->head + memory->batches;
    return STATUS_OK;
}

struct stage_choice stage_choice_of(const struct config *config) {
    return (struct stage_choice){.micro_batch = config->train.micro_batch, .recompute = config->train.recompute};
}

enum status stage_measure(const struct stage_choice *choice, const struct config_stage *stage,
                          const struct model *teacher, const struct model *student, int64_t part, size_t travelling,
                          double available, struct stage_memory *memory) {
    const int64_t wanted = choice->micro_batch,
                  tokens = student->params.ops->host_memory ? AUTO_TOKENS : AUTO_TOKENS_GPU;
    int64_t micro = largest_divisor(part, wanted > 0 ? wanted : (tokens + stage->length - 1) / stage->length);
    *memory = (struct stage_memory){0};
    for (;; micro = largest_divisor(part, micro - 1)) {
        for (int recompute = 0; recompute < 2; recompute++) {
            if (recompute == 0 && choice->recompute == RECOMPUTE_LAYER) continue;
            if (recompute == 1 && choice->recompute == RECOMPUTE_NONE) continue;
            memory->micro_batch = micro;
            memory->recompute = recompute == 1;
            TRY(measure_with(stage, teacher, student, part, travelling, memory));
            memory->fits = available <= 0 || (double)memory->total <= memory_share * available;
            if (memory->fits) return STATUS_OK;
        }
        if (micro == 1 || wanted > 0) return STATUS_OK;
    }
}

enum status stage_too_large(const struct stage_choice *choice, const struct config_stage *stage,
                            const struct stage_memory *memory, double available) {
    char need[16], found[16];
    bytes_text((double)memory->total, need);
    bytes_text(available, found);
    return error_set(STATUS_MEMORY,
                     "stage %s: needs %s a rank at micro_batch %lld%s, %s are free; shorten its length%s", stage->name,
                     need, (long long)memory->micro_batch, memory->recompute ? " with recompute" : "", found,
                     choice->micro_batch > 0 ? " or lower train.micro_batch" : "");
}

enum status stage_flops(const struct config_stage *stage, const struct model *teacher, const struct model *student,
                        double *flops) {
    struct attention_cost cost;
    double teacher_forward = 0, student_forward = 0;
    if (teacher) TRY(model_cost(teacher, stage->length, &cost, &teacher_forward));
    TRY(model_cost(student, stage->length, &cost, &student_forward));
    double tokens = (double)stage->batch * (double)stage->length;
    if (stage->objective == OBJECTIVE_ATTENTION) {
        *flops = tokens * (teacher_forward + 3 * cost.flops * (double)student->config.layers);
        return STATUS_OK;
    }
    int64_t trained = 0;
    for (int64_t i = 0; i < student->params.count; i++) {
        const struct param *row = &student->params.rows[i];
        if (row->trained && row->rank == 2) trained += tensor_count(row->value);
    }
    /* Backward: the gradients of activations cost as much as the forward pass, those of weights 2 FLOPs a token and
     * weight. */
    *flops = tokens * (teacher_forward + 2 * student_forward + 2.0 * (double)trained);
    return STATUS_OK;
}

static enum status open_plans(struct distill *d, const struct stage_memory *memory) {
    const struct config_stage *stage = d->stage;
    const struct ops *ops = d->student->params.ops;
    bool align = stage->objective == OBJECTIVE_ATTENTION;
    int64_t rows = memory->micro_batch * stage->length, width = d->student->config.width;
    struct plan_options forward = {.batch = memory->micro_batch, .length = stage->length};
    struct plan_options train = {.batch = memory->micro_batch,
                                 .length = stage->length,
                                 .train = !align,
                                 .recompute = memory->recompute && !align,
                                 .align = align};
    struct head_options head = {.rows = rows, .gradient = true};
    void *block = NULL;
    if (d->teacher) TRY(plan_open(d->teacher, &forward, &d->teacher_plan));
    TRY(plan_open(d->student, &train, &d->student_plan));
    if (align) return STATUS_OK;
    TRY(head_open(d->teacher, d->student, &head, &d->head));
    TRY(ops->allocate(ops, (size_t)(rows * width) * dtype_size(ops->real), &block));
    d->d_hidden = tensor_2d(block, ops->real, rows, width);
    return STATUS_OK;
}

/* The backward pass in as many parts as there are moments at which buckets are complete. */
static enum status find_parts(struct distill *d) {
    const struct division *division = &d->student->params.division;
    const struct gradients *g = &d->gradients;
    const bool one = !g->carrier || !d->config->parallel.overlap;
    int64_t above = PARAMS_TOP;
    TRY(memory_new((size_t)g->count + 1, sizeof *d->parts, "parts of the backward pass", &d->parts));
    for (int64_t place = 0; place < g->count && !one; place++) {
        const int64_t lowest = division->buckets[g->order[place]].layer;
        /* Before the pass's own start nothing is complete. */
        if (lowest >= above || lowest > d->student->config.layers) continue;
        d->parts[d->part_count++] = (struct backward_part){.above = above, .lowest = lowest};
        above = lowest;
    }
    if (d->part_count == 0 || above > -1)
        d->parts[d->part_count++] = (struct backward_part){.above = above, .lowest = -1};
    return STATUS_OK;
}

enum status stage_open(struct distill *d, const struct stage_memory *memory) {
    enum status status = STATUS_OK;
    d->micro_batch = memory->micro_batch;
    TRY_GOTO(done, stage_part(d->stage, comm_rank(d->comm), comm_size(d->comm), &d->part_first, &d->part));
    size_t tokens = (size_t)(d->part * d->stage->length);
    TRY_GOTO(done, memory_new(tokens, sizeof *d->ids, "a batch", &d->ids));
    TRY_GOTO(done, memory_new(tokens, sizeof *d->targets, "a batch", &d->targets));
    TRY_GOTO(done, memory_new(tokens, sizeof *d->start, "a batch", &d->start));
    TRY_GOTO(done, memory_new((size_t)distill_sums_count(d), sizeof *d->sums, "a step's sums", &d->sums));
    TRY_GOTO(done,
             memory_new((size_t)d->student->config.layers, sizeof *d->denominators, "layers' norms", &d->denominators));
    TRY_GOTO(done, gradients_open(&d->student->params, d->config, d->comm, d->gpu, &d->gradients));
    TRY_GOTO(done, find_parts(d));
    TRY_GOTO(done, optimizer_open(&d->student->params, d->comm, &d->optimizer));
    TRY_GOTO(done, open_plans(d, memory));
done:
    if (status != STATUS_OK) stage_close(d);
    return status;
}

void stage_close(struct distill *d) {
    if (!d) return;
    if (tensor_present(d->d_hidden)) d->student->params.ops->release(d->student->params.ops, d->d_hidden.data);
    d->d_hidden = tensor_none();
    for (int phase = 0; d->student && phase < PHASES; phase++) {
        d->student->params.ops->forget(d->student->params.ops, &d->recordings[phase]);
    }
    for (int64_t p = 0; p < d->part_count; p++)
        d->student->params.ops->forget(d->student->params.ops, &d->parts[p].recording);
    free(d->parts);
    d->parts = NULL;
    d->part_count = 0;
    gradients_close(&d->gradients);
    head_close(&d->head);
    plan_close(&d->student_plan);
    plan_close(&d->teacher_plan);
    optimizer_close(&d->optimizer);
    free(d->ids);
    free(d->targets);
    free(d->start);
    free(d->sums);
    free(d->denominators);
    d->ids = d->targets = d->start = NULL;
    d->sums = d->denominators = NULL;
}
