/* Decoding from caches equals the parallel pass, for every kind, past windows and across documents; and changing a token changes no
 * logit before it. */
#include "support/check.h"

#include "model/model.h"

#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCABULARY = 31, LENGTH = 41, BATCH = 3 };

static const struct model_config configs[] = {
    {.type = MODEL_GPT2, .layers = 2, .heads = 3, .kv_heads = 3, .head_width = 8, .width = 24, .mlp_width = 40,
     .vocabulary = VOCABULARY, .positions = 64, .norm_epsilon = 1e-5, .tied = true, .qkv_bias = true, .output_bias = true,
     .mlp_bias = true, .causal = true},
    {.type = MODEL_LLAMA, .layers = 2, .heads = 6, .kv_heads = 2, .head_width = 8, .width = 20, .mlp_width = 28,
     .vocabulary = VOCABULARY, .positions = 64, .norm_epsilon = 1e-5, .rope_theta = 10000, .causal = true},
};

static const struct {
    const char *name;
    const char *candidates[4], *start[4];
    size_t count;
} mixtures[] = {
    {"full", {NULL}, {NULL}, 0},
    {"window and sinks", {"window(5)", "sinks(2)"}, {"0.8", "0.3"}, 2},
    {"dead full", {"full", "window(7)", "sinks(3)"}, {"0", "0.6", "0.4"}, 3},
    {"scattered", {"offset(3)", "dilated(4,3)", "stride(6)", "blocks(5)"}, {"0.2", "0.5", "-0.1", "0.4"}, 4},
    {"far offset", {"window(2)", "offset(17)", "sinks(1)"}, {"0.5", "0.25", "0.25"}, 3},
    {"overlapping", {"window(9)", "window(3)", "sinks(20)", "full"}, {"0.5", "0.25", "0.15", "0.1"}, 4},
};

/* Students of the linear kinds: options by key. */
static const struct {
    const char *name, *kind;
    struct {
        const char *key, *word;
    } options[5];
} linear[] = {
    {"performer", "performer", {{NULL, NULL}}},
    {"performer, 20 features", "performer", {{"features", "20"}}},
    {"kerformer", "kerformer", {{"window", "6"}}},
    {"kerformer, default window", "kerformer", {{NULL, NULL}}},
    {"kerformer, no window", "kerformer", {{"map", "hedgehog"}, {"window", "0"}}},
    {"kerformer, exp", "kerformer", {{"map", "exp"}, {"features", "24"}, {"window", "5"}}},
    {"kerformer, relu-se", "kerformer", {{"map", "relu-se"}, {"hidden", "3"}, {"window", "7"}, {"window_dropout", "0.5"}}},
    {"kerformer, relu-se, no window", "kerformer", {{"map", "relu-se"}, {"features", "12"}, {"window", "0"}}},
};

static int32_t ids[BATCH * LENGTH], start[BATCH * LENGTH];

/* Sequence 0 is one document; the others break at different places. */
static void make_tokens(void) {
    static const int cuts[BATCH][2] = {{LENGTH, LENGTH}, {11, 30}, {1, 2}};
    for (int b = 0; b < BATCH; b++) {
        for (int t = 0; t < LENGTH; t++) {
            ids[b * LENGTH + t] = (int32_t)rng_below(3, RNG_TEST, (uint64_t)(b * LENGTH + t), VOCABULARY);
            start[b * LENGTH + t] = t >= cuts[b][1] ? cuts[b][1] : t >= cuts[b][0] ? cuts[b][0] : 0;
        }
    }
}

static void parallel_logits(const struct model *model, float *out) {
    struct plan_options options = {.batch = BATCH, .length = LENGTH};
    struct head_options head_options = {.rows = BATCH * LENGTH, .budget_bytes = 4096};
    struct batch batch = {.batch = BATCH, .length = LENGTH, .ids = ids, .start = start};
    struct plan *plan = NULL;
    struct head *head = NULL;
    struct tensor hidden;
    CHECK_OK(plan_open(model, &options, &plan));
    CHECK_OK(head_open(NULL, model, &head_options, &head));
    CHECK_OK(model_forward(plan, &batch, &hidden));
    CHECK_OK(head_logits(head, hidden, 0, BATCH * LENGTH, false, out));
    head_close(&head);
    plan_close(&plan);
}

static void check_decoding(const struct model *model, const float *expected, const char *name) {
    struct decoder *decoder = NULL;
    float *found = malloc(sizeof *found * BATCH * VOCABULARY);
    CHECK_OK(decoder_open(model, BATCH, LENGTH, &decoder));
    for (int t = 0; t < LENGTH; t++) {
        int32_t tokens[BATCH];
        bool begins[BATCH];
        for (int b = 0; b < BATCH; b++) {
            tokens[b] = ids[b * LENGTH + t];
            begins[b] = start[b * LENGTH + t] == t;
        }
        CHECK_OK(decoder_step(decoder, tokens, begins, found));
        for (int b = 0; b < BATCH; b++) {
            for (int v = 0; v < VOCABULARY; v++) {
                float e = expected[(b * LENGTH + t) * VOCABULARY + v], f = found[b * VOCABULARY + v];
                if (!(fabsf(e - f) <= 1e-4f * fmaxf(1, fabsf(e)))) {
                    fail_msg("%s: sequence %d, token %d, id %d: expected %g, found %g", name, b, t, v, (double)e, (double)f);
                }
            }
        }
    }
    CHECK_STATUS(STATUS_USAGE, decoder_step(decoder, ids, NULL, NULL)); /* the cache is full */
    decoder_close(&decoder);
    free(found);
}

static void check_no_leak(const struct model *model, const float *before, const char *name) {
    const int changed = 23;
    int32_t keep = ids[changed];
    float *after = malloc(sizeof *after * BATCH * LENGTH * VOCABULARY);
    ids[changed] = (keep + 1) % VOCABULARY;
    parallel_logits(model, after);
    ids[changed] = keep;
    if (memcmp(before, after, sizeof *after * (size_t)changed * VOCABULARY) != 0) fail_msg("%s: a later token changed a logit", name);
    assert_true(memcmp(before + changed * VOCABULARY, after + changed * VOCABULARY, sizeof *after * VOCABULARY) != 0);
    free(after);
}

/* Off the start, where a gate of 1 and a bias of 0 would hide what they do. */
static void jitter(const struct model *model) {
    const struct ops *ops = model->params.ops;
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *row = &model->params.rows[i];
        if (!row->owned) continue;
        int64_t count = tensor_count(row->value);
        float *values = malloc((size_t)count * sizeof *values);
        CHECK_OK(ops->download(ops, row->value, values));
        for (int64_t e = 0; e < count; e++) {
            values[e] += 0.2f * (float)rng_normal(9, rng_substream(RNG_TEST, (uint64_t)i), (uint64_t)e);
        }
        CHECK_OK(ops->upload(ops, row->value, values));
        free(values);
    }
}

static void check_linear(const struct ops *ops, const struct model_config *config, size_t which) {
    struct model teacher, student;
    struct config_option options[5];
    struct config_attention rule = {.first = 0, .last = -1, .kind = (char *)linear[which].kind, .options = options};
    for (size_t i = 0; i < 5 && linear[which].options[i].key; i++) {
        options[rule.option_count++] = (struct config_option){.key = (char *)linear[which].options[i].key,
                                                              .words = (char **)&linear[which].options[i].word, .count = 1};
    }
    float *expected = malloc(sizeof *expected * BATCH * LENGTH * VOCABULARY);
    CHECK_OK(model_new(ops, config, false, &teacher));
    CHECK_OK(model_initialise(&teacher, 5));
    CHECK_OK(model_student(&teacher, "test", &rule, 1, NULL, 0, false, 1, &student));
    jitter(&student);
    parallel_logits(&student, expected);
    check_decoding(&student, expected, linear[which].name);
    check_no_leak(&student, expected, linear[which].name);
    /* Branches switched off decode as they compute, too. */
    for (uint32_t off = 1; off < 4 && student.layers[0].kind->switch_off; off++) {
        for (int64_t l = 0; l < config->layers; l++) CHECK_OK(student.layers[l].kind->switch_off(&student.layers[l], off));
        parallel_logits(&student, expected);
        check_decoding(&student, expected, linear[which].name);
    }
    model_free(&student);
    model_free(&teacher);
    free(expected);
}

static void check_mixture(const struct ops *ops, const struct model_config *config, size_t which) {
    struct model teacher, student;
    struct config_option options[2] = {{.key = "candidates", .words = (char **)mixtures[which].candidates, .count = mixtures[which].count},
                                       {.key = "start", .words = (char **)mixtures[which].start, .count = mixtures[which].count}};
    bool full = mixtures[which].count == 0;
    struct config_attention rule = {.first = 0, .last = -1, .kind = full ? "full" : "masks", .options = options,
                                    .option_count = full ? 0 : 2};
    float *expected = malloc(sizeof *expected * BATCH * LENGTH * VOCABULARY);
    CHECK_OK(model_new(ops, config, false, &teacher));
    CHECK_OK(model_initialise(&teacher, 5));
    CHECK_OK(model_student(&teacher, "test", &rule, 1, NULL, 0, false, 1, &student));
    parallel_logits(&student, expected);
    check_decoding(&student, expected, mixtures[which].name);
    check_no_leak(&student, expected, mixtures[which].name);
    model_free(&student);
    model_free(&teacher);
    free(expected);
}

static void test_decoding(void **state) {
    (void)state;
    const struct ops *ops = NULL;
    struct ops_options options = {.threads = 1};
    make_tokens();
    CHECK_OK(ops_open("guard:cpu", &options, &ops));
    for (size_t c = 0; c < sizeof configs / sizeof *configs; c++) {
        for (size_t m = 0; m < sizeof mixtures / sizeof *mixtures; m++) check_mixture(ops, &configs[c], m);
        for (size_t m = 0; m < sizeof linear / sizeof *linear; m++) check_linear(ops, &configs[c], m);
    }
    ops->close(ops);
}

/* Kinds that choose: what their rows of a recipe say, key and value in turn. */
static const struct {
    const char *name, *kind;
    const char *options[18];
} sparse[] = {
    {"nsa", "nsa", {"compress", "4", "stride", "2", "block", "4", "select", "3", "window", "5"}},
    {"nsa, three gates", "nsa", {"compress", "4", "stride", "2", "block", "4", "select", "4", "window", "3", "union", "false"}},
    {"nsa, heads choose alone", "nsa", {"compress", "6", "stride", "3", "block", "3", "select", "5", "window", "1", "select_group", "1"}},
    {"nsa, heads choose together", "nsa", {"compress", "4", "stride", "4", "block", "8", "select", "3", "window", "2", "select_group", "ALL"}},
    {"nsa without a window", "nsa", {"compress", "4", "stride", "2", "block", "2", "select", "6", "window", "0"}},
    {"nsa without a choice", "nsa", {"compress", "4", "stride", "2", "block", "4", "select", "0", "window", "6"}},
    {"nsa without a choice, three gates", "nsa", {"compress", "4", "stride", "1", "block", "4", "select", "0", "window", "6", "union", "false"}},
    {"nsa, keys and values apart", "nsa", {"compress", "4", "stride", "2", "block", "4", "select", "4", "window", "3", "union", "false", "branch_kv", "separate"}},
    {"nsa, compressed keys and values apart", "nsa", {"compress", "4", "stride", "2", "block", "4", "select", "4", "window", "3", "branch_kv", "separate"}},
    {"nsa, longer blocks than documents", "nsa", {"compress", "64", "stride", "32", "block", "32", "select", "3", "window", "4"}},
    {"indexer", "indexer", {"window", "3", "sinks", "2", "tokens", "4", "index_heads", "3", "index_width", "6"}},
    {"indexer, groups choose", "indexer", {"per", "group", "window", "1", "sinks", "0", "tokens", "7", "keys", "each"}},
    {"indexer, heads choose", "indexer", {"per", "head", "window", "2", "tokens", "5", "index_heads", "2", "index_width", "4"}},
    {"indexer, two levels", "indexer",
     {"window", "2", "sinks", "1", "tokens", "5", "index_width", "4", "coarse", "3", "coarse_blocks", "2"}},
    {"indexer, heads choose in two levels", "indexer",
     {"per", "head", "window", "1", "tokens", "3", "keys", "each", "index_heads", "2", "coarse", "4", "coarse_blocks", "1"}},
    {"indexer as it comes", "indexer", {NULL}},
};

/* Compressors and gates that do something. */
static void stir(struct model *student) {
    const struct ops *ops = student->params.ops;
    for (int64_t i = 0; i < student->params.count; i++) {
        const struct param *row = &student->params.rows[i];
        if (!row->added) continue;
        const int64_t count = tensor_count(row->value);
        float *values = malloc((size_t)count * sizeof *values);
        for (int64_t e = 0; e < count; e++)
            values[e] = (float)(0.4 * rng_normal(11, rng_substream(RNG_TEST, (uint64_t)i), (uint64_t)e));
        CHECK_OK(ops->upload(ops, row->value, values));
        free(values);
    }
}

static void check_sparse(const struct ops *ops, const struct model_config *config, size_t which, uint32_t off) {
    struct model teacher, student;
    struct config_option options[9];
    char *words[9], all[8];
    size_t count = 0;
    snprintf(all, sizeof all, "%lld", (long long)config->heads);
    for (const char *const *o = sparse[which].options; o[0]; o += 2, count++) {
        words[count] = strcmp(o[1], "ALL") == 0 ? all : (char *)(uintptr_t)o[1];
        options[count] = (struct config_option){.key = (char *)(uintptr_t)o[0], .words = &words[count], .count = 1};
    }
    struct config_attention rule = {.first = 0, .last = -1, .kind = (char *)(uintptr_t)sparse[which].kind,
                                    .options = options, .option_count = count};
    float *expected = malloc(sizeof *expected * BATCH * LENGTH * VOCABULARY);
    CHECK_OK(model_new(ops, config, false, &teacher));
    CHECK_OK(model_initialise(&teacher, 5));
    CHECK_OK(model_student(&teacher, "test", &rule, 1, NULL, 0, false, 1, &student));
    stir(&student);
    for (int64_t l = 0; l < config->layers; l++) CHECK_OK(student.layers[l].kind->switch_off(&student.layers[l], off));
    parallel_logits(&student, expected);
    check_decoding(&student, expected, sparse[which].name);
    check_no_leak(&student, expected, sparse[which].name);
    model_free(&student);
    model_free(&teacher);
    free(expected);
}

static void test_sparse(void **state) {
    (void)state;
    const struct ops *ops = NULL;
    make_tokens();
    CHECK_OK(ops_open("guard:cpu", &(struct ops_options){.threads = 1}, &ops));
    for (size_t c = 0; c < sizeof configs / sizeof *configs; c++)
        for (size_t n = 0; n < sizeof sparse / sizeof *sparse; n++) check_sparse(ops, &configs[c], n, 0);
    /* Every set of branches that is left when others are switched off. */
    for (size_t n = 0; n < 2; n++)
        for (uint32_t off = 1; off < 8; off++)
            if (off != 7) check_sparse(ops, &configs[1], n, off);
    for (size_t n = 0; n < sizeof sparse / sizeof *sparse; n++) /* the choice, the sinks, both */
        for (uint32_t off = 1; off < 16 && strcmp(sparse[n].name, "indexer") == 0; off += off == 1 ? 7 : 1)
            if ((off & 6) == 0) check_sparse(ops, &configs[1], n, off);
    ops->close(ops);
}

/* What does not make sense is refused, with the reason. */
static void test_nsa_refusals(void **state) {
    (void)state;
    static const char *const wrong[][4] = {
        {"compress", "5", "stride", "2"}, {"block", "7", "stride", "2"},  {"select", "2", NULL, NULL},
        {"select", "0", "window", "0"},   {"select_group", "4", NULL, NULL}, {"select", "3.5", NULL, NULL},
        {"union", "maybe", NULL, NULL},   {"sinks", "4", NULL, NULL},
    };
    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++) {
        struct attention_layer layers[2];
        struct config_option options[2];
        char *words[2] = {(char *)(uintptr_t)wrong[n][1], (char *)(uintptr_t)wrong[n][3]};
        for (int o = 0; o < 2; o++)
            options[o] = (struct config_option){.key = (char *)(uintptr_t)wrong[n][2 * o], .words = &words[o], .count = 1};
        struct config_attention rule = {
            .first = 0, .last = -1, .kind = "nsa", .options = options, .option_count = wrong[n][2] ? 2 : 1};
        CHECK_STATUS(STATUS_USAGE, attention_configure("test", &rule, 1, &configs[1], layers));
    }
}

/* `start` with a row for every head: head 0 reads a window of 3, head 1 of 9, head 2 both; decoded as computed. */
static void test_starts_by_head(void **state) {
    (void)state;
    static const char *const candidates[] = {"window(3)", "window(9)"};
    static const char *const starts[] = {"1", "0", "0", "1", "0.25", "0.5"};
    static const float values[] = {1, 0, 0, 1, 0.25f, 0.5f};
    struct config_option options[] = {{.key = "candidates", .words = (char **)candidates, .count = 2},
                                      {.key = "start", .words = (char **)starts, .count = 6}};
    struct config_attention rule = {.first = 0, .last = -1, .kind = "masks", .options = options, .option_count = 2};
    struct model teacher, student;
    const struct ops *ops = NULL;
    float *expected = malloc(sizeof *expected * BATCH * LENGTH * VOCABULARY);
    make_tokens();
    CHECK_OK(ops_open("guard:cpu", &(struct ops_options){.threads = 1}, &ops));
    CHECK_OK(model_new(ops, &configs[0], false, &teacher));
    CHECK_OK(model_initialise(&teacher, 5));
    CHECK_OK(model_student(&teacher, "test", &rule, 1, NULL, 0, false, 1, &student));
    const struct param *row = params_find(&student.params, "h.1.attn.masks.coefficients");
    assert_memory_equal(row->value.data, values, sizeof values);
    parallel_logits(&student, expected);
    check_decoding(&student, expected, "starts by head");
    check_no_leak(&student, expected, "starts by head");
    model_free(&student);
    options[1].count = 4; /* neither one row nor three */
    CHECK_STATUS(STATUS_USAGE, model_student(&teacher, "test", &rule, 1, NULL, 0, false, 1, &student));
    model_free(&teacher);
    ops->close(ops);
    free(expected);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_decoding), cmocka_unit_test(test_starts_by_head),
                                       cmocka_unit_test(test_sparse), cmocka_unit_test(test_nsa_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
