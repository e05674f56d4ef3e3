/* The parts of training that need no model: which samples a step reads, learning rates against PyTorch's, AdamW over a
 * table. */
#include "params/division.h"
#include "support/check.h"
#include "support/scratch.h"
#include "train/batches.h"
#include "train/optimizer.h"
#include "train/schedule.h"
#include "train/stage.h"

#include "schedule_goldens.h"
#include "tiny_shards.h"

#include <math.h>
#include <string.h>

enum { VOCABULARY = 97 };

/* --- batches ------------------------------------------------------------------------------------------------------ */

static const int64_t begins_a[] = {1, 17, 18, 40, 200, -1}, begins_b[] = {3, 64, -1};

static void open_batches(bool joined, uint64_t seed, struct batches *batches) {
    char *patterns[] = {(char *)scratch_path("t-*.h5"), (char *)scratch_path("t-b.h5")};
    tiny_shard(scratch_path("t-a.h5"), VOCABULARY, 7, 1, 333, begins_a);
    tiny_shard(scratch_path("t-b.h5"), VOCABULARY, 7, 2, 65, begins_b);
    tiny_shard(scratch_path("t-c.h5"), VOCABULARY, 7, 3, 16, NULL);
    CHECK_OK(batches_open(patterns, 2, joined, seed, batches));
    assert_int_equal(batches->shard_count, 3); /* t-b.h5 is named twice and read once */
    assert_int_equal(batches->tokens, 333 + 65 + 16);
}

/* Every window of every shard once an epoch, in another order in every epoch, stage and seed. */
static void test_order(void **state) {
    (void)state;
    struct batches a, b;
    open_batches(false, 1, &a);
    open_batches(false, 2, &b);
    CHECK_OK(batches_start(&a, 0, 16));
    CHECK_OK(batches_start(&b, 0, 16));
    assert_int_equal(a.windows, 20 + 4 + 0); /* a shard of exactly T tokens lacks the last target */
    int moved_epoch = 0, moved_stage = 0, moved_seed = 0;
    for (int64_t epoch = 0; epoch < 3; epoch++) {
        bool seen[24] = {false};
        for (int64_t i = 0; i < a.windows; i++) {
            struct batches_place place = batches_locate(&a, epoch * a.windows + i);
            assert_int_equal(place.epoch, epoch);
            assert_true(place.first % 16 == 0 && place.first + 16 < a.shards[place.shard].info.tokens);
            int64_t window = place.first / 16 + (place.shard > 0 ? 20 : 0);
            assert_false(seen[window]);
            seen[window] = true;
            struct batches_place first = batches_locate(&a, i), seed = batches_locate(&b, epoch * b.windows + i);
            moved_epoch += epoch > 0 && (first.first != place.first || first.shard != place.shard);
            moved_seed += seed.first != place.first || seed.shard != place.shard;
        }
    }
    for (int64_t i = 0; i < a.windows; i++) {
        struct batches_place before = batches_locate(&a, i);
        CHECK_OK(batches_start(&a, 1, 16));
        struct batches_place after = batches_locate(&a, i);
        CHECK_OK(batches_start(&a, 0, 16));
        moved_stage += before.first != after.first || before.shard != after.shard;
    }
    assert_true(moved_epoch > 30 && moved_seed > 45 && moved_stage > 15);
    batches_close(&a);
    batches_close(&a);
    batches_close(&b);
}

/* However many ranks divide a batch, together they read the same samples. */
static void test_ranks(void **state) {
    (void)state;
    enum { T = 7, BATCH = 13, SAMPLE = 40 };
    struct batches batches;
    struct config_stage stage = {.name = "s", .batch = BATCH, .length = T};
    int32_t whole[3][BATCH * T], part[3][BATCH * T];
    open_batches(false, 3, &batches);
    CHECK_OK(batches_start(&batches, 0, T));
    batches_read(&batches, SAMPLE, BATCH, whole[0], whole[1], whole[2]);
    for (int size = 1; size <= BATCH; size++) {
        int64_t next = 0;
        memset(part, 0x55, sizeof part);
        for (int rank = 0; rank < size; rank++) {
            int64_t first = 0, count = 0;
            CHECK_OK(stage_part(&stage, rank, size, &first, &count));
            assert_int_equal(first, next);
            assert_true(count == BATCH / size || count == BATCH / size + 1);
            batches_read(&batches, SAMPLE + first, count, part[0] + first * T, part[1] + first * T,
                         part[2] + first * T);
            next += count;
        }
        assert_int_equal(next, BATCH);
        assert_memory_equal(whole, part, sizeof whole);
    }
    int64_t first = 0, count = 0;
    CHECK_STATUS(STATUS_USAGE, stage_part(&stage, 0, BATCH + 1, &first, &count));
    batches_close(&batches);
}

/* ids, targets and starts, token by token, against the definition. */
static void check_window(const struct batches *batches, int64_t sample, bool joined) {
    int64_t length = batches->length;
    int32_t ids[64], targets[64], start[64];
    struct batches_place place = batches_locate(batches, sample);
    const struct shard *shard = &batches->shards[place.shard];
    uint64_t salt = place.shard + 1;
    batches_read(batches, sample, 1, ids, targets, start);
    for (int64_t t = 0; t < length; t++) {
        int64_t token = place.first + t, begin = 0;
        bool ends = false;
        for (int64_t d = 0; d < shard->info.documents; d++) {
            if ((int64_t)shard->documents[d] <= token) begin = (int64_t)shard->documents[d];
            ends = ends || (int64_t)shard->documents[d] == token + 1;
        }
        int64_t inside = begin > place.first ? begin - place.first : 0;
        int32_t next = (int32_t)tiny_token(VOCABULARY, salt, token + 1);
        assert_int_equal(ids[t], tiny_token(VOCABULARY, salt, token));
        assert_int_equal(start[t], joined ? 0 : inside);
        assert_int_equal(targets[t], !joined && ends ? -1 : next);
    }
}

static void test_documents(void **state) {
    (void)state;
    static const int64_t lengths[] = {1, 2, 7, 16, 32, 64};
    for (int joined = 0; joined < 2; joined++) {
        struct batches batches;
        open_batches(joined, 5, &batches);
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            CHECK_OK(batches_start(&batches, (int64_t)i, lengths[i]));
            for (int64_t sample = 0; sample < 2 * batches.windows; sample++) check_window(&batches, sample, joined);
        }
        batches_close(&batches);
    }
}

static void test_wrong_data(void **state) {
    (void)state;
    struct batches batches;
    char *none[] = {(char *)scratch_path("none-*.h5")}, *mixed[] = {(char *)scratch_path("m-*.h5")};
    CHECK_STATUS(STATUS_NOT_FOUND, batches_open(none, 1, false, 1, &batches));
    tiny_shard(scratch_path("m-a.h5"), VOCABULARY, 7, 1, 20, NULL);
    tiny_shard(scratch_path("m-b.h5"), VOCABULARY, 8, 1, 20, NULL);
    assert_int_equal(batches_open(mixed, 1, false, 1, &batches), STATUS_USAGE);
    assert_non_null(strstr(error_message(), "m-b.h5: tokenizer: expected 0000000000000007"));
    error_clear();
    open_batches(false, 1, &batches);
    CHECK_OK(batches_start(&batches, 0, 332)); /* one window: 332 and its last target */
    assert_int_equal(batches.windows, 1);
    assert_int_equal(batches_start(&batches, 0, 333), STATUS_USAGE);
    assert_non_null(strstr(error_message(), "no shard holds a window of length 333"));
    error_clear();
    batches_close(&batches);
}

/* --- learning rates ----------------------------------------------------------------------------------------------- */

static void test_schedule(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof schedule_goldens / sizeof *schedule_goldens; i++) {
        struct config_stage stage = {.lr = schedule_goldens[i].lr,
                                     .lr_end = schedule_goldens[i].lr_end,
                                     .warmup_steps = schedule_goldens[i].warmup,
                                     .steps = schedule_goldens[i].steps};
        for (int64_t step = 0; step < stage.steps; step++) {
            double expected = schedule_goldens[i].rates[step],
                   found = schedule_lr(&stage, schedule_goldens[i].decay, step);
            if (!(fabs(expected - found) <= 1e-9 * stage.lr)) {
                fail_msg("row %zu, step %lld: expected %.12g, found %.12g", i, (long long)step, expected, found);
            }
        }
        double last = schedule_lr(&stage, schedule_goldens[i].decay, stage.steps);
        if (schedule_goldens[i].decay != LR_CONSTANT) assert_true(fabs(last - stage.lr_end) <= 1e-12);
    }
}

/* --- the optimizer ------------------------------------------------------------------------------------------------ */

enum { ROWS = 4 };
static const struct {
    const char *name;
    int64_t count;
    bool trained, decay, sparse;
} rows[ROWS] = {{"matrix", 35, true, true, false},
                {"bias", 7, true, false, false},
                {"frozen", 12, false, true, false},
                {"coefficients", 5, true, false, true}};

static void make_params(const struct ops *ops, struct params *params) {
    *params = (struct params){.ops = ops};
    for (int i = 0; i < ROWS; i++) {
        struct param row = {.rank = 1,
                            .shape = {rows[i].count},
                            .init = INIT_NORMAL,
                            .init_std = 0.5,
                            .decay = rows[i].decay,
                            .sparse = rows[i].sparse,
                            .owned = true};
        snprintf(row.name, sizeof row.name, "%s", rows[i].name);
        CHECK_OK(params_add(params, &row, 0));
    }
    CHECK_OK(params_place(params, true));
    CHECK_OK(params_initialise(params, 1, false));
    CHECK_OK(params_divide(params, &(struct division_options){.size = 1}));
    char *patterns[] = {"matrix", "bias", "coefficients"};
    int64_t elements = 0;
    CHECK_OK(params_train(params, patterns, 3, &elements));
    assert_int_equal(elements, 47);
    float *gradient = params->grads.data;
    for (int64_t i = 0; i < params->owned_elements; i++) gradient[i] = (float)rng_normal(9, RNG_TEST, (uint64_t)i);
}

/* With λ = 0.1 a coefficient of 0 rests while the gradient's running mean is below λ, however AdamW would scale its
 * step; one whose gradient stays above λ leaves 0, and one that lives on nothing dies. */
static void test_proximal_rest(void **state) {
    (void)state;
    enum { N = 3 };
    const struct ops *ops = NULL;
    float x[N] = {0, 0, 0.05f}, m[N] = {0}, v[N] = {0}, g[N];
    CHECK_OK(ops_open("cpu", &(struct ops_options){.threads = 1}, &ops));
    for (int64_t step = 1; step <= 60; step++) {
        g[0] = step == 30 ? 0.5f : 1e-3f; /* m̂ stays below 0.06, but leaps against √v̂ */
        g[1] = -0.2f;
        g[2] = 0;
        struct adamw a = {.value = tensor_1d(x, DTYPE_F32, N),
                          .grad = tensor_1d(g, DTYPE_F32, N),
                          .m = tensor_1d(m, DTYPE_F32, N),
                          .v = tensor_1d(v, DTYPE_F32, N),
                          .lr = 1e-2,
                          .beta1 = 0.9,
                          .beta2 = 0.999,
                          .epsilon = 1e-8,
                          .parts = &(struct param_part){.count = N, .l1 = 0.1},
                          .part_count = 1,
                          .grad_scale = 1,
                          .step = step};
        CHECK_OK(ops->adamw(ops, &a));
        assert_true(x[0] == 0 && x[1] > 0 && x[2] >= 0 && x[2] > 0.05f - 1.001e-2f * (float)step);
    }
    assert_true(x[2] == 0);
    ops->close(ops);
}

/* Three steps against the formula in double. */
static void test_optimizer(void **state) {
    (void)state;
    const struct ops *ops = NULL;
    struct params params;
    struct optimizer optimizer;
    CHECK_OK(ops_open("cpu", &(struct ops_options){.threads = 1}, &ops));
    make_params(ops, &params);
    CHECK_OK(optimizer_open(&params, NULL, &optimizer));
    struct config config = {.train = {.clip = 2, .weight_decay = 0.1, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8}};
    double x[64], m[64] = {0}, v[64] = {0};
    int bounded[2] = {0};
    const float *values = params.values.data, *gradient = params.grads.data;
    for (int i = 0; i < 59; i++) x[i] = (double)values[i];
    for (int64_t update = 1; update <= 3; update++) {
        double norm = 0, expected = 0;
        int64_t bad = 0;
        for (int r = 0; r < ROWS; r++) {
            for (int64_t i = 0; i < rows[r].count && rows[r].trained; i++) {
                double g = (double)gradient[params.rows[r].offset + i];
                expected += g * g;
            }
        }
        CHECK_OK(optimizer_norm(&optimizer, &norm, &bad));
        assert_int_equal(bad, -1);
        assert_true(fabs(norm - sqrt(expected)) < 1e-6 * norm && norm > config.train.clip);
        struct optimizer_step step = {.lr = 0.01, .l1 = 0.4, .norm = norm, .update = update};
        CHECK_OK(optimizer_update(&optimizer, &config, &step));
        for (int r = 0; r < ROWS; r++) {
            for (int64_t n = 0; n < rows[r].count; n++) {
                int64_t i = params.rows[r].offset + n;
                double g = (double)gradient[i] * config.train.clip / norm;
                if (rows[r].trained) {
                    m[i] = 0.9 * m[i] + 0.1 * g;
                    v[i] = 0.95 * v[i] + 0.05 * g * g;
                    double mean = m[i] / (1 - pow(0.9, (double)update)),
                           square = v[i] / (1 - pow(0.95, (double)update));
                    x[i] -= 0.01 * (mean / (sqrt(square) + 1e-8) + (rows[r].decay ? 0.1 : 0) * x[i]);
                    double share = 0.4 / (sqrt(square) + 1e-8), most = fabs(mean) / (sqrt(square) + 1e-8) + 1;
                    double shrink = rows[r].sparse ? 0.01 * fmin(share, most) : 0;
                    if (rows[r].sparse) bounded[share > most]++;
                    x[i] = copysign(fmax(fabs(x[i]) - shrink, 0), x[i]);
                }
                assert_true(fabs((double)values[i] - x[i]) < 1e-6);
            }
        }
    }
    assert_true(bounded[0] > 0 && bounded[1] > 0); /* both forms of the proximal step were seen */
    CHECK_OK(optimizer_zero_gradients(&optimizer));
    for (int r = 0; r < ROWS; r++) {
        for (int64_t n = 0; n < rows[r].count; n++) {
            assert_true((gradient[params.rows[r].offset + n] == 0) == rows[r].trained);
        }
    }
    ((float *)params.grads.data)[params.rows[1].offset + 3] = NAN;
    double norm = 0;
    int64_t bad = -1;
    CHECK_OK(optimizer_norm(&optimizer, &norm, &bad));
    assert_int_equal(bad, 1);
    assert_false(isfinite(norm));
    optimizer_close(&optimizer);
    optimizer_close(&optimizer);
    params_free(&params);
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),      cmocka_unit_test(test_ranks),    cmocka_unit_test(test_documents),
        cmocka_unit_test(test_wrong_data), cmocka_unit_test(test_schedule), cmocka_unit_test(test_proximal_rest),
        cmocka_unit_test(test_optimizer),
    };
    return cmocka_run_group_tests_name("train", tests, scratch_make, scratch_remove);
}
