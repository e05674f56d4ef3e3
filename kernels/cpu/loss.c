/* Divergence and cross-entropy of rows of logits, with gradients; log-softmax. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

/* Of one row at one temperature; e_s = exp((s − max s)/temperature), e_t likewise. A factor of 0 with −inf counts as 0.
 */
struct row_sums {
    double student, teacher; /* Σ e_s, Σ e_t */
    double forward;          /* Σ e_t · ((t − max t) − (s − max s))/temperature */
    double reverse;          /* Σ e_s · ((s − max s) − (t − max t))/temperature */
    double surprise;         /* Σ e_s · (s − max s)/temperature */
};

struct row {
    const real *student, *teacher; /* teacher may be NULL */
    real student_max, teacher_max;
    int64_t width;
};

/* Partial sums over this many elements are kept in `real`, their sum in double. */
enum { SUM_BLOCK = 512 };

/* keep, when not NULL: receives e_s; it may be the row itself. */
static void sum_student(const struct row *row, real inverse, bool surprise, real *keep, struct row_sums *sums) {
    const real centre = row->student_max;
    for (int64_t first = 0; first < row->width; first += SUM_BLOCK) {
        int64_t n = row->width - first < SUM_BLOCK ? row->width - first : SUM_BLOCK;
        const real *s = row->student + first;
        real total = 0, weighted = 0;
        if (surprise) {
#pragma omp simd reduction(+ : weighted)
            for (int64_t i = 0; i < n; i++) {
                real x = (s[i] - centre) * inverse, e = real_exp(x);
                weighted += e > 0 ? e * x : 0;
            }
        }
        if (keep) {
            real *out = keep + first;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < n; i++) {
                real e = real_exp((s[i] - centre) * inverse);
                total += e;
                out[i] = e;
            }
        } else {
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < n; i++) total += real_exp((s[i] - centre) * inverse);
        }
        sums->student += (double)total;
        sums->surprise += (double)weighted;
    }
}

static void sum_both(const struct row *row, real inverse, bool reverse, real *keep, struct row_sums *sums) {
    const real student_max = row->student_max, teacher_max = row->teacher_max;
    for (int64_t first = 0; first < row->width; first += SUM_BLOCK) {
        int64_t n = row->width - first < SUM_BLOCK ? row->width - first : SUM_BLOCK;
        const real *s = row->student + first, *t = row->teacher + first;
        real student = 0, teacher = 0, forward = 0, backward = 0;
        if (reverse) {
#pragma omp simd reduction(+ : backward)
            for (int64_t i = 0; i < n; i++) {
                real x = (s[i] - student_max) * inverse, y = (t[i] - teacher_max) * inverse;
                real es = real_exp(x);
                backward += es > 0 ? es * (x - y) : 0;
            }
        }
        real unkept[SUM_BLOCK], *out = keep ? keep + first : unkept;
#pragma omp simd reduction(+ : student, teacher, forward)
        for (int64_t i = 0; i < n; i++) {
            real x = (s[i] - student_max) * inverse, y = (t[i] - teacher_max) * inverse;
            real es = real_exp(x), et = real_exp(y);
            student += es;
            teacher += et;
            forward += et > 0 ? et * (y - x) : 0;
            out[i] = es;
        }
        sums->student += (double)student;
        sums->teacher += (double)teacher;
        sums->forward += (double)forward;
        sums->reverse += (double)backward;
    }
}

/* The same as write_gradient at temperature 1, from the e_s that `gradient` holds. */
static void finish_gradient(const struct row *row, const struct row_sums *sums, double kl, double ce, real *gradient) {
    const real teacher_max = row->teacher_max, of_q = (real)((kl + ce) / sums->student), *t = row->teacher;
    const int64_t width = row->width;
    if (kl != 0) {
        const real of_p = (real)(kl / sums->teacher);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) gradient[i] = of_q * gradient[i] - of_p * real_exp(t[i] - teacher_max);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < width; i++) gradient[i] *= of_q;
    }
}

/* gradient = kl · (q − p) + ce · q1, q and p at the temperature, q1 at 1. */
static void write_gradient(const struct row *row, const struct row_sums *tempered, const struct row_sums *plain,
                           real inverse, double kl, double ce, real *gradient) {
    const real student_max = row->student_max, teacher_max = row->teacher_max;
    const real *s = row->student, *t = row->teacher;
    const int64_t width = row->width;
    if (kl != 0) {
        const real of_q = (real)(kl / tempered->student), of_p = (real)(kl / tempered->teacher);
        const real of_plain = ce != 0 ? (real)(ce / plain->student) : 0;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            real x = s[i] - student_max;
            real g = of_q * real_exp(x * inverse) - of_p * real_exp((t[i] - teacher_max) * inverse);
            gradient[i] = g + of_plain * real_exp(x);
        }
    } else {
        const real of_plain = ce != 0 ? (real)(ce / plain->student) : 0;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) gradient[i] = of_plain * real_exp(s[i] - student_max);
    }
}

static int64_t first_equal(const real *x, real value, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (x[i] == value) return i;
    }
    return n;
}

static void store(struct tensor t, int64_t r, double value) {
    if (tensor_present(t)) real_data(t)[r] = (real)value;
}

static void ignore_row(const struct loss_rows *a, int64_t r, int64_t width) {
    const struct tensor outputs[] = {a->kl, a->reverse_kl, a->ce, a->teacher_ce, a->agree, a->entropy};
    for (size_t i = 0; i < sizeof outputs / sizeof outputs[0]; i++) store(outputs[i], r, 0);
    if (tensor_present(a->gradient))
        memset(real_data(a->gradient) + r * a->gradient.stride[0], 0, (size_t)width * sizeof(real));
}

/* Sums at temperature 1, for the outputs that have no temperature. */
static void sum_plain(const struct loss_rows *a, const struct row *row, struct row_sums *sums) {
    bool both = tensor_present(a->reverse_kl) || tensor_present(a->teacher_ce);
    if (both) sum_both(row, 1, tensor_present(a->reverse_kl), NULL, sums);
    if (!both || tensor_present(a->entropy)) {
        sums->student = 0;
        sum_student(row, 1, tensor_present(a->entropy), NULL, sums);
    }
}

static void loss_row(const struct loss_rows *a, int64_t r) {
    const double temperature = a->temperature;
    const real inverse = (real)(1 / temperature);
    int64_t width = a->student.shape[1];
    int64_t target = tensor_present(a->targets) ? ((const int32_t *)a->targets.data)[r] : -1;
    if (tensor_present(a->targets) && target < 0) {
        ignore_row(a, r, width);
        return;
    }
    struct row row = {.student = real_data(a->student) + r * a->student.stride[0], .width = width};
    row.student_max = real_row_max(row.student, width);
    if (tensor_present(a->teacher)) {
        row.teacher = real_data(a->teacher) + r * a->teacher.stride[0];
        row.teacher_max = real_row_max(row.teacher, width);
    }
    if (tensor_present(a->agree)) {
        int64_t best = first_equal(row.student, row.student_max, width);
        store(a->agree, r, best == first_equal(row.teacher, row.teacher_max, width));
    }
    const double target_logit = target >= 0 ? (double)(row.student[target] - row.student_max) : 0;
    struct row_sums tempered = {0}, plain = {0};
    real *gradient = tensor_present(a->gradient) ? real_data(a->gradient) + r * a->gradient.stride[0] : NULL;
    bool divergence = tensor_present(a->kl) || (gradient && a->kl_weight != 0);
    bool eval = tensor_present(a->reverse_kl) || tensor_present(a->entropy) || tensor_present(a->teacher_ce);
    /* At temperature 1 the exponentials of the sums serve the gradient too: they wait in its place. */
    bool keep = gradient && inverse == 1 && !eval;
    if (divergence) sum_both(&row, inverse, false, keep ? gradient : NULL, &tempered);
    if (divergence && inverse == 1 && !eval)
        plain = tempered;
    else if (keep)
        sum_student(&row, 1, false, gradient, &plain);
    else
        sum_plain(a, &row, &plain);

    double log_student = log(plain.student), log_teacher = log(plain.teacher);
    if (divergence) {
        double kl = tempered.forward / tempered.teacher + log(tempered.student / tempered.teacher);
        store(a->kl, r, temperature * temperature * kl);
    }
    store(a->reverse_kl, r, plain.reverse / plain.student + log_teacher - log_student);
    store(a->entropy, r, log_student - plain.surprise / plain.student);
    if (target >= 0) {
        store(a->ce, r, log_student - target_logit);
        if (row.teacher) store(a->teacher_ce, r, log_teacher - (double)(row.teacher[target] - row.teacher_max));
    }
    if (!gradient) return;
    double kl_factor = a->scale * a->kl_weight * temperature, ce_factor = a->scale * a->ce_weight;
    if (keep)
        finish_gradient(&row, &plain, kl_factor, ce_factor, gradient);
    else
        write_gradient(&row, &tempered, &plain, inverse, kl_factor, ce_factor, gradient);
    if (ce_factor != 0) gradient[target] -= (real)ce_factor;
}

enum status NAME(loss_rows)(const struct ops *ops, const struct loss_rows *a) {
    TRY(check_loss_rows(ops, a));
    int64_t rows = a->student.shape[0];
    if (a->student.shape[1] == 0) return STATUS_OK;
#pragma omp parallel for num_threads(ops->device->threads)                                                             \
    schedule(dynamic) if (tensor_count(a->student) > PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows; r++) loss_row(a, r);
    return STATUS_OK;
}

enum status NAME(log_softmax)(const struct ops *ops, struct tensor x, struct tensor y) {
    TRY(check_log_softmax(ops, x, y));
    int64_t rows = x.shape[0], width = x.shape[1];
#pragma omp parallel for num_threads(ops->device->threads) if (tensor_count(x) > PARALLEL_ELEMENTS)
    for (int64_t r = 0; r < rows; r++) {
        struct row row = {.student = real_data(x) + r * x.stride[0], .width = width};
        row.student_max = real_row_max(row.student, width);
        struct row_sums sums = {0};
        sum_student(&row, 1, false, NULL, &sums);
        const real shift = row.student_max, log_sum = (real)log(sums.student);
        real *out = real_data(y) + r * y.stride[0];
#pragma omp simd
        for (int64_t i = 0; i < width; i++) out[i] = (row.student[i] - shift) - log_sum;
    }
    return STATUS_OK;
}
