/* The exactness ladder of whole models on the GPU, every kind: full coverage, no leak, decoding as in parallel, lengths
 * and odd texts. */
#include "gpu/gpu.h"

#include "model/ladder_case.h"
#include "support/check.h"
#include "support/scratch.h"

static const int64_t lengths[] = {7, 33, 129, LADDER_POSITIONS};

static void climb_all(const char *table) {
    const struct ops *ops = NULL;
    const char *text = scratch_path("ladder.h5");
    ladder_text(text);
    CHECK_OK(ops_open(table, &(struct ops_options){.deterministic = true}, &ops));
    for (size_t m = 0; m < ladder_model_count; m++)
        for (size_t s = 0; s < ladder_student_count; s++)
            for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
                /* One model for each precision, one length. */
                const bool slow = gpu_quick() && (lengths[l] != 33 || m != (ops->real == DTYPE_BF16 ? 0 : 1));
                if (!slow && gpu_chose(ladder_students[s].name))
                    ladder_climb(ops, text, &ladder_models[m], &ladder_students[s], lengths[l], true);
            }
    ops->close(ops);
}
static void climb_f32(void **state) {
    (void)state;
    climb_all("cuda-f32");
}
static void climb_bf16(void **state) {
    (void)state;
    climb_all("cuda");
}

int gpu_test_model(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(climb_f32), cmocka_unit_test(climb_bf16)};
    return cmocka_run_group_tests_name("model", tests, scratch_make, scratch_remove);
}
