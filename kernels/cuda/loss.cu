/* Divergence and cross-entropy of rows of logits (bf16 or float), with gradients; log-softmax. A block a row.
 * A row is read twice and its gradient written once. The first reading finds the maxima and, under the maximum so far, every sum at once
 * (online softmax, Milakov and Gimelshein 2018, with the cross terms of two distributions): when a maximum rises, the sums are brought
 * to it. The second reading writes the gradient. Rows begin anywhere (an odd vocabulary): packs of 16 bytes are those of memory, and a
 * row's first and last may be incomplete. */
#include "kernels/cuda/rows.cuh"

#include <climits>

namespace {

constexpr int threads = 512;

/* bf16 logits have 8 bits: the product with log2 e may be rounded. */
template <class T> __device__ inline float exponential(float x) {
    if constexpr (std::is_same<T, float>::value)
        return expf(x);
    else
        return exp2f(x * 1.44269504f);
}

/* x · ratio for sums that may be infinite already: nothing of them is left where the ratio is 0. NaN stays. */
__device__ inline float shrink(float x, float ratio) { return ratio == 0 && x == x ? 0 : x * ratio; }

/* ---- one row in packs of memory ------------------------------------------------------------------------------------- */

/* A row of `width` elements in packs of T. `lead`: elements of the first pack before the row. aligned: packs may be read as such. */
template <class T> struct row_frame {
    int64_t width, packs;
    int lead;
    bool aligned;
    __device__ row_frame(const T *row, int64_t width, bool aligned) : width(width), aligned(aligned) {
        constexpr int W = pack_width<T>;
        lead = aligned ? static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T)) : 0;
        packs = (width + lead + W - 1) / W;
    }
    /* The first element of pack p; below 0 for an incomplete first one. */
    __device__ int64_t first(int64_t p) const { return p * pack_width<T> - lead; }
    __device__ bool whole(int64_t at) const { return aligned && at >= 0 && at + pack_width<T> <= width; }
    /* Elements at … of `row`; −inf outside. */
    __device__ void load(const T *row, int64_t at, float (&to)[pack_width<T>]) const {
        if (whole(at)) {
            load_pack(row + at, to);
            return;
        }
#pragma unroll
        for (int i = 0; i < pack_width<T>; i++) to[i] = at + i >= 0 && at + i < width ? to_float(row[at + i]) : -INFINITY;
    }
    __device__ void store(T *row, int64_t at, const float (&from)[pack_width<T>]) const {
        if (whole(at)) {
            store_pack(row + at, from);
            return;
        }
#pragma unroll
        for (int i = 0; i < pack_width<T>; i++) {
            if (at + i >= 0 && at + i < width) row[at + i] = from_float<T>(from[i]);
        }
    }
};

/* Whether a pack of memory holds the same elements of both rows; NULL: no row. */
__device__ inline bool same_frame(const void *a, const void *b) {
    return !a || !b || reinterpret_cast<uintptr_t>(a) % 16 == reinterpret_cast<uintptr_t>(b) % 16;
}

/* ---- the sums of a row ------------------------------------------------------------------------------------------------ */

/* The largest element so far, and where it is first. It begins below any logit, and far enough from the least finite number that
 * differences, over any temperature in use too, stay finite. */
struct peak {
    float value = -1e30f;
    int index = INT_MAX;

    /* Whether it rises to that of the pack at `at`. */
    template <int W> __device__ bool raise(const float (&x)[W], int64_t at) {
        float most = x[0];
#pragma unroll
        for (int i = 1; i < W; i++) most = fmaxf(most, x[i]);
        if (!(most > value)) return false;
        value = most;
#pragma unroll
        for (int i = W - 1; i >= 0; i--) index = x[i] == most ? static_cast<int>(at + i) : index;
        return true;
    }
};

/* Of one row at one temperature; e_s = exp((s − max s)/temperature), e_t likewise. A factor of 0 with −inf counts as 0. */
enum { OF_STUDENT, OF_TEACHER, FORWARD, REVERSE, SURPRISE, SUMS };
/* [OF_STUDENT] Σ e_s, [OF_TEACHER] Σ e_t, [FORWARD] Σ e_t·((t − max t) − (s − max s))/temperature, [REVERSE] Σ e_s·(−the same),
 * [SURPRISE] Σ e_s·(s − max s)/temperature. */
struct row_sums {
    float at[SUMS] = {};

    /* To new maxima: the old ones less the new ones over the temperature are `student` and `teacher`, at most 0. */
    template <class T, bool TEACHER, bool CROSS, bool EVAL> __device__ void rebase(float student, float teacher) {
        const float of_s = exponential<T>(student), of_t = TEACHER ? exponential<T>(teacher) : 1;
        if constexpr (CROSS) at[FORWARD] = shrink(at[FORWARD] + at[OF_TEACHER] * (teacher - student), of_t);
        if constexpr (EVAL && TEACHER) at[REVERSE] = shrink(at[REVERSE] + at[OF_STUDENT] * (student - teacher), of_s);
        if constexpr (EVAL) at[SURPRISE] = shrink(at[SURPRISE] + at[OF_STUDENT] * student, of_s);
        at[OF_STUDENT] *= of_s;
        if constexpr (TEACHER) at[OF_TEACHER] *= of_t;
    }

    /* One element of each side, less the maxima and over the temperature. */
    template <class T, bool TEACHER, bool CROSS, bool EVAL> __device__ void add(float student, float teacher) {
        const float of_s = exponential<T>(student);
        at[OF_STUDENT] += of_s;
        if constexpr (TEACHER) {
            const float of_t = exponential<T>(teacher);
            at[OF_TEACHER] += of_t;
            if constexpr (CROSS) at[FORWARD] += of_t > 0 ? of_t * (teacher - student) : 0;
            if constexpr (EVAL) at[REVERSE] += of_s > 0 ? of_s * (student - teacher) : 0;
        }
        if constexpr (EVAL) at[SURPRISE] += of_s > 0 ? of_s * student : 0;
    }
};

/* TEMPERED: the divergence has a temperature of its own beside 1. EVAL: also what only evaluations ask for. */
template <class T, bool TEACHER, bool TEMPERED, bool EVAL> struct row_state {
    peak student, teacher;
    row_sums plain, tempered; /* tempered: only with TEMPERED */

    __device__ void rebase(float student_fall, float teacher_fall, float inverse) {
        plain.template rebase<T, TEACHER, TEACHER && !TEMPERED, EVAL>(student_fall, teacher_fall);
        if constexpr (TEMPERED) tempered.template rebase<T, true, true, false>(student_fall * inverse, teacher_fall * inverse);
    }

    template <int W> __device__ void add(const float (&s)[W], const float (&t)[W], int64_t at, float inverse) {
        const float student_was = student.value, teacher_was = teacher.value;
        bool risen = student.raise(s, at);
        if constexpr (TEACHER) risen = teacher.raise(t, at) || risen;
        if (risen) rebase(student_was - student.value, teacher_was - teacher.value, inverse);
#pragma unroll
        for (int i = 0; i < W; i++) {
            const float x = s[i] - student.value, y = TEACHER ? t[i] - teacher.value : 0;
            plain.template add<T, TEACHER, TEACHER && !TEMPERED, EVAL>(x, y);
            if constexpr (TEMPERED) tempered.template add<T, true, true, false>(x * inverse, y * inverse);
        }
    }

    __device__ void gather_peak(peak &own) {
        const float most = block_max<threads>(own.value);
        own.index = -block_max<threads>(own.value == most ? -own.index : -INT_MAX);
        own.value = most;
    }

    /* Every thread gets the whole row's. All threads must call it. */
    __device__ void gather(float inverse) {
        const float student_was = student.value, teacher_was = teacher.value;
        gather_peak(student);
        if constexpr (TEACHER) gather_peak(teacher);
        rebase(student_was - student.value, teacher_was - teacher.value, inverse);
        block_sums<threads>(plain.at);
        if constexpr (TEMPERED) block_sums<threads>(tempered.at);
    }
};

/* ---- the rows of the head ----------------------------------------------------------------------------------------------- */

template <class T> struct loss_arguments {
    const T *student, *teacher; /* [rows,width], strided rows; teacher NULL without one */
    const int32_t *targets;     /* [rows] or NULL */
    T *gradient;                /* [rows,width], strided rows, or NULL; may be student */
    float *kl, *reverse_kl, *ce, *teacher_ce, *agree, *entropy; /* [rows] or NULL */
    int64_t rows, width, of_student, of_teacher, of_gradient; /* of_…: elements from row to row */
    float inverse; /* 1/temperature */
    double temperature, of_kl, of_ce; /* factors of the gradient */
};

__device__ inline void put(float *to, int64_t row, double value) {
    if (to) to[row] = static_cast<float>(value);
}

/* Every output of a row that counts in nothing is 0. */
template <class T> __device__ void ignore_row(const loss_arguments<T> &a, int64_t row) {
    if (threadIdx.x == 0) {
        float *const outputs[] = {a.kl, a.reverse_kl, a.ce, a.teacher_ce, a.agree, a.entropy};
        for (float *output : outputs) put(output, row, 0);
    }
    if (!a.gradient) return;
    T *gradient = a.gradient + row * a.of_gradient;
    const row_frame<T> frame(gradient, a.width, true);
    const float zero[pack_width<T>] = {};
    for (int64_t p = threadIdx.x; p < frame.packs; p += threads) frame.store(gradient, frame.first(p), zero);
}

/* The figures of a row, by one thread. student, teacher: the target's logits. */
template <class T, bool TEACHER, bool TEMPERED, bool EVAL>
__device__ void put_figures(const loss_arguments<T> &a, int64_t row, const row_state<T, TEACHER, TEMPERED, EVAL> &state,
                            float student, float teacher) {
    const float *plain = state.plain.at, *tempered = TEMPERED ? state.tempered.at : plain;
    const double log_student = log(static_cast<double>(plain[OF_STUDENT]));
    const double log_teacher = TEACHER ? log(static_cast<double>(plain[OF_TEACHER])) : 0;
    if (a.targets) put(a.ce, row, log_student - static_cast<double>(student - state.student.value));
    if constexpr (EVAL) put(a.entropy, row, log_student - static_cast<double>(plain[SURPRISE]) / plain[OF_STUDENT]);
    if constexpr (TEACHER) {
        const double ratio = static_cast<double>(tempered[OF_STUDENT]) / tempered[OF_TEACHER];
        put(a.kl, row, a.temperature * a.temperature * (static_cast<double>(tempered[FORWARD]) / tempered[OF_TEACHER] + log(ratio)));
        if (a.targets) put(a.teacher_ce, row, log_teacher - static_cast<double>(teacher - state.teacher.value));
        put(a.agree, row, state.student.index == state.teacher.index);
        if constexpr (EVAL) {
            put(a.reverse_kl, row, static_cast<double>(plain[REVERSE]) / plain[OF_STUDENT] + log_teacher - log_student);
        }
    }
}

/* gradient = of_kl · (q − p) + of_ce · (q1 − [target]), q and p at the temperature, q1 at 1. */
template <class T, bool TEACHER, bool TEMPERED, bool EVAL>
__device__ void put_gradient(const loss_arguments<T> &a, int64_t row, const row_state<T, TEACHER, TEMPERED, EVAL> &state,
                             const row_frame<T> &frame, int64_t target) {
    constexpr int W = pack_width<T>;
    const float *plain = state.plain.at, *tempered = TEMPERED ? state.tempered.at : plain;
    const bool divergence = TEACHER && a.of_kl != 0;
    const float of_ce = static_cast<float>(a.of_ce);
    float of_q = 0, of_p = 0, of_plain = 0;
    if (divergence) of_p = static_cast<float>(a.of_kl / tempered[OF_TEACHER]);
    if (divergence && TEMPERED) of_q = static_cast<float>(a.of_kl / tempered[OF_STUDENT]);
    if (!TEMPERED || a.of_ce != 0) of_plain = static_cast<float>(((divergence && !TEMPERED ? a.of_kl : 0) + a.of_ce) / plain[OF_STUDENT]);
    const T *student = a.student + row * a.of_student, *teacher = a.teacher + row * a.of_teacher;
    T *gradient = a.gradient + row * a.of_gradient;
    for (int64_t p = threadIdx.x; p < frame.packs; p += threads) {
        const int64_t at = frame.first(p);
        float s[W], t[W] = {};
        frame.load(student, at, s);
        if (divergence) frame.load(teacher, at, t);
#pragma unroll
        for (int i = 0; i < W; i++) {
            const float x = s[i] - state.student.value;
            float g = of_plain != 0 ? of_plain * exponential<T>(x) : of_plain;
            if (TEMPERED && divergence) g += of_q * exponential<T>(x * a.inverse);
            if (divergence) g -= of_p * exponential<T>((t[i] - state.teacher.value) * (TEMPERED ? a.inverse : 1));
            s[i] = at + i == target ? g - of_ce : g;
        }
        frame.store(gradient, at, s);
    }
}

template <class T, bool TEACHER, bool TEMPERED, bool EVAL>
__global__ void __launch_bounds__(threads) loss_rows_kernel(loss_arguments<T> a) {
    constexpr int W = pack_width<T>;
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const int64_t target = a.targets ? a.targets[row] : -1;
        if (a.targets && target < 0) {
            ignore_row(a, row);
            continue;
        }
        const T *student = a.student + row * a.of_student, *teacher = TEACHER ? a.teacher + row * a.of_teacher : nullptr;
        const T *gradient = a.gradient ? a.gradient + row * a.of_gradient : nullptr;
        const row_frame<T> frame(student, a.width, same_frame(student, teacher) && same_frame(student, gradient));
        row_state<T, TEACHER, TEMPERED, EVAL> state;
        for (int64_t p = threadIdx.x; p < frame.packs; p += threads) {
            float s[W], t[W];
            frame.load(student, frame.first(p), s);
            if constexpr (TEACHER) frame.load(teacher, frame.first(p), t);
            state.add(s, t, frame.first(p), a.inverse);
        }
        /* Before the barriers of gather: the gradient may take the student's place. */
        float student_logit = 0, teacher_logit = 0;
        if (threadIdx.x == 0 && target >= 0) {
            student_logit = to_float(student[target]);
            if constexpr (TEACHER) teacher_logit = to_float(teacher[target]);
        }
        state.gather(a.inverse);
        if (threadIdx.x == 0) put_figures(a, row, state, student_logit, teacher_logit);
        if (a.gradient) put_gradient(a, row, state, frame, target);
    }
}

/* y [rows,width] = log softmax(x) row by row, of_x, of_y elements from row to row; y may be x. */
template <class T>
__global__ void __launch_bounds__(threads) log_softmax_kernel(const T *x, int64_t of_x, T *y, int64_t of_y, int64_t rows, int64_t width) {
    constexpr int W = pack_width<T>;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const T *from = x + row * of_x;
        T *to = y + row * of_y;
        const row_frame<T> frame(from, width, same_frame(from, to));
        row_state<T, false, false, false> state;
        float elements[W];
        for (int64_t p = threadIdx.x; p < frame.packs; p += threads) {
            frame.load(from, frame.first(p), elements);
            state.add(elements, elements, frame.first(p), 1);
        }
        state.gather(1);
        const float shift = state.student.value, log_sum = logf(state.plain.at[OF_STUDENT]);
        for (int64_t p = threadIdx.x; p < frame.packs; p += threads) {
            frame.load(from, frame.first(p), elements);
#pragma unroll
            for (int i = 0; i < W; i++) elements[i] = (elements[i] - shift) - log_sum;
            frame.store(to, frame.first(p), elements);
        }
    }
}

template <class T> loss_arguments<T> arguments_of(const struct loss_rows *a) {
    loss_arguments<T> r = {};
    const auto statistic = [](struct tensor t) { return tensor_present(t) ? data_of<float>(t) : nullptr; };
    r.student = data_of<const T>(a->student);
    r.teacher = tensor_present(a->teacher) ? data_of<const T>(a->teacher) : nullptr;
    r.targets = tensor_present(a->targets) ? data_of<const int32_t>(a->targets) : nullptr;
    r.gradient = tensor_present(a->gradient) ? data_of<T>(a->gradient) : nullptr;
    r.kl = statistic(a->kl);
    r.reverse_kl = statistic(a->reverse_kl);
    r.ce = statistic(a->ce);
    r.teacher_ce = statistic(a->teacher_ce);
    r.agree = statistic(a->agree);
    r.entropy = statistic(a->entropy);
    r.rows = a->student.shape[0];
    r.width = a->student.shape[1];
    r.of_student = a->student.stride[0];
    r.of_teacher = a->teacher.stride[0];
    r.of_gradient = a->gradient.stride[0];
    r.inverse = static_cast<float>(1 / a->temperature);
    r.temperature = a->temperature;
    r.of_kl = a->scale * a->kl_weight * a->temperature;
    r.of_ce = a->scale * a->ce_weight;
    return r;
}

template <class T> enum status launch_loss(const struct ops *ops, const struct loss_rows *a) {
    const loss_arguments<T> r = arguments_of<T>(a);
    const bool eval = r.reverse_kl || r.entropy;
    const bool teacher = r.kl || r.reverse_kl || r.teacher_ce || r.agree || (r.gradient && r.teacher && r.of_kl != 0);
    const bool tempered = teacher && r.inverse != 1 && (r.kl || r.gradient);
    const auto start = [&](auto kernel) {
        return device_launch(ops, "loss_rows", kernel, grid_over(r.rows, 1), threads, 0, r);
    };
    if (!teacher) return eval ? start(loss_rows_kernel<T, false, false, true>) : start(loss_rows_kernel<T, false, false, false>);
    if (tempered) return eval ? start(loss_rows_kernel<T, true, true, true>) : start(loss_rows_kernel<T, true, true, false>);
    return eval ? start(loss_rows_kernel<T, true, false, true>) : start(loss_rows_kernel<T, true, false, false>);
}

template <class T> enum status launch_log_softmax(const struct ops *ops, struct tensor x, struct tensor y) {
    return device_launch(ops, "log_softmax", log_softmax_kernel<T>, grid_over(x.shape[0], 1), threads, 0, data_of<const T>(x),
                         x.stride[0], data_of<T>(y), y.stride[0], x.shape[0], x.shape[1]);
}

enum status check_width(const char *operation, int64_t width) {
    if (width < INT32_MAX) return STATUS_OK;
    return error_set(STATUS_SHAPE, "%s: a row has %lld elements, expected fewer than %d", operation,
                     static_cast<long long>(width), INT32_MAX);
}

} // namespace

enum status cuda_loss_rows(const struct ops *ops, const struct loss_rows *a) {
    TRY(check_loss_rows(ops, a));
    TRY(check_width("loss_rows", a->student.shape[1]));
    if (a->student.shape[1] == 0) return STATUS_OK;
    return a->student.dtype == DTYPE_BF16 ? launch_loss<bf16>(ops, a) : launch_loss<float>(ops, a);
}

enum status cuda_log_softmax(const struct ops *ops, struct tensor x, struct tensor y) {
    TRY(check_log_softmax(ops, x, y));
    TRY(check_width("log_softmax", x.shape[1]));
    return x.dtype == DTYPE_BF16 ? launch_log_softmax<bf16>(ops, x, y) : launch_log_softmax<float>(ops, x, y);
}
