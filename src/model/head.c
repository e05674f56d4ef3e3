/* The head: logits, divergence and its gradient in row chunks of bounded memory; [N,V] never exists. */
#include "base/memory.h"
#include "model/internal.h"
#include "params/values.h"

#include <stdlib.h>
#include <string.h>

static const size_t default_budget = (size_t)256 << 20;
enum { ROW_OUTPUTS = 6 };

struct head {
    const struct model *teacher, *student;
    const struct ops *ops;
    struct head_options options;
    int64_t chunk; /* rows of logits at a time */
    void *block;
    size_t bytes;
    enum dtype logits;
    int64_t stride; /* of a row of logits: on a GPU a multiple of 64 elements, whatever V is, for its matrix products */
    struct tensor teacher_logits, student_logits; /* [chunk,V] in rows of `stride` */
    struct tensor targets;                        /* [N] I32 */
    struct tensor outputs[ROW_OUTPUTS];           /* [N]: kl, reverse_kl, ce, teacher_ce, agree, entropy */
    struct tensor sums;                           /* [ROW_OUTPUTS] F64 */
};

static const struct param *head_row(const struct model *model) {
    const struct param *row = params_find(&model->params, "head.weight");
    return row ? row : params_find(&model->params, "wte");
}

static void build(struct head *head, struct arena *arena) {
    int64_t v = head->student->config.vocabulary, n = head->options.rows;
    const enum dtype dtype = head->logits;
    if (head->teacher) head->teacher_logits = tensor_columns(arena_2d(arena, dtype, head->chunk, head->stride), 0, v);
    head->student_logits = tensor_columns(arena_2d(arena, dtype, head->chunk, head->stride), 0, v);
    head->targets = arena_1d(arena, DTYPE_I32, n);
    for (int i = 0; i < ROW_OUTPUTS; i++) {
        bool wanted = i == 0 || i == 2 || head->options.statistics;
        head->outputs[i] = wanted ? arena_1d(arena, head->ops->statistic, n) : tensor_none();
    }
    head->sums = arena_1d(arena, DTYPE_F64, ROW_OUTPUTS);
}

static enum status prepare(const struct model *teacher, const struct model *student, const struct head_options *options,
                           struct head **out) {
    struct head *head = NULL;
    TRY(memory_new(1, sizeof *head, "the head", &head));
    *head = (struct head){.teacher = teacher, .student = student, .ops = student->params.ops, .options = *options};
    size_t budget = options->budget_bytes ? options->budget_bytes : default_budget;
    const int64_t vocabulary = student->config.vocabulary;
    head->logits = options->gradient ? head->ops->real : head->ops->statistic;
    head->stride = head->ops->host_memory ? vocabulary : (vocabulary + 63) / 64 * 64;
    size_t row = (size_t)head->stride * dtype_size(head->logits) * (teacher ? 2 : 1);
    head->chunk = (int64_t)(budget / row);
    if (head->chunk > options->rows) head->chunk = options->rows;
    if (head->chunk < 1) head->chunk = 1;
    /* Chunks of equal size waste nothing on a short last one. */
    int64_t chunks = (options->rows + head->chunk - 1) / head->chunk;
    if (chunks > 0) head->chunk = (options->rows + chunks - 1) / chunks;
    struct arena arena = arena_sizing();
    build(head, &arena);
    head->bytes = arena.peak;
    *out = head;
    return STATUS_OK;
}

enum status head_measure(const struct model *teacher, const struct model *student, const struct head_options *options,
                         size_t *bytes) {
    struct head *head = NULL;
    TRY(prepare(teacher, student, options, &head));
    *bytes = head->bytes;
    head_close(&head);
    return STATUS_OK;
}

enum status head_open(const struct model *teacher, const struct model *student, const struct head_options *options,
                      struct head **out) {
    enum status status = STATUS_OK;
    struct head *head = NULL;
    if (teacher && teacher->config.vocabulary != student->config.vocabulary) {
        status = error_set(STATUS_USAGE, "teacher and student: vocabularies of %lld and %lld ids differ",
                           (long long)teacher->config.vocabulary, (long long)student->config.vocabulary);
        goto done;
    }
    TRY_GOTO(done, prepare(teacher, student, options, &head));
    TRY_GOTO(done, head->ops->allocate(head->ops, head->bytes, &head->block));
    struct arena arena = arena_placing(head->block, head->bytes);
    build(head, &arena);
done:
    if (status != STATUS_OK) head_close(&head);
    *out = head;
    return status;
}

void head_close(struct head **out) {
    struct head *head = *out;
    if (!head) return;
    if (head->block) head->ops->release(head->ops, head->block);
    free(head);
    *out = NULL;
}

/* logits [count,V] = hidden [count,C]·Wᵀ. */
static enum status project(const struct model *model, struct tensor hidden, struct tensor logits) {
    const struct param *row = head_row(model);
    struct gemm gemm = {.a = hidden, .b = row->working, .c = logits, .transpose_b = true, .alpha = 1, .bf16 = model->bf16,
                        .constant_b = !row->owned || !tensor_present(row->grad)};
    return model->params.ops->gemm(model->params.ops, &gemm);
}

/* From d logits: d hidden, and the head's own gradient when it trains. */
static enum status project_backward(const struct model *model, struct tensor d_logits, struct tensor hidden,
                                    struct tensor d_hidden) {
    const struct ops *ops = model->params.ops;
    const struct param *row = head_row(model);
    struct gemm gemm = {.a = d_logits, .b = row->working, .c = d_hidden, .alpha = 1, .bf16 = model->bf16,
                        .constant_b = !row->owned || !tensor_present(row->grad)};
    TRY(ops->gemm(ops, &gemm));
    if (!row->trained) return STATUS_OK;
    struct gemm weight = {.a = d_logits, .b = hidden, .c = row->grad, .transpose_a = true, .alpha = 1, .accumulate = true,
                          .bf16 = model->bf16};
    return ops->gemm(ops, &weight);
}

static enum status chunk_loss(struct head *head, const struct head_loss *a, int64_t first, int64_t count) {
    const struct ops *ops = head->ops;
    bool taught = tensor_present(a->teacher_hidden);
    struct tensor student = tensor_rows(head->student_logits, 0, count), teacher = tensor_none(), rows[ROW_OUTPUTS];
    struct tensor hidden = tensor_rows(a->student_hidden, first, count);
    if (taught) {
        teacher = tensor_rows(head->teacher_logits, 0, count);
        TRY(project(head->teacher, tensor_rows(a->teacher_hidden, first, count), teacher));
    }
    TRY(project(head->student, hidden, student));
    for (int i = 0; i < ROW_OUTPUTS; i++) {
        bool needs_teacher = i == 0 || i == 1 || i == 3 || i == 4, needs_targets = i == 2 || i == 3;
        bool possible = (taught || !needs_teacher) && (a->targets || !needs_targets) && tensor_present(head->outputs[i]);
        rows[i] = possible ? tensor_rows(head->outputs[i], first, count) : tensor_none();
    }
    struct loss_rows loss = {
        .student = student, .teacher = teacher, .kl = rows[0], .reverse_kl = rows[1], .ce = rows[2], .teacher_ce = rows[3],
        .agree = rows[4], .entropy = rows[5], .temperature = a->temperature > 0 ? a->temperature : 1,
        .targets = a->targets ? tensor_rows(head->targets, first, count) : tensor_none(),
        .gradient = tensor_present(a->d_hidden) ? student : tensor_none(),
        .kl_weight = a->kl_weight, .ce_weight = a->ce_weight, .scale = a->scale,
    };
    TRY(ops->loss_rows(ops, &loss));
    if (!tensor_present(a->d_hidden)) return STATUS_OK;
    return project_backward(head->student, student, hidden, tensor_rows(a->d_hidden, first, count));
}

enum status head_load(struct head *head, const struct head_loss *a) {
    const int64_t n = a->student_hidden.shape[0];
    if (n > head->options.rows) {
        return error_set(STATUS_SHAPE, "head: expected at most %lld rows, found %lld", (long long)head->options.rows,
                         (long long)n);
    }
    if (tensor_present(a->d_hidden) && head->logits != head->ops->real) {
        return error_set(STATUS_FAILED, "head: opened without a gradient, asked for one");
    }
    return a->targets ? head->ops->upload(head->ops, tensor_rows(head->targets, 0, n), a->targets) : STATUS_OK;
}

enum status head_run(struct head *head, const struct head_loss *a) {
    const struct ops *ops = head->ops;
    const int64_t n = a->student_hidden.shape[0];
    for (int i = 0; i < ROW_OUTPUTS; i++) {
        if (tensor_present(head->outputs[i])) TRY(ops->fill(ops, head->outputs[i], 0));
    }
    for (int64_t first = 0; first < n; first += head->chunk) {
        TRY(chunk_loss(head, a, first, n - first < head->chunk ? n - first : head->chunk));
    }
    TRY(ops->fill(ops, head->sums, 0));
    for (int i = 0; i < ROW_OUTPUTS; i++) {
        if (!tensor_present(head->outputs[i])) continue;
        TRY(ops->sum(ops, tensor_rows(head->outputs[i], 0, n), tensor_rows(head->sums, i, 1)));
    }
    return STATUS_OK;
}

enum status head_read(struct head *head, const struct head_loss *a, struct head_sums *sums) {
    const int64_t n = a->student_hidden.shape[0];
    double found[ROW_OUTPUTS] = {0};
    TRY(head->ops->download(head->ops, head->sums, found));
    sums->kl += found[0];
    sums->reverse_kl += found[1];
    sums->ce += found[2];
    sums->teacher_ce += found[3];
    sums->agree += found[4];
    sums->entropy += found[5];
    for (int64_t i = 0; i < n; i++) sums->rows += !a->targets || a->targets[i] >= 0;
    return STATUS_OK;
}

enum status head_loss(struct head *head, const struct head_loss *a, struct head_sums *sums) {
    TRY(head_load(head, a));
    TRY(head_run(head, a));
    return head_read(head, a, sums);
}

static enum status read_output(const struct head *head, struct tensor output, double *out) {
    if (!out) return STATUS_OK;
    if (!tensor_present(output)) return error_set(STATUS_FAILED, "head: this per-row value was not asked for");
    return values_read(head->ops, output, out);
}

enum status head_read_rows(struct head *head, const struct head_rows *rows) {
    double *const wanted[ROW_OUTPUTS] = {rows->kl, rows->reverse_kl, rows->ce, rows->teacher_ce, rows->agree, rows->entropy};
    for (int i = 0; i < ROW_OUTPUTS; i++) TRY(read_output(head, head->outputs[i], wanted[i]));
    return STATUS_OK;
}

/* out [rows,V] = the first rows of the student's logits; host: room for the rows as they lie on the device. */
static enum status read_logits(const struct head *head, int64_t rows, double *host, float *out) {
    const int64_t v = head->student->config.vocabulary, stride = head->stride;
    const struct ops *ops = head->ops;
    const struct tensor lines = tensor_2d(head->student_logits.data, head->logits, rows, stride);
    if (head->logits == DTYPE_F32 && stride == v) return ops->download(ops, lines, out);
    TRY(values_read(ops, lines, host));
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < v; i++) out[r * v + i] = (float)host[r * stride + i];
    }
    return STATUS_OK;
}

enum status head_logits(struct head *head, struct tensor hidden, int64_t first, int64_t count, bool log_probabilities,
                        float *out) {
    const struct ops *ops = head->ops;
    const int64_t v = head->student->config.vocabulary;
    double *host = NULL;
    enum status status = STATUS_OK;
    if (head->logits != DTYPE_F32 || head->stride != v) {
        TRY(memory_new((size_t)(head->chunk * head->stride), sizeof *host, "logits", &host));
    }
    for (int64_t done = 0; done < count; done += head->chunk) {
        const int64_t rows = count - done < head->chunk ? count - done : head->chunk;
        struct tensor logits = tensor_rows(head->student_logits, 0, rows);
        TRY_GOTO(done, project(head->student, tensor_rows(hidden, first + done, rows), logits));
        if (log_probabilities) TRY_GOTO(done, ops->log_softmax(ops, logits, logits));
        TRY_GOTO(done, read_logits(head, rows, host, out + done * v));
    }
done:
    free(host);
    return status;
}
