/* The exactness ladder of every kind at awkward lengths, widths and numbers of heads, on texts of several documents. The rung that
 * measures time is left out. */
#include "support/check.h"
#include "support/scratch.h"

#include "eval/ladder.h"

#include "train/tiny_shards.h"

#include <stdlib.h>
#include <string.h>

enum { VOCABULARY = 41, TOKENS = 2400, WORDS_MAX = 5, OPTIONS_MAX = 6, LONG = 1000 /* once is enough */ };

static const struct model_config configs[] = {
    {.type = MODEL_GPT2, .layers = 1, .heads = 2, .kv_heads = 2, .head_width = 48, .width = 40, .mlp_width = 24,
     .vocabulary = VOCABULARY, .positions = 1000, .norm_epsilon = 1e-5, .tied = true, .qkv_bias = true, .output_bias = true,
     .mlp_bias = true, .causal = true},
    {.type = MODEL_LLAMA, .layers = 2, .heads = 6, .kv_heads = 2, .head_width = 8, .width = 20, .mlp_width = 28,
     .vocabulary = VOCABULARY, .positions = 1000, .norm_epsilon = 1e-5, .rope_theta = 10000, .causal = true},
    {.type = MODEL_LLAMA, .layers = 1, .heads = 2, .kv_heads = 1, .head_width = 64, .width = 32, .mlp_width = 16,
     .vocabulary = VOCABULARY, .positions = 1000, .norm_epsilon = 1e-5, .rope_theta = 10000, .causal = true},
};
static const int64_t lengths[] = {1, 7, 31, 33, 129, 1000};

static const struct subject {
    const char *name, *kind;
    bool covers; /* has a form that reads everything: rung 1 */
    struct {
        const char *key, *words[WORDS_MAX];
    } options[OPTIONS_MAX];
} subjects[] = {
    {"masks", "masks", true, {{"candidates", {"window(9)", "sinks(2)", "dilated(4,8)"}}, {"start", {"0.7", "0.2", "0.1"}}}},
    {"performer", "performer", false, {{"features", {"32"}}}},
    {"hedgehog", "kerformer", true, {{"window", {"16"}}}},
    {"hedgehog, no window", "kerformer", true, {{"window", {"0"}}}},
    {"learned exponentials", "kerformer", true, {{"map", {"exp"}}, {"features", {"24"}}, {"window", {"5"}}}},
    {"relu, squeeze-excite", "kerformer", true, {{"map", {"relu-se"}}, {"window", {"7"}}}},
    {"nsa", "nsa", true,
     {{"compress", {"8"}}, {"stride", {"4"}}, {"block", {"8"}}, {"select", {"4"}}, {"window", {"16"}}}},
    {"nsa, three softmaxes", "nsa", true,
     {{"compress", {"4"}}, {"stride", {"4"}}, {"block", {"16"}}, {"select", {"3"}}, {"window", {"5"}}, {"union", {"false"}}}},
    {"nsa, keys and values apart", "nsa", true,
     {{"compress", {"4"}}, {"stride", {"2"}}, {"block", {"8"}}, {"select", {"4"}}, {"union", {"false"}}, {"branch_kv", {"separate"}}}},
    {"nsa as published", "nsa", true, {{"window", {"512"}}}},
    {"indexer", "indexer", true,
     {{"window", {"8"}}, {"sinks", {"2"}}, {"tokens", {"6"}}, {"index_heads", {"3"}}, {"index_width", {"6"}}}},
    {"indexer, every head chooses", "indexer", true,
     {{"per", {"head"}}, {"window", {"1"}}, {"tokens", {"9"}}, {"index_heads", {"2"}}, {"index_width", {"8"}}, {"keys", {"each"}}}},
    {"indexer, two levels", "indexer", true,
     {{"per", {"group"}}, {"window", {"5"}}, {"tokens", {"12"}}, {"index_width", {"4"}}, {"coarse", {"8"}}, {"coarse_blocks", {"3"}}}},
    {"indexer as it comes", "indexer", true, {{"select_weight", {"1"}}}},
};

static struct config_attention rule_of(const struct subject *s, struct config_option options[OPTIONS_MAX]) {
    struct config_attention rule = {.first = 0, .last = -1, .kind = (char *)(uintptr_t)s->kind, .options = options};
    for (; rule.option_count < OPTIONS_MAX && s->options[rule.option_count].key; rule.option_count++) {
        size_t o = rule.option_count, words = 0;
        while (words < WORDS_MAX && s->options[o].words[words]) words++;
        options[o] = (struct config_option){.key = (char *)(uintptr_t)s->options[o].key,
                                            .words = (char **)(uintptr_t)s->options[o].words, .count = words};
    }
    return rule;
}

/* A teacher that attends sharply: queries and keys several times as long as fresh ones. */
static void make_teacher(const struct ops *ops, const struct model_config *config, struct model *teacher) {
    CHECK_OK(model_new(ops, config, false, teacher));
    CHECK_OK(model_initialise(teacher, 5));
    for (int64_t i = 0; i < teacher->params.count; i++) {
        if (strstr(teacher->params.rows[i].name, "attn.qkv.weight")) CHECK_OK(ops->scale(ops, 12, teacher->params.rows[i].value));
    }
}

static void climb(const struct ops *ops, const struct model_config *config, const struct subject *s, int64_t length) {
    struct config_option options[OPTIONS_MAX];
    struct config_attention rule = rule_of(s, options);
    struct model teacher, student;
    struct windows windows;
    struct windows_options window_options = {.length = length, .stride = length, .sequences = 4};
    const char *path = scratch_path("ladder.h5");
    struct ladder_rung rungs[LADDER_RUNGS];
    make_teacher(ops, config, &teacher);
    CHECK_OK(windows_open(&path, 1, &window_options, &windows));
    CHECK_OK(model_student(&teacher, "test", &rule, 1, NULL, 0, false, 7, &student));
    const struct ladder_subject subject = {.model = &student, .teacher = &teacher, .rules = &rule, .rule_count = 1,
                                           .windows = &windows, .seed = 7, .untimed = true};
    CHECK_OK(ladder_run(&subject, rungs));
    for (int r = 0; r < LADDER_RUNGS - 2; r++) {
        bool measured = rungs[r].result != LADDER_NOT_MEASURED;
        /* A text of one token has nothing before it that could leak, and no shorter form. */
        bool must = r == 0 ? s->covers : length > 1;
        if (rungs[r].result == LADDER_FAIL || (must && !measured)) {
            fail_msg("%s, T %d, D %d, H %d over %d: rung %d, %s: expected %s, found %s", s->name, (int)length,
                     (int)config->head_width, (int)config->heads, (int)config->kv_heads, r + 1, rungs[r].name, rungs[r].bound,
                     rungs[r].measured);
        }
    }
    model_free(&student);
    model_free(&teacher);
    windows_close(&windows);
}

static void test_ladder(void **state) {
    (void)state;
    static const int64_t begins[] = {5, 23, 24, 60, 700, 1450, 1451, 2050, -1};
    const struct ops *ops = NULL;
    tiny_shard(scratch_path("ladder.h5"), VOCABULARY, 3, 11, TOKENS, begins);
    CHECK_OK(ops_open("cpu", &(struct ops_options){.threads = 2}, &ops));
    for (size_t c = 0; c < sizeof configs / sizeof *configs; c++) {
        for (size_t s = 0; s < sizeof subjects / sizeof *subjects; s++) {
            if (!kind_find(subjects[s].kind)) fail_msg("kind %s: expected it in the registry", subjects[s].kind);
            for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
                if (lengths[l] < LONG || c == 1) climb(ops, &configs[c], &subjects[s], lengths[l]);
            }
        }
    }
    ops->close(ops);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ladder)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
