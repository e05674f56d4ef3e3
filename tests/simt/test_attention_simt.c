/* Attention of the CUDA table, executed on the host: against the naive reference in double, in fp32 and in bf16, with
 * dq by a kernel of its own and by atomics, in several orders of threads; decoding against the CPU table.
 *
 * Tolerances. fp32: as for the CPU table, 2e-5 of an array's largest element. bf16, whose unit roundoff is u = 2^-9: the
 * reference gets the rounded inputs, scores and sums are fp32, so log_sums keep fp32's tolerance. What is rounded besides
 * is each weight A_ij (or ds_ij) before its product, and the result: an output's error is at most
 * u (Σ_j |A_ij v_j| + |o_i|), that is 2u of the largest where terms do not cancel, and signed coefficients or gradients
 * (Σ_j ds_ij = 0 in every row) make |terms| a few times |sum|. delta = do·o/c is made from the rounded o: u Σ_d |do o| / |c|.
 * 8u = 2^-6 of the largest element covers that with room for little; a mistake of one element is far larger. */
#include "base/memory.h"
#include "ops/attention_case.h"
#include "simt/simt.h"
#include "support/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double TOLERANCE_F32 = 2e-5, TOLERANCE_BF16 = 0x1p-6;

static const struct ops *open_table(const char *name, bool deterministic) {
    const struct ops *ops;
    CHECK_OK(ops_open(name, &(struct ops_options){.deterministic = deterministic}, &ops));
    return ops;
}

static void check_log_sums(const struct attention_case *row, const struct attention_arrays *expected,
                           const struct attention_arrays *found, double tolerance) {
    for (int64_t n = 0; n < row->batch * row->heads * row->count * row->length; n++) {
        const double a = expected->log_sums[n], b = found->log_sums[n];
        if (a != b && !(fabs(a - b) <= tolerance * fmax(1, fabs(a))))
            fail_msg("%s: log_sums[%lld]: expected %.9g, found %.9g", row->name, (long long)n, a, b);
    }
}

static void run_case(const struct ops *ops, const struct attention_case *row, uint64_t seed) {
    struct attention_arrays expected, found;
    const bool bf16 = ops->real == DTYPE_BF16;
    case_fill(row, seed, &expected);
    case_fill(row, seed, &found);
    if (bf16) {
        case_round(row, &expected);
        case_round(row, &found);
    }
    case_reference(row, &expected);
    case_run(ops, row, &found, true);
    const double factor = row->magnitude > 0 ? row->magnitude : 1;
    if (bf16) check_log_sums(row, &expected, &found, TOLERANCE_F32 * factor);
    case_compare(row, ops->name, &expected, &found, bf16 ? TOLERANCE_BF16 : TOLERANCE_F32 * factor);
    case_free(&expected);
    case_free(&found);
}

int main(int argc, char **argv) {
    const char *table = argc > 1 ? argv[1] : "cuda-f32";
    const struct ops *ops = open_table(table, argc > 2 ? atoi(argv[2]) : 1);
    int first = argc > 3 ? atoi(argv[3]) : 0, last = argc > 4 ? atoi(argv[4]) : attention_case_count;
    for (int n = first; n < last; n++) {
        if (attention_cases[n].length > 300) continue;
        fprintf(stderr, "%d %s\n", n, attention_cases[n].name);
        run_case(ops, &attention_cases[n], (uint64_t)n);
    }
    ops->close(ops);
}
