/* LoRA's start at singular vectors: of weights whose vectors are known, and its rows that never train. */
#include "support/check.h"

#include "model/model.h"

#include <math.h>

static const struct model_config config = {.type = MODEL_GPT2,
                                           .layers = 2,
                                           .heads = 2,
                                           .kv_heads = 2,
                                           .head_width = 9,
                                           .width = 18,
                                           .mlp_width = 20,
                                           .vocabulary = 11,
                                           .positions = 16,
                                           .norm_epsilon = 1e-5,
                                           .tied = true,
                                           .causal = true};

/* W [out,in] with one number in every column and at most one in a row: its right singular vectors are unit vectors, its
 * values the numbers' sizes, largest in column 5, then 2, then 11. */
static void set_weight(struct model *teacher, const char *name) {
    struct tensor w = params_find(&teacher->params, name)->value;
    int64_t out = w.shape[0], in = w.shape[1];
    for (int64_t i = 0; i < out * in; i++) ((float *)w.data)[i] = 0;
    for (int64_t c = 0; c < in; c++) {
        double size = c == 5 ? 9 : c == 2 ? 5 : c == 11 ? 3 : 0.5 - 0.01 * (double)c;
        ((float *)w.data)[(c * 7 + 3) % out * in + c] = (float)(c % 2 ? -size : size);
    }
}

static void check_start(const struct ops *ops, const char *pattern, bool fixed) {
    struct model teacher, student;
    char *patterns[] = {(char *)(uintptr_t)pattern};
    int64_t trained = 0;
    CHECK_OK(model_new(ops, &config, false, &teacher));
    CHECK_OK(model_initialise(&teacher, 3));
    set_weight(&teacher, "h.1.attn.qkv.weight");
    set_weight(&teacher, "h.1.attn.out.weight");
    CHECK_OK(model_student(&teacher, "test", NULL, 0, patterns, 1, true, 4, &student));
    CHECK_OK(params_train(&student.params, patterns, 1, &trained));
    assert_int_equal(trained, 3 * 2 * (54 + 18 + (fixed ? 0 : 36)));
    static const char *const names[] = {"h.1.attn.qkv.lora_a", "h.1.attn.out.lora_a"};
    static const int64_t columns[] = {5, 2, 11};
    for (int n = 0; n < 2; n++) {
        const struct param *a = params_find(&student.params, names[n]);
        assert_true(a->trained == !fixed);
        for (int64_t r = 0; r < 3; r++) {
            for (int64_t c = 0; c < 18; c++) {
                float found = fabsf(((const float *)a->value.data)[r * 18 + c]), expected = c == columns[r] ? 1 : 0;
                if (!(fabsf(found - expected) < 1e-3f)) {
                    fail_msg("%s, %s[%d,%d]: expected ±%g, found %g", pattern, names[n], (int)r, (int)c,
                             (double)expected, (double)found);
                }
            }
        }
    }
    const struct param *b = params_find(&student.params, "h.0.attn.qkv.lora_b");
    for (int64_t i = 0; i < tensor_count(b->value); i++) assert_true(((const float *)b->value.data)[i] == 0);
    model_free(&student);
    model_free(&teacher);
}

static void test_svd(void **state) {
    (void)state;
    const struct ops *ops = NULL;
    CHECK_OK(ops_open("guard:cpu", &(struct ops_options){.threads = 1}, &ops));
    check_start(ops, "lora(3,svd)", false);
    check_start(ops, "lora(3,svd,fixed)", true);
    ops->close(ops);
}

static void test_forms(void **state) {
    (void)state;
    struct lora lora;
    char *wrong[] = {"lora()", "lora(0)", "lora(4,fixed)", "lora(4,svd", "lora(5000)", "lora(4, svd)"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK_STATUS(STATUS_USAGE, params_lora(&wrong[i], 1, &lora));
    char *two[] = {"lora(4)", "new", "lora(4,svd)"};
    CHECK_STATUS(STATUS_USAGE, params_lora(two, 3, &lora));
    CHECK_OK(params_lora(two + 1, 2, &lora));
    assert_true(lora.rank == 4 && lora.svd && !lora.fixed);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_svd), cmocka_unit_test(test_forms)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
