/* Hugging Face directories that go out: what is written is what was read, whole or not at all; a student's extra files.
 */
#include "io/huggingface_models.h"
#include "support/scratch.h"

/* ---- saving
 * ------------------------------------------------------------------------------------------------------------ */
static void check_same_files(const char *a, const char *b) {
    char *left = NULL, *right = NULL;
    size_t left_length = 0, right_length = 0;
    CHECK_OK(file_read(a, &left, &left_length));
    CHECK_OK(file_read(b, &right, &right_length));
    assert_int_equal(left_length, right_length);
    assert_memory_equal(left, right, left_length);
    free(left);
    free(right);
}

static void saves_what_it_loads(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof golden_configs / sizeof *golden_configs; i++) {
        char once[512], twice[512];
        struct model_config model, again;
        struct params params;
        load(golden(golden_configs[i].name), i % 2 ? &host_ops_f64 : &host_ops_f32, &model, &params);
        struct huggingface_save what = {.model = &model, .params = &params, .tokenizer = golden("llama-sharded")};
        snprintf(once, sizeof once, "%s/once-%zu/", scratch, i);
        snprintf(twice, sizeof twice, "%s/twice-%zu", scratch, i);
        CHECK_OK(huggingface_save(once, &what));
        CHECK_OK(file_make_directory(twice)); /* an empty directory is as good as none */
        CHECK_OK(huggingface_save(twice, &what));
        CHECK_OK(huggingface_read_config(once, &again));
        check_same_config(golden_configs[i].name, &again, &golden_configs[i].expected);
        assert_true(hash_of(once) == hash_of(golden(golden_configs[i].name)));
        char left[600], right[600];
        static const char *const files[] = {"model.safetensors", "config.json"};
        for (int f = 0; f < 2; f++) {
            snprintf(left, sizeof left, "%s%s", once, files[f]);
            snprintf(right, sizeof right, "%s/%s", twice, files[f]);
            check_same_files(left, right);
        }
        snprintf(left, sizeof left, "%ssquint.json", once);
        assert_false(file_exists(left)); /* a model that attends to everything needs none */
        CHECK_STATUS(STATUS_USAGE, huggingface_save(once, &what));
        params_free(&params);
    }
}

static void publishes_whole_directories(void **state) {
    (void)state;
    struct model_config model;
    struct params params;
    load(golden("gpt2-tied"), &host_ops_f32, &model, &params);
    struct huggingface_save what = {.model = &model, .params = &params};
    const char *file = scratch_path("a-file");
    CHECK_OK(file_write(file, "x", 1));
    assert_int_equal(huggingface_save(file, &what), STATUS_USAGE);
    assert_non_null(strstr(error_message(), "expected a new or empty directory, found a file"));
    error_clear();
    snprintf(params.rows[3].name, sizeof params.rows[3].name, "h.0.unheard.weight");
    assert_int_equal(huggingface_save(scratch_path("new"), &what), STATUS_FAILED);
    assert_non_null(strstr(error_message(), "h.0.unheard.weight"));
    error_clear();
    char **names = NULL;
    size_t count = 0;
    CHECK_OK(file_list(scratch, &names, &count));
    for (size_t i = 0; i < count; i++) assert_null(strstr(names[i], "new"));
    file_free_list(names, count);
    params_free(&params);
}

/* ---- students
 * ---------------------------------------------------------------------------------------------------------- */
static const char *const lora_names[] = {"h.1.attn.qkv.lora_a", "h.1.attn.qkv.lora_b"};

/* A student of the teacher with rows of a kind and, for layer 1, LoRA (rank 0: none). */
static void new_student(const struct params *teacher, int64_t rank, struct params *student) {
    const struct param added[] = {{.name = "h.0.attn.masks.coefficients", .rank = 2, .shape = {3, 4}, .added = true},
                                  {.name = "h.1.attn.masks.blocks", .rank = 3, .shape = {2, 3, 5}, .added = true},
                                  {.name = "h.1.attn.masks.bias", .rank = 1, .shape = {6}, .added = true}};
    const struct param low[] = {{.name = "h.1.attn.qkv.lora_a", .rank = 2, .shape = {rank, 48}, .lora = true},
                                {.name = "h.1.attn.qkv.lora_b", .rank = 2, .shape = {144, rank}, .lora = true}};
    CHECK_OK(params_share(teacher, student));
    for (int i = 0; i < 3; i++) CHECK_OK(params_add(student, &added[i], 0));
    for (int i = 0; i < 2 && rank > 0; i++) CHECK_OK(params_add(student, &low[i], 0));
    CHECK_OK(params_own(student, (char *[]){"mlp.down"}, 1));
    CHECK_OK(params_place(student, false));
    for (int64_t i = 0; i < student->count; i++) {
        struct param *row = &student->rows[i];
        for (int64_t e = 0; row->owned && e < tensor_count(row->value); e++) {
            double value = (double)(i + 1) + (double)e / 64;
            if (row->value.dtype == DTYPE_F64) {
                ((double *)row->value.data)[e] = value;
            } else {
                ((float *)row->value.data)[e] = (float)value;
            }
        }
    }
}

static void check_rules(const struct config_attention *rules, size_t count) {
    assert_int_equal(count, 2);
    assert_string_equal(rules[0].kind, "full");
    assert_int_equal(rules[0].option_count, 0);
    assert_string_equal(rules[1].kind, "masks");
    assert_int_equal(rules[1].first, 1);
    assert_int_equal(rules[1].last, -1);
    assert_int_equal(rules[1].option_count, 2);
    assert_string_equal(rules[1].options[0].key, "candidates");
    assert_int_equal(rules[1].options[0].count, 2);
    assert_string_equal(rules[1].options[0].words[1], "dilated(16, 4)");
    assert_string_equal(rules[1].options[1].words[0], "layer");
}

static void save_student(const struct ops *ops, int64_t rank) {
    struct model_config model, exported;
    struct params teacher, student, full, back;
    load(golden("gpt2-tied"), ops, &model, &teacher);
    new_student(&teacher, rank, &student);
    struct config_option options[] = {{"candidates", (char *[]){"window(32)", "dilated(16, 4)"}, 2, 7},
                                      {"per", (char *[]){"layer"}, 1, 8}};
    struct config_attention rules[] = {
        {.first = 0, .last = 0, .kind = "full"},
        {.first = 1, .last = -1, .kind = "masks", .options = options, .option_count = 2}};
    struct huggingface_save what = {
        .model = &model, .params = &student, .rules = rules, .rule_count = 2, .teacher = "0123"};
    char directory[600];
    snprintf(directory, sizeof directory, "%s/student-%s-%d", scratch, ops->name, (int)rank);
    CHECK_OK(huggingface_save(directory, &what));

    /* As a full-attention model: the teacher's values, the student's own, and LoRA added in. */
    load(directory, ops, &exported, &full);
    for (int64_t i = 0; i < full.count; i++) {
        const struct param *row = &full.rows[i];
        int64_t columns = row->rank == 2 ? row->shape[1] : 1;
        for (int64_t e = 0; e < tensor_count(row->value); e++) {
            double expected = element(&student, row->name, 0, e), found = element(&full, row->name, 0, e);
            for (int64_t r = 0; strcmp(row->name, "h.1.attn.qkv.weight") == 0 && r < rank; r++) {
                expected +=
                    element(&student, lora_names[1], e / columns, r) * element(&student, lora_names[0], r, e % columns);
            }
            if ((float)expected != (float)found)
                fail_msg("%s: element %ld: expected %.9g, found %.9g", row->name, (long)e, expected, found);
        }
    }

    /* As the student. */
    struct config_attention *read = NULL;
    size_t count = 0;
    CHECK_OK(huggingface_read_rules(directory, &read, &count));
    check_rules(read, count);
    huggingface_free_rules(read, count);
    new_student(&full, 0, &back);
    for (int64_t i = 0; i < back.count; i++) {
        if (back.rows[i].added) CHECK_OK(host_fill(ops, back.rows[i].value, -1));
    }
    CHECK_OK(huggingface_load_added(directory, &back));
    for (int64_t i = 0; i < back.count; i++) {
        if (!back.rows[i].added) continue;
        const struct param *from = params_find(&student, back.rows[i].name);
        assert_memory_equal(back.rows[i].value.data, from->value.data, tensor_bytes(from->value));
    }
    /* A student with other rows is told so. */
    snprintf(params_find(&back, "h.1.attn.masks.bias")->name, 64, "h.1.attn.nsa.bias");
    params_find(&back, "h.1.attn.masks.blocks")->shape[2] = 6;
    assert_int_equal(huggingface_load_added(directory, &back), STATUS_DAMAGED);
    assert_non_null(
        strstr(error_message(), "squint.safetensors: 3 tensors are wrong: h.1.attn.masks.blocks: expected"));
    assert_non_null(strstr(error_message(), "h.1.attn.nsa.bias: missing; h.1.attn.masks.bias: surplus"));
    error_clear();
    params_free(&back);
    params_free(&full);
    params_free(&student);
    params_free(&teacher);
}

static void saves_students(void **state) {
    (void)state;
    save_student(&host_ops_f32, 2);
    save_student(&host_ops_f64, 110); /* LoRA's rows may be larger than the weight's */
}

#define RULES(entry) "{\"format_version\":1,\"attention\":[" entry "]}"
static const struct {
    const char *name, *json, *message;
} bad_rules[] = {
    {"not JSON", "{", "expected JSON"},
    {"no version", "{\"attention\":[]}", "format_version: expected 1, found none"},
    {"another version", "{\"format_version\":2}", "format_version: expected 1, found another"},
    {"no list", "{\"format_version\":1}", "attention: expected a list of layers and kinds, found none"},
    {"empty list", RULES(""), "attention: expected a list of layers and kinds, found none"},
    {"entry is a text", RULES("\"full\""), "entry 0: expected first >= 0, last >= -1, kind, options"},
    {"negative first", RULES("{\"first\":-1,\"last\":2,\"kind\":\"full\",\"options\":{}}"), "entry 0: expected"},
    {"no options", RULES("{\"first\":0,\"last\":2,\"kind\":\"full\"}"), "entry 0: expected"},
    {"option is a text", RULES("{\"first\":0,\"last\":2,\"kind\":\"masks\",\"options\":{\"per\":\"head\"}}"),
     "option per: expected a list of texts, found none"},
    {"word is a number", RULES("{\"first\":0,\"last\":2,\"kind\":\"masks\",\"options\":{\"per\":[\"a\",3]}}"),
     "option per: expected a list of texts"},
};

static void refuses_wrong_rules(void **state) {
    (void)state;
    struct config_attention *rules;
    size_t count = 9;
    CHECK_OK(huggingface_read_rules(golden("gpt2-tied"), &rules, &count));
    assert_int_equal(count, 0);
    const char *path = scratch_path("squint.json");
    for (size_t i = 0; i < sizeof bad_rules / sizeof *bad_rules; i++) {
        CHECK_OK(file_write(path, bad_rules[i].json, strlen(bad_rules[i].json)));
        enum status status = huggingface_read_rules(scratch, &rules, &count);
        if (status != STATUS_DAMAGED || count != 0 || !strstr(error_message(), bad_rules[i].message) ||
            !strstr(error_message(), path)) {
            fail_msg("%s: expected \"%s\", found %s: \"%s\"", bad_rules[i].name, bad_rules[i].message,
                     status_name(status), error_message());
        }
        error_clear();
    }
    CHECK_OK(file_remove_tree(path));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(saves_what_it_loads),
        cmocka_unit_test(publishes_whole_directories),
        cmocka_unit_test(saves_students),
        cmocka_unit_test(refuses_wrong_rules),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
