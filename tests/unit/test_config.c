/* Recipes: what a good one means, what every wrong one is told, and that the resolved text reads back to the same
 * config. */
#include "support/check.h"

#include "base/file.h"
#include "config/config.h"
#include "config/keys.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char good[] =
    "run: runs/test\n"
    "teacher: models/t\n"
    "data: {train: a-*.h5, valid: [b.h5, \"c d.h5\"]}\n"
    "student:\n"
    "  attention:\n"
    "    - {layers: 0, kind: full}\n"
    "    - {layers: 2-, kind: masks, candidates: [window(32), dilated(16, 4), sinks(4)], per: head}\n"
    "    - {layers: all, kind: nsa, select: 16}\n"
    "stages:\n"
    "  - {name: align, objective: attention, train: [new], length: 64, batch: 4, steps: 200, lr: 1.0e-3}\n"
    "  - {name: distil, objective: kl, train: [new, attn.qkv, lora(8)], length: 128, batch: 8, steps: 20,\n"
    "     lr: 5.0e-5, lr_end: 0, temperature: 2, ce_share: 0.25, l1: 1e-4}\n"
    "train: {clip: 0.5, micro_batch: 2}\n"
    "seed: 18446744073709551615\n";

static const char scratch[] = "run: r\n"
                              "from_scratch: {layers: 2, heads: 4, width: 64}\n"
                              "data: {train: a.h5}\n"
                              "stages:\n"
                              "  - {name: lm, objective: lm, train: all, length: 32, batch: 4, steps: 10, lr: 1e-3}\n";

static enum status parse(const char *text, const char *const *overrides, size_t count, struct config *config) {
    error_clear();
    return config_parse("recipe.yaml", text, strlen(text), overrides, count, config);
}

static void assert_ok(enum status status) {
    if (status != STATUS_OK) fail_msg("expected a good config, found: %s", error_message());
}

static void test_good(void **state) {
    (void)state;
    struct config c;
    assert_ok(parse(good, NULL, 0, &c));
    assert_string_equal(c.run, "runs/test");
    assert_int_equal(c.valid_data_count, 2);
    assert_string_equal(c.valid_data[1], "c d.h5");
    assert_int_equal(c.attention_count, 3);
    assert_int_equal(c.attention[0].last, 0);
    assert_int_equal(c.attention[1].first, 2);
    assert_int_equal(c.attention[1].last, -1);
    assert_int_equal(c.attention[1].line, 7);
    assert_int_equal(c.attention[1].option_count, 2);
    assert_int_equal(c.attention[1].options[0].count, 3);
    assert_string_equal(c.attention[1].options[0].words[1], "dilated(16,4)");
    assert_string_equal(c.attention[1].options[1].words[0], "head");
    assert_int_equal(c.stages[1].objective, OBJECTIVE_KL);
    assert_int_equal(c.stages[1].train_count, 3);
    assert_string_equal(c.stages[1].train[2], "lora(8)");
    assert_true(c.stages[0].lr == 1e-3 && fabs(c.stages[0].lr_end - 1e-4) < 1e-12);
    assert_true(c.stages[1].lr_end == 0 && c.stages[1].temperature == 2 && c.stages[1].l1 == 1e-4);
    assert_int_equal(c.stages[0].warmup_steps, 100); /* train.warmup_steps' default */
    assert_int_equal(c.stages[1].warmup_steps, 20);  /* no longer than the stage */
    assert_true(c.train.clip == 0.5 && c.train.beta1 == 0.9);
    assert_int_equal(c.train.micro_batch, 2);
    assert_int_equal(c.checkpoint.every, 500);
    assert_true(c.seed == UINT64_MAX);
    assert_false(c.deterministic || c.documents_joined || c.from_scratch);
    config_free(&c);
    config_free(&c);
}

static void test_scratch(void **state) {
    (void)state;
    struct config c;
    assert_ok(parse(scratch, (const char *const[]){"--from_scratch.type=llama"}, 1, &c));
    assert_true(c.from_scratch && c.teacher == NULL);
    assert_int_equal(c.scratch.kv_heads, 4);
    assert_int_equal(c.scratch.head_width, 16);
    assert_int_equal(c.scratch.mlp_width, 176); /* 8/3·64 = 170.7, up to a multiple of 16 */
    assert_int_equal(c.scratch.positions, 32);
    assert_int_equal(c.scratch.vocabulary, 0);
    assert_false(c.scratch.qkv_bias);
    assert_true(c.scratch.initial_std == 0.02);
    config_free(&c);
    assert_ok(parse(scratch, (const char *const[]){"--from_scratch.initial_std=0.08"}, 1, &c));
    assert_true(c.scratch.initial_std == 0.08);
    config_free(&c);
    assert_ok(parse(scratch, NULL, 0, &c));
    assert_int_equal(c.scratch.mlp_width, 256);
    assert_true(c.scratch.qkv_bias && c.scratch.output_bias && c.scratch.mlp_bias && c.scratch.causal);
    config_free(&c);
}

/* The text of a config reads back to a config with the same text. */
static void test_round_trip(void **state) {
    (void)state;
    static const char *const odd[] = {"--run=a \"b\"\\ \xc3\xa9: #x", "--train.weight_decay=0.1",
                                      "--stages.distil.lr=3.3333e-5", "--student.attention.2.layers=3-5"};
    struct config first, second;
    const char *const recipes[] = {good, scratch};
    for (size_t i = 0; i < 2; i++) {
        assert_ok(parse(recipes[i], odd, i == 0 ? 4 : 2, &first));
        assert_ok(parse(first.text, NULL, 0, &second));
        assert_string_equal(first.text, second.text);
        assert_string_equal(first.run, second.run);
        assert_int_equal(first.attention_count, second.attention_count);
        if (i == 0) {
            assert_string_equal(second.attention[1].options[0].words[1], "dilated(16,4)");
            assert_int_equal(second.attention[2].first, 3);
            assert_int_equal(second.attention[2].last, 5);
            assert_true(second.stages[1].lr == 3.3333e-5);
        }
        config_free(&first);
        config_free(&second);
    }
}

static void test_overrides(void **state) {
    (void)state;
    struct config c;
    static const char *const words[] = {"--train.clip=0.25",           "--stages.0.steps=7",
                                        "--stages.distil.batch=16",    "--data.train=[x.h5, y.h5]",
                                        "--eval.sequences=3",          "--student.attention.1.per=layer",
                                        "--train.micro_batch=",        "--data.valid=v-*.h5",
                                        "--stages.distil.train=[all]", "--train.micro_batch=auto"};
    assert_ok(parse(good, words, sizeof words / sizeof *words, &c));
    assert_true(c.train.clip == 0.25);
    assert_int_equal(c.stages[0].steps, 7);
    assert_int_equal(c.stages[1].batch, 16);
    assert_int_equal(c.train_data_count, 2);
    assert_string_equal(c.train_data[1], "y.h5");
    assert_int_equal(c.eval.sequences, 3);
    assert_string_equal(c.attention[1].options[1].words[0], "layer");
    assert_string_equal(c.valid_data[0], "v-*.h5");
    assert_int_equal(c.train.micro_batch, 0);
    assert_int_equal(c.stages[1].train_count, 1);
    config_free(&c);
}

/* A good recipe with words of the command line, or a text of its own, and a part of the message that must come. */
struct wrong {
    const char *name;
    const char *text; /* NULL: `good` */
    const char *override[2];
    const char *message;
};

static const struct wrong wrongs[] = {
    {"not yaml", "run: [a\n", {NULL}, "recipe.yaml:2: not YAML"},
    {"a tab", "run: a\n\tx: 1\n", {NULL}, "recipe.yaml:2: not YAML"},
    {"not utf-8", "run: \xff\n", {NULL}, "recipe.yaml: byte 5"},
    {"two documents", "run: a\n---\nrun: b\n", {NULL}, "recipe.yaml:3: a second YAML document"},
    {"a list", "- a\n", {NULL}, "expected a map of keys, found a list"},
    {"empty", "", {NULL}, "the key run is missing"},
    {"key twice", "run: a\nseed: 1\nrun: b\n", {NULL}, "recipe.yaml:3: the key \"run\" stands twice, first in line 1"},
    {"key is a list", "[a]: 1\n", {NULL}, "a key must be one word, found a list"},
    {"cyclic", "run: &x [*x]\n", {NULL}, "nested deeper"},
    {"no stages",
     "run: a\nteacher: b\ndata: {train: c}\n",
     {NULL},
     "stages: expected a list of at least one stage, found none"},
    {"empty stages", "run: a\ndata: {train: c}\nstages: []\n", {NULL}, "recipe.yaml:3: stages: expected a list"},
    {"unknown top key", NULL, {"--precisoin=bf16"}, "unknown key precisoin; did you mean precision?"},
    {"unknown key, line", "run: a\ntrian: {}\n", {NULL}, "recipe.yaml:2: unknown key trian; did you mean train?"},
    {"unknown train key", NULL, {"--train.clop=1"}, "--train.clop=1: unknown key train.clop; did you mean clip?"},
    {"unknown stage key", NULL, {"--stages.align.step=1"}, "unknown key stages.align.step; did you mean steps?"},
    {"unknown student key", NULL, {"--student.kind=a"}, "unknown key student.kind"},
    {"unknown far key", NULL, {"--zzzzzzzz=1"}, "unknown key zzzzzzzz; known: run, teacher"},
    {"no such stage", NULL, {"--stages.nope.lr=1"}, "no entry \"nope\" in the list of 2"},
    {"stage index", NULL, {"--stages.2.lr=1"}, "no entry \"2\" in the list of 2"},
    {"inside a text", NULL, {"--run.x=1"}, "\"x\" would lie inside a text"},
    {"override without value", NULL, {"--run"}, "expected --key=value"},
    {"override of nothing", NULL, {"--=3"}, "expected --key=value"},
    {"override not yaml", NULL, {"--data.train=[a"}, "not YAML"},
    {"required removed", NULL, {"--run="}, "the key run is missing; expected a text"},
    {"stage without lr", NULL, {"--stages.align.lr="}, "the key stages.align.lr is missing"},
    {"clip no number",
     NULL,
     {"--train.clip=abc"},
     "--train.clip=abc: train.clip: expected a number from 0 to 1e+30, found \"abc\""},
    {"clip nan", NULL, {"--train.clip=nan"}, "train.clip: expected a number"},
    {"clip a list", NULL, {"--train.clip=[1]"}, "train.clip: expected a number from 0 to 1e+30, found a list"},
    {"clip negative", NULL, {"--train.clip=-1"}, "train.clip: expected a number from 0"},
    {"clip nothing",
     "run: a\ntrain: {clip: }\ndata: {train: c}\n",
     {NULL},
     "recipe.yaml:2: train.clip: expected a number from 0 to 1e+30, found nothing"},
    {"steps zero", NULL, {"--stages.align.steps=0"}, "stages.align.steps: expected an integer from 1"},
    {"steps real", NULL, {"--stages.align.steps=1.5"}, "stages.align.steps: expected an integer"},
    {"steps huge", NULL, {"--stages.align.steps=99999999999999999999"}, "stages.align.steps: expected an integer"},
    {"batch word", NULL, {"--stages.align.batch=auto"}, "stages.align.batch: expected an integer"},
    {"micro word",
     NULL,
     {"--train.micro_batch=some"},
     "expected an integer from 1 to 1048576, or auto, found \"some\""},
    {"seed negative", NULL, {"--seed=-1"}, "seed: expected an integer from 0"},
    {"bool yes", NULL, {"--deterministic=yes"}, "deterministic: expected true or false, found \"yes\""},
    {"objective", NULL, {"--stages.align.objective=mse"}, "expected lm, attention or kl, found \"mse\""},
    {"precision", NULL, {"--precision=fp16"}, "precision: expected fp32 or bf16, found \"fp16\""},
    {"documents", NULL, {"--data.documents=both"}, "data.documents: expected separate or joined"},
    {"decay", NULL, {"--train.decay=sqrt"}, "train.decay: expected cosine, linear or constant"},
    {"train empty",
     NULL,
     {"--stages.align.train=[]"},
     "stages.align.train: expected a text or a list of texts, found a list"},
    {"train twice", NULL, {"--stages.align.train=[new, new]"}, "stages.align.train: \"new\" stands twice"},
    {"data a map", NULL, {"--data.train={a: b}"}, "data.train: expected a text or a list of texts, found a map"},
    {"data a text", NULL, {"--data=x"}, "data: expected a map of keys, found text"},
    {"temperature 0", NULL, {"--stages.distil.temperature=0"}, "stages.distil.temperature: expected a number above 0"},
    {"temperature of attention", NULL, {"--stages.align.temperature=2"}, "stages.align.temperature: only objective kl"},
    {"share of attention", NULL, {"--stages.align.ce_share=0.5"}, "stages.align.ce_share: only objective kl"},
    {"share over 1", NULL, {"--stages.distil.ce_share=1.5"}, "stages.distil.ce_share: expected a number from 0 to 1"},
    {"warm-up too long",
     NULL,
     {"--stages.align.warmup_steps=201"},
     "expected at most the stage's 200 steps, found 201"},
    {"lr 0", NULL, {"--stages.align.lr=0"}, "stages.align.lr: expected a number above 0"},
    {"lr_end above lr", NULL, {"--stages.align.lr_end=1"}, "stages.align.lr_end: expected at most lr 0.001, found 1"},
    {"micro above batch",
     NULL,
     {"--train.micro_batch=5"},
     "train.micro_batch: expected at most the batch 4 of stage align"},
    {"stage name twice", NULL, {"--stages.0.name=distil"}, "two stages are called \"distil\""},
    {"stage name a number", NULL, {"--stages.0.name=12"}, "not digits alone, found \"12\""},
    {"stage name a path", NULL, {"--stages.0.name=a/b"}, "stages.name: expected at most 32 letters"},
    {"no teacher", NULL, {"--teacher="}, "expected teacher: DIRECTORY, or from_scratch"},
    {"no student", NULL, {"--student.attention="}, "student.attention is missing"},
    {"teacher and scratch", scratch, {"--teacher=t"}, "teacher and from_scratch exclude each other"},
    {"lm with teacher", NULL, {"--stages.align.objective=lm"}, "lm trains a from_scratch model"},
    {"kl from scratch", scratch, {"--stages.lm.objective=kl"}, "kl needs a teacher"},
    {"attention from scratch", scratch, {"--stages.lm.objective=attention"}, "attention needs a teacher"},
    {"lm with student", scratch, {"--student.attention=[{kind: masks}]"}, "student.attention needs a teacher"},
    {"new from scratch", scratch, {"--stages.lm.train=new"}, "\"new\" names what a student adds"},
    {"l1 from scratch", scratch, {"--stages.lm.l1=0.1"}, "has no sparse parameters"},
    {"kv heads",
     scratch,
     {"--from_scratch.kv_heads=3"},
     "from_scratch.kv_heads: expected a divisor of heads 4, found 3"},
    {"width", scratch, {"--from_scratch.width=65"}, "from_scratch.width: expected a multiple of heads 4"},
    {"odd rotary head",
     scratch,
     {"--from_scratch.type=llama", "--from_scratch.head_width=15"},
     "need an even one, found 15"},
    {"beyond positions",
     scratch,
     {"--from_scratch.positions=16"},
     "expected at most from_scratch.positions 16, found 32"},
    {"context", NULL, {"--parallel.context=2"}, "this version has no context parallelism; expected 1, found 2"},
    {"eval without data", NULL, {"--data.valid=", "--eval.every=10"}, "eval.every 10 needs data.valid"},
    {"device", NULL, {"--device=tpu"}, "device: expected auto, cpu, cuda or guard:cpu, found \"tpu\""},
    {"rules a map", NULL, {"--student.attention={kind: full}"}, "student.attention: expected a list"},
    {"rules empty", NULL, {"--student.attention=[]"}, "found an empty one"},
    {"rule a word", NULL, {"--student.attention=[full]"}, "expected a map such as"},
    {"rule without kind",
     NULL,
     {"--student.attention.0.kind="},
     "recipe.yaml:6: student.attention: the key kind is missing"},
    {"layers word",
     NULL,
     {"--student.attention.0.layers=first"},
     "expected all, a layer from 0, or FIRST-LAST, found \"first\""},
    {"layers backwards", NULL, {"--student.attention.0.layers=3-1"}, "expected all, a layer from 0"},
    {"layers a list", NULL, {"--student.attention.0.layers=[0, 1]"}, "FIRST-LAST, found a list"},
    {"layers negative", NULL, {"--student.attention.0.layers=-1"}, "expected all, a layer from 0"},
    {"option a map",
     NULL,
     {"--student.attention.1.per={a: b}"},
     "student.attention.per: expected a text, a number or a list"},
    {"option empty", NULL, {"--student.attention.1.per=[]"}, "found an empty list"},
};

static void test_wrong(void **state) {
    (void)state;
    int bad = 0;
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        const struct wrong *row = &wrongs[i];
        size_t count = 0;
        while (count < 2 && row->override[count]) count++;
        struct config c;
        enum status status = parse(row->text ? row->text : good, row->override, count, &c);
        if (status != STATUS_USAGE || !strstr(error_message(), row->message)) {
            print_error("row \"%s\": expected usage: %s\n  found %s: %s\n", row->name, row->message,
                        status_name(status), status == STATUS_OK ? "" : error_message());
            bad++;
        }
        config_free(&c);
    }
    error_clear();
    assert_int_equal(bad, 0);
}

static void test_missing_file(void **state) {
    (void)state;
    struct config c;
    error_clear();
    assert_int_equal(config_read("no/such/recipe.yaml", NULL, 0, &c), STATUS_NOT_FOUND);
    assert_non_null(strstr(error_message(), "no/such/recipe.yaml"));
    error_clear();
}

/* Billion laughs: aliases of aliases must end in a message, not in memory. */
static void test_aliases(void **state) {
    (void)state;
    char text[2048] = "a: &a [x,x,x,x,x,x,x,x,x,x]\n";
    for (char c = 'b'; c <= 'i'; c++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c - 1,
                 c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1);
    }
    struct config config;
    assert_int_equal(parse(text, NULL, 0, &config), STATUS_USAGE);
    assert_non_null(strstr(error_message(), "entries"));
    error_clear();
}

/* Every recipe that comes along reads. */
static void test_recipes(void **state) {
    (void)state;
    const char *source = getenv("SQUINT_SOURCE");
    char **paths = NULL, pattern[1024];
    size_t count = 0;
    if (!source) CHECK_SKIP("SQUINT_SOURCE does not say where launch/recipes is");
    snprintf(pattern, sizeof pattern, "%s/launch/recipes/*.yaml", source);
    assert_ok(file_glob(pattern, &paths, &count));
    for (size_t i = 0; i < count; i++) {
        struct config c;
        error_clear();
        assert_ok(config_read(paths[i], NULL, 0, &c));
        config_free(&c);
    }
    file_free_list(paths, count);
}

static void test_reference(void **state) {
    (void)state;
    char *text = NULL;
    assert_ok(config_reference(&text));
    assert_non_null(strstr(text, "| train.clip | a number from 0 to 1e+30 | 1.0 |"));
    assert_non_null(strstr(text, "| stages.lr | a number above 0 to 1000 | required |"));
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),      cmocka_unit_test(test_scratch),   cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_overrides), cmocka_unit_test(test_wrong),     cmocka_unit_test(test_missing_file),
        cmocka_unit_test(test_aliases),   cmocka_unit_test(test_reference), cmocka_unit_test(test_recipes),
    };
    return check_exit(cmocka_run_group_tests_name("config", tests, NULL, NULL));
}
