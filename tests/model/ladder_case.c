/* See ladder_case.h. */
#include "model/ladder_case.h"

#include "eval/ladder.h"
#include "support/check.h"
#include "train/tiny_shards.h"

#include <string.h>

enum { VOCABULARY = 41, TOKENS = 2400, RUNGS = LADDER_RUNGS - 2 };

const struct model_config ladder_models[] = {
    {.type = MODEL_GPT2, .layers = 1, .heads = 2, .kv_heads = 2, .head_width = 48, .width = 40, .mlp_width = 24,
     .vocabulary = VOCABULARY, .positions = LADDER_POSITIONS, .norm_epsilon = 1e-5, .tied = true, .qkv_bias = true, .output_bias = true,
     .mlp_bias = true, .causal = true},
    {.type = MODEL_LLAMA, .layers = 2, .heads = 6, .kv_heads = 2, .head_width = 8, .width = 20, .mlp_width = 28,
     .vocabulary = VOCABULARY, .positions = LADDER_POSITIONS, .norm_epsilon = 1e-5, .rope_theta = 10000, .causal = true},
    {.type = MODEL_LLAMA, .layers = 1, .heads = 2, .kv_heads = 1, .head_width = 64, .width = 32, .mlp_width = 16,
     .vocabulary = VOCABULARY, .positions = LADDER_POSITIONS, .norm_epsilon = 1e-5, .rope_theta = 10000, .causal = true},
};
const size_t ladder_model_count = sizeof ladder_models / sizeof *ladder_models;

const struct ladder_student ladder_students[] = {
    {"full", "full", false, {{0}}},
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
const size_t ladder_student_count = sizeof ladder_students / sizeof *ladder_students;

void ladder_text(const char *path) {
    static const int64_t begins[] = {5, 23, 24, 60, 700, 1450, 1451, 2050, -1};
    tiny_shard(path, VOCABULARY, 3, 11, TOKENS, begins);
}

static struct config_attention rule_of(const struct ladder_student *s, struct config_option options[LADDER_OPTIONS]) {
    struct config_attention rule = {.first = 0, .last = -1, .kind = (char *)(uintptr_t)s->kind, .options = options};
    for (; rule.option_count < LADDER_OPTIONS && s->options[rule.option_count].key; rule.option_count++) {
        size_t o = rule.option_count, words = 0;
        while (words < LADDER_WORDS && s->options[o].words[words]) words++;
        options[o] = (struct config_option){.key = (char *)(uintptr_t)s->options[o].key,
                                            .words = (char **)(uintptr_t)s->options[o].words, .count = words};
    }
    return rule;
}

/* A teacher that attends sharply: queries and keys several times as long as fresh ones. In bf16 less sharply: an error of a rounding in a
 * score of 30 would be a tenth of a weight, and no rung could tell it from a mistake. */
static void make_teacher(const struct ops *ops, const struct model_config *config, struct model *teacher) {
    const double sharper = ops->real == DTYPE_BF16 ? 3 : 12;
    CHECK_OK(model_new(ops, config, false, teacher));
    CHECK_OK(model_initialise(teacher, 5));
    for (int64_t i = 0; i < teacher->params.count; i++) {
        if (strstr(teacher->params.rows[i].name, "attn.qkv.weight")) CHECK_OK(ops->scale(ops, sharper, teacher->params.rows[i].value));
    }
}

void ladder_climb(const struct ops *ops, const char *text, const struct model_config *config, const struct ladder_student *s,
                  int64_t length, bool say) {
    struct config_option options[LADDER_OPTIONS];
    struct config_attention rule = rule_of(s, options);
    struct model teacher, student;
    struct windows windows;
    struct windows_options window_options = {.length = length, .stride = length, .sequences = 4};
    struct ladder_rung rungs[LADDER_RUNGS];
    make_teacher(ops, config, &teacher);
    CHECK_OK(windows_open(&text, 1, &window_options, &windows));
    CHECK_OK(model_student(&teacher, "test", &rule, 1, NULL, 0, false, 7, &student));
    const struct ladder_subject subject = {.model = &student, .teacher = &teacher, .rules = &rule, .rule_count = 1,
                                           .windows = &windows, .seed = 7, .untimed = true};
    CHECK_OK(ladder_run(&subject, rungs));
    for (int r = 0; r < RUNGS; r++) {
        bool measured = rungs[r].result != LADDER_NOT_MEASURED;
        /* A text of one token has nothing before it that could leak, and no shorter form. */
        bool must = r == 0 ? s->covers : length > 1;
        if (say) {
            print_message("%-8s %-26s T %-4d D %-2d rung %d, %s: %s\n", ops->name, s->name, (int)length, (int)config->head_width, r + 1,
                          rungs[r].name, rungs[r].measured);
        }
        if (rungs[r].result == LADDER_FAIL || (must && !measured)) {
            fail_msg("%s, %s, T %d, D %d, H %d over %d: rung %d, %s: expected %s, found %s", ops->name, s->name, (int)length,
                     (int)config->head_width, (int)config->heads, (int)config->kv_heads, r + 1, rungs[r].name, rungs[r].bound,
                     rungs[r].measured);
        }
    }
    model_free(&student);
    model_free(&teacher);
    windows_close(&windows);
}
