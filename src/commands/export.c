/* squint export: a model -> a Hugging Face directory. io/huggingface.h does the work. */
#include "base/log.h"
#include "commands/commands.h"
#include "commands/with_model.h"
#include "io/huggingface.h"

#include <string.h>

static enum status export_model(const struct loaded_model *loaded, const char *out) {
    const struct model *model = loaded->model;
    const char *teacher = loaded->teacher_identity[0] ? loaded->teacher_identity : NULL;
    const struct huggingface_save what = {.model = &model->config,
                                          .params = &model->params,
                                          .rules = loaded->rules,
                                          .rule_count = loaded->rule_count,
                                          .tokenizer = loaded->tokenizer,
                                          .teacher = teacher};
    int64_t base = 0, added = 0;
    bool student = false;
    char base_text[32], added_text[32];
    TRY(huggingface_save(out, &what));
    for (size_t i = 0; i < loaded->rule_count; i++) student = student || strcmp(loaded->rules[i].kind, "full") != 0;
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *row = &model->params.rows[i];
        if (row->added) added += tensor_count(row->value);
        if (!row->added && !row->lora) base += tensor_count(row->value);
    }
    count_text(base, base_text);
    count_text(added, added_text);
    log_line("%s: model.safetensors, %s parameters as float32", out, base_text);
    if (student) {
        log_line("%s: squint.json, squint.safetensors: the kinds of attention and %s parameters of theirs; "
                 "transformers loads the "
                 "rest as a model with full attention",
                 out, added_text);
    }
    if (!loaded->tokenizer) log_warning("%s: no tokenizer found to go with it", out);
    return STATUS_OK;
}

static enum status run(int argc, char **argv) {
    struct model_options options = {0};
    struct with_model with;
    const char *out = NULL;
    const struct option table[] = {
        {"model", OPTION_TEXT, &options.model, 0, 0},
        {"out", OPTION_TEXT, &out, 0, 0},
    };
    TRY(options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL));
    if (!out) return error_set(STATUS_USAGE, "export: --out: expected the name of a new directory, found none");
    TRY(huggingface_check_target(out));
    enum status status = with_model_open("export", &options, false, 0, &with);
    if (status == STATUS_OK) status = export_model(&with.loaded, out);
    return with_model_close(&with, status);
}

const struct command command_export = {
    .name = "export",
    .summary = "student -> Hugging Face directory that transformers loads",
    .help = "usage: squint export --model MODEL --out DIR\n"
            "\n"
            "Writes config.json, model.safetensors (float32, LoRA added in) and the tokenizer's files; transformers "
            "loads them as a\n"
            "GPT-2 or Llama model with full attention. Of a student, squint.json and squint.safetensors beside them "
            "keep the kinds\n"
            "of attention and their own parameters: squint loads the directory as the student. DIR appears whole or "
            "not at all.\n"
            "\n"
            "  --model MODEL        a checkpoint (step-...), a run directory (its newest one), or a Hugging Face "
            "directory\n"
            "  --out DIR            a new or empty directory\n"
            "\n"
            "example: squint export --model runs/gpt2-masks --out models/gpt2-masks\n",
    .run = run,
};
