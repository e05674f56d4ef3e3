/* squint train: a recipe -> a run. */
#include "commands/commands.h"
#include "commands/with_run.h"
#include "train/record.h"
#include "train/trainer.h"

#include <stdio.h>
#include <stdlib.h>

static enum status print_keys(void) {
    char *text = NULL;
    TRY(config_reference(&text));
    fputs(text, stdout);
    free(text);
    return STATUS_OK;
}

/* The resolved recipe on standard output, the plan on standard error; nothing is written. */
static enum status dry_run(struct run *run) {
    if (comm_rank(run->comm) == 0) fputs(run->config->text, stdout);
    fflush(stdout);
    record_announce(run);
    TRY(run_divide_masters(run));
    for (size_t i = 0; i < run->config->stage_count; i++) {
        struct stage_memory memory;
        int64_t trained = 0;
        TRY(run_start_stage(run, i, &trained));
        TRY(run_measure_stage(run, i, &memory));
        record_plan(run, i, &memory);
    }
    return STATUS_OK;
}

static enum status run_train(int argc, char **argv) {
    struct trainer_options trainer = {.resume = "auto"};
    struct option_list words = {0}, overrides = {0};
    struct with_run with = {0};
    bool dry = false, keys = false;
    const struct option options[] = {
        {.name = "resume", .type = OPTION_TEXT, .target = &trainer.resume},
        {.name = "dry-run", .type = OPTION_FLAG, .target = &dry},
        {.name = "keys", .type = OPTION_FLAG, .target = &keys},
    };
    enum status status = options_read(argc, argv, options, sizeof options / sizeof *options, &words, &overrides);
    if (status == STATUS_OK && keys) {
        status = print_keys();
    } else if (status == STATUS_OK) {
        status = with_run_open("train", &words, &overrides, &with);
        if (status == STATUS_OK) status = dry ? dry_run(&with.run) : trainer_run(&with.run, &trainer);
        status = with_run_close(&with, status);
    }
    options_free(&words);
    options_free(&overrides);
    return status;
}

const struct command command_train = {
    .name = "train",
    .summary = "train what a YAML recipe describes: objectives lm, attention, kl; under mpirun",
    .help = "usage: squint train RECIPE.yaml [--section.key=value ...] [options]\n"
            "       mpirun -np N squint train RECIPE.yaml ...\n\n"
            "Runs the recipe's stages, with checkpoints in the run's directory. A signal (SIGUSR1, SIGTERM, Ctrl-C) "
            "saves at the\n"
            "next step and ends with exit code 75; the same command then goes on from there.\n\n"
            "  --section.key=value   changes a key of the recipe; a stage is named by index or name "
            "(--stages.distil.lr=1e-4);\n"
            "                        an empty value takes the key away\n"
            "  --resume auto         from the run's newest checkpoint that verifies, when there is one (default)\n"
            "  --resume PATH         from this checkpoint, or another run's newest\n"
            "  --resume never        from the beginning; what the directory holds is set aside (checkpoints.old)\n"
            "  --dry-run             prints the resolved recipe, the memory plan and the length of the sample order; "
            "writes nothing\n"
            "  --keys                prints every key of a recipe: allowed values, default, meaning\n\n"
            "example: mpirun -np 2 squint train launch/recipes/stories-masks.yaml --train.clip=0.5\n",
    .run = run_train,
};
