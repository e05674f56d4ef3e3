/* Logits, loss and the gradient of every tensor against transformers (tests/oracles/make_models.py), in fp64 and fp32. */
#include "support/check.h"

#include "io/huggingface.h"
#include "io/safetensors.h"
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *ops;
    double logits, gradients; /* allowed: absolute; relative to the tensor's largest */
} tables[] = {{"cpu-f64", 2e-5, 1e-5}, {"cpu", 1e-4, 1e-3}};

static const char *const models[] = {"gpt2-tied", "gpt2-untied", "llama-gqa", "llama-tied"};

static const struct safetensors_tensor *golden(const struct safetensors *set, const char *name) {
    const struct safetensors_tensor *t = safetensors_find(set, name);
    if (!t) fail_msg("golden.safetensors: %s is missing", name);
    return t;
}

static void compare(const char *what, const float *expected, const double *found, int64_t count, double absolute, double relative) {
    double largest = 0, worst = 0;
    int64_t where = 0;
    for (int64_t i = 0; i < count; i++) {
        double e = (double)expected[i];
        largest = fmax(largest, fabs(e));
        if (!(fabs(e - found[i]) <= worst)) {
            worst = fabs(e - found[i]);
            where = i;
        }
    }
    double allowed = absolute + relative * largest;
    if (!(worst <= allowed)) {
        fail_msg("%s[%lld]: expected %.9g, found %.9g; off by %g, allowed %g", what, (long long)where, (double)expected[where],
                 found[where], worst, allowed);
    }
}

static void read_as_double(const struct ops *ops, struct tensor t, double *out) {
    int64_t count = tensor_count(t);
    CHECK_OK(ops->download(ops, t, out));
    if (t.dtype == DTYPE_F64) return;
    float *narrow = malloc((size_t)count * sizeof *narrow);
    memcpy(narrow, out, (size_t)count * sizeof *narrow);
    for (int64_t i = 0; i < count; i++) out[i] = (double)narrow[i];
    free(narrow);
}

struct loaded {
    const struct ops *ops;
    struct model model;
    struct plan *plan;
    struct head *head;
    struct safetensors set;
    int64_t rows;
};

static void check_logits(struct loaded *l, struct tensor hidden, double allowed) {
    int64_t v = l->model.config.vocabulary, count = l->rows * v;
    float *narrow = malloc((size_t)count * sizeof *narrow);
    double *found = malloc((size_t)count * sizeof *found);
    CHECK_OK(head_logits(l->head, hidden, 0, l->rows, false, narrow));
    for (int64_t i = 0; i < count; i++) found[i] = (double)narrow[i];
    compare("logits", golden(&l->set, "logits")->data, found, count, allowed, 0);
    free(narrow);
    free(found);
}

static void check_gradients(struct loaded *l, double allowed) {
    const struct params *params = &l->model.params;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *row = &params->rows[i];
        char name[80];
        snprintf(name, sizeof name, "grad.%s", row->name);
        const struct safetensors_tensor *expected = golden(&l->set, name);
        int64_t count = tensor_count(row->value);
        assert_int_equal(expected->count, count);
        double *found = malloc((size_t)count * sizeof *found);
        read_as_double(l->ops, row->grad, found);
        compare(name, expected->data, found, count, 1e-8, allowed);
        free(found);
    }
}

static void check_model(const char *name, size_t table, bool recompute) {
    struct loaded l = {0};
    struct ops_options options = {.threads = 2};
    struct model_config config;
    char directory[512], path[600], *all[] = {"all"};
    int64_t elements;
    snprintf(directory, sizeof directory, "%s/tests/model/goldens/%s", getenv("SQUINT_SOURCE") ? getenv("SQUINT_SOURCE") : ".", name);
    snprintf(path, sizeof path, "%s/golden.safetensors", directory);
    CHECK_OK(ops_open(tables[table].ops, &options, &l.ops));
    CHECK_OK(huggingface_read_config(directory, &config));
    CHECK_OK(model_new(l.ops, &config, true, &l.model));
    CHECK_OK(huggingface_load(directory, &config, &l.model.params));
    CHECK_OK(safetensors_open(path, &l.set));
    const struct safetensors_tensor *ids = golden(&l.set, "ids"), *targets = golden(&l.set, "targets");
    l.rows = ids->count;
    int32_t *start = calloc((size_t)l.rows, sizeof *start);
    struct batch batch = {.batch = ids->shape[0], .length = ids->shape[1], .ids = ids->data, .targets = targets->data, .start = start};
    struct plan_options plan = {.batch = batch.batch, .length = batch.length, .train = true, .recompute = recompute};
    struct head_options head = {.rows = l.rows, .budget_bytes = 3000};
    void *memory = NULL;
    CHECK_OK(plan_open(&l.model, &plan, &l.plan));
    CHECK_OK(head_open(NULL, &l.model, &head, &l.head));
    CHECK_OK(params_train(&l.model.params, all, 1, &elements));
    CHECK_OK(l.ops->allocate(l.ops, (size_t)(l.rows * config.width) * dtype_size(l.ops->real), &memory));
    struct tensor hidden;
    CHECK_OK(model_forward(l.plan, &batch, &hidden));
    check_logits(&l, hidden, tables[table].logits);
    int64_t counted = 0;
    for (int64_t i = 0; i < l.rows; i++) counted += batch.targets[i] >= 0;
    struct head_sums sums = {0};
    struct head_loss loss = {.student_hidden = hidden, .targets = batch.targets, .ce_weight = 1, .scale = 1.0 / (double)counted,
                             .d_hidden = tensor_2d(memory, l.ops->real, l.rows, config.width)};
    CHECK_OK(head_loss(l.head, &loss, &sums));
    double mean = sums.ce / (double)counted;
    compare("loss", golden(&l.set, "loss")->data, &mean, 1, 1e-6, 1e-5);
    CHECK_OK(model_backward(l.plan, loss.d_hidden));
    check_gradients(&l, tables[table].gradients);
    l.ops->release(l.ops, memory);
    head_close(&l.head);
    plan_close(&l.plan);
    model_free(&l.model);
    safetensors_close(&l.set);
    l.ops->close(l.ops);
    free(start);
}

static void test_goldens(void **state) {
    (void)state;
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++) {
        for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
            check_model(models[m], t, false);
            check_model(models[m], t, true);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_goldens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
