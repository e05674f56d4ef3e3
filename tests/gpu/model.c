/* The exactness ladder of whole models on the GPU, kinds full and masks: full coverage, no leak, decoding as in
 * parallel, lengths and odd texts. The rung that measures time is left out. */
#include "gpu/gpu.h"

#include "eval/ladder.h"
#include "support/check.h"
#include "support/scratch.h"
#include "train/tiny_shards.h"

#include <string.h>

enum { VOCABULARY = 41, TOKENS = 2400, RUNGS = 4 };

static const struct model_config configs[] = {
    {.type = MODEL_GPT2,
     .layers = 2,
     .heads = 2,
     .kv_heads = 2,
     .head_width = 48,
     .width = 40,
     .mlp_width = 24,
     .vocabulary = VOCABULARY,
     .positions = 1000,
     .norm_epsilon = 1e-5,
     .tied = true,
     .qkv_bias = true,
     .output_bias = true,
     .mlp_bias = true,
     .causal = true},
    {.type = MODEL_LLAMA,
     .layers = 2,
     .heads = 6,
     .kv_heads = 2,
     .head_width = 8,
     .width = 20,
     .mlp_width = 28,
     .vocabulary = VOCABULARY,
     .positions = 1000,
     .norm_epsilon = 1e-5,
     .rope_theta = 10000,
     .causal = true},
    {.type = MODEL_LLAMA,
     .layers = 1,
     .heads = 2,
     .kv_heads = 1,
     .head_width = 64,
     .width = 64,
     .mlp_width = 128,
     .vocabulary = VOCABULARY,
     .positions = 1000,
     .norm_epsilon = 1e-5,
     .rope_theta = 10000,
     .causal = true},
};
static const int64_t lengths[] = {7, 33, 129, 1000};

#define WORDS(...)                                                                                                     \
    .words = (char *[]) {                                                                                              \
        __VA_ARGS__                                                                                                    \
    }
static struct config_option masks_options[] = {
    {.key = (char[]){"candidates"},
     WORDS((char[]){"window(9)"}, (char[]){"sinks(2)"}, (char[]){"dilated(4,8)"}),
     .count = 3},
    {.key = (char[]){"start"}, WORDS((char[]){"0.7"}, (char[]){"0.2"}, (char[]){"0.1"}), .count = 3},
};
static const struct config_attention rules[] = {
    {.first = 0, .last = -1, .kind = (char[]){"full"}},
    {.first = 0, .last = -1, .kind = (char[]){"masks"}, .options = masks_options, .option_count = 2},
};

/* A teacher that attends sharply: queries and keys several times as long as fresh ones. In bf16 less sharply: an error
 * of a rounding in a score of 30 would be a tenth of a weight, and no rung could tell it from a mistake. */
static void make_teacher(const struct ops *ops, const struct model_config *config, struct model *teacher) {
    const double sharper = ops->real == DTYPE_BF16 ? 3 : 12;
    CHECK_OK(model_new(ops, config, false, teacher));
    CHECK_OK(model_initialise(teacher, 5));
    for (int64_t i = 0; i < teacher->params.count; i++) {
        if (!strstr(teacher->params.rows[i].name, "attn.qkv.weight")) continue;
        CHECK_OK(ops->scale(ops, sharper, teacher->params.rows[i].value));
    }
}

static void climb(const struct ops *ops, const struct model_config *config, const struct config_attention *rule,
                  int64_t length) {
    struct model teacher, student;
    struct windows windows;
    struct windows_options window_options = {.length = length, .stride = length, .sequences = 4};
    const char *path = scratch_path("ladder.h5");
    struct ladder_rung rungs[LADDER_RUNGS];
    const bool masks = rule->option_count > 0;
    make_teacher(ops, config, &teacher);
    CHECK_OK(windows_open(&path, 1, &window_options, &windows));
    CHECK_OK(model_student(&teacher, "test", rule, 1, NULL, 0, false, 7, &student));
    const struct ladder_subject subject = {.model = &student,
                                           .teacher = &teacher,
                                           .rules = rule,
                                           .rule_count = 1,
                                           .windows = &windows,
                                           .seed = 7,
                                           .untimed = true};
    CHECK_OK(ladder_run(&subject, rungs));
    for (int r = 0; r < RUNGS; r++) {
        print_message("%-8s %-5s T %-4d D %-2d rung %d, %s: %s\n", ops->name, rule->kind, (int)length,
                      (int)config->head_width, r + 1, rungs[r].name, rungs[r].measured);
        if (rungs[r].result == LADDER_FAIL || (rungs[r].result == LADDER_NOT_MEASURED && (masks || r > 0))) {
            fail_msg("%s, %s, T %d, D %d, H %d over %d: rung %d, %s: expected %s, found %s", ops->name, rule->kind,
                     (int)length, (int)config->head_width, (int)config->heads, (int)config->kv_heads, r + 1,
                     rungs[r].name, rungs[r].bound, rungs[r].measured);
        }
    }
    model_free(&student);
    model_free(&teacher);
    windows_close(&windows);
}

static void climb_all(const char *table) {
    static const int64_t begins[] = {5, 23, 24, 60, 700, 1450, 1451, 2050, -1};
    const struct ops *ops = NULL;
    tiny_shard(scratch_path("ladder.h5"), VOCABULARY, 3, 11, TOKENS, begins);
    CHECK_OK(ops_open(table, &(struct ops_options){.deterministic = true}, &ops));
    for (size_t c = 0; c < sizeof configs / sizeof *configs; c++)
        for (size_t r = 0; r < sizeof rules / sizeof *rules; r++)
            for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
                const bool slow = gpu_quick() && (lengths[l] > 7 || c == 2);
                if (!slow && gpu_chose(rules[r].kind)) climb(ops, &configs[c], &rules[r], lengths[l]);
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
