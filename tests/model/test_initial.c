/* What a model from scratch begins with: matrices as spread out as its config says, norms at 1, the same for the same
 * seed. */
#include "support/check.h"

#include "model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct model_config shape = {.type = MODEL_LLAMA,
                                          .layers = 2,
                                          .heads = 4,
                                          .kv_heads = 2,
                                          .head_width = 16,
                                          .width = 64,
                                          .mlp_width = 96,
                                          .vocabulary = 101,
                                          .positions = 64,
                                          .norm_epsilon = 1e-5,
                                          .rope_theta = 10000,
                                          .tied = true,
                                          .causal = true};

/* Standard deviation of one row's values, around 0. */
static double spread_of(const struct ops *ops, const struct model *model, const char *name) {
    const struct param *row = params_find(&model->params, name);
    assert_non_null(row);
    int64_t count = tensor_count(row->value);
    float *values = malloc((size_t)count * sizeof *values);
    double squares = 0;
    assert_non_null(values);
    CHECK_OK(ops->download(ops, row->value, values));
    for (int64_t i = 0; i < count; i++) squares += (double)values[i] * (double)values[i];
    free(values);
    return sqrt(squares / (double)count);
}

static void test_spread(void **state) {
    (void)state;
    static const struct { double asked, expected; } cases[] = {{0, 0.02}, {0.02, 0.02}, {0.125, 0.125}};
    /* The projections that add to the residual stream: divided by sqrt(2L) = 2. */
    static const struct {
        const char *name;
        double share;
    } rows[] = {{"wte", 1},
                {"h.0.attn.qkv.weight", 1},
                {"h.1.mlp.up.weight", 1},
                {"h.1.attn.out.weight", 0.5},
                {"h.0.mlp.down.weight", 0.5}};
    struct ops_options options = {.threads = 1, .deterministic = true};
    const struct ops *ops;
    CHECK_OK(ops_open("cpu", &options, &ops));
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct model_config config = shape;
        struct model model;
        config.initial_std = cases[c].asked;
        CHECK_OK(model_new(ops, &config, false, &model));
        CHECK_OK(model_initialise(&model, 3));
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            double expected = rows[r].share * cases[c].expected, found = spread_of(ops, &model, rows[r].name);
            if (fabs(found - expected) > 0.05 * expected)
                fail_msg("initial_std %g: %s: expected %g, found %g", cases[c].asked, rows[r].name, expected, found);
        }
        assert_true(spread_of(ops, &model, "h.0.norm1.weight") == 1);
        model_free(&model);
    }
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_spread)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
