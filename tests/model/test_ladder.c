/* The exactness ladder of every kind at awkward lengths, widths and numbers of heads, on texts of several documents. */
#include "model/ladder_case.h"
#include "support/check.h"
#include "support/scratch.h"

#include "attention/attention.h"

enum { LONG = LADDER_POSITIONS /* once is enough */ };

static const int64_t lengths[] = {1, 7, 31, 33, 129, LONG};

static void test_ladder(void **state) {
    (void)state;
    const struct ops *ops = NULL;
    const char *text = scratch_path("ladder.h5");
    ladder_text(text);
    CHECK_OK(ops_open("cpu", &(struct ops_options){.threads = 2}, &ops));
    for (size_t m = 0; m < ladder_model_count; m++) {
        for (size_t s = 0; s < ladder_student_count; s++) {
            if (!kind_find(ladder_students[s].kind)) fail_msg("kind %s: expected it in the registry", ladder_students[s].kind);
            for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
                if ((lengths[l] == LONG && m != 1) || !check_dealt((int64_t)(s + l), (int64_t)m)) continue;
                ladder_climb(ops, text, &ladder_models[m], &ladder_students[s], lengths[l], false);
            }
        }
    }
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ladder)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
