/* squint allocate: a budget of density or KL -> kind and size for every layer and head -> a recipe. */
#include "eval/allocate.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "commands/allocate_print.h"
#include "commands/allocate_recipe.h"
#include "commands/bench_kinds.h"
#include "commands/commands.h"
#include "commands/with_model.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct allocate_command {
    struct model_options model;
    struct option_list data, train;
    const char *kinds, *out, *json, *per, *run;
    double density, kl;
    int64_t length, sequences, batch, evaluations, seed;
    char *line; /* the command, for the recipe's comment */
};

/* --- before anything is opened -------------------------------------------------------------------------------------
 */

static enum status check_folder(const char *option, const char *path) {
    char *folder = NULL;
    if (!path || strcmp(path, "-") == 0 || !strrchr(path, '/')) return STATUS_OK;
    TRY(memory_copy_text(path, &folder));
    *strrchr(folder, '/') = '\0';
    bool there = folder[0] == '\0' || file_is_directory(folder);
    enum status status = STATUS_OK;
    if (!there) {
        status = error_set(STATUS_USAGE, "allocate: --%s: expected a file in a directory that exists, found %s", option,
                           path);
    }
    free(folder);
    return status;
}

static enum status check(const struct allocate_command *o) {
    if (!o->model.model) return error_set(STATUS_USAGE, "allocate: --teacher: expected a model, found none");
    if (o->data.count == 0) return error_set(STATUS_USAGE, "allocate: --data: expected token shards, found none");
    if (o->density == 0 && o->kl == 0)
        return error_set(STATUS_USAGE, "allocate: expected a budget, --density D or --kl K, found none");
    if (o->density != 0 && o->kl != 0)
        return error_set(STATUS_USAGE, "allocate: expected one budget, found --density and --kl");
    if (o->per && strcmp(o->per, "head") != 0 && strcmp(o->per, "layer") != 0)
        return error_set(STATUS_USAGE, "allocate: --per: expected head or layer, found \"%s\"", o->per);
    TRY(check_folder("out", o->out));
    return check_folder("json", o->json);
}

/* What a shell reads as the same words. */
static enum status write_line(int argc, char **argv, char **line) {
    size_t bytes = 0;
    FILE *out = open_memstream(line, &bytes);
    if (!out) return error_set(STATUS_MEMORY, "allocate: no memory for the command's line");
    fputs("squint", out);
    for (int i = 0; i < argc; i++) {
        bool plain = argv[i][0] != '\0';
        for (const char *c = argv[i]; *c; c++)
            plain = plain && (isalnum((unsigned char)*c) || strchr("-_./=:,+%@", *c));
        fputs(plain ? " " : " '", out);
        for (const char *c = argv[i]; *c; c++) {
            if (*c == '\'') {
                fputs("'\\''", out);
            } else {
                fputc(iscntrl((unsigned char)*c) ? ' ' : *c, out);
            }
        }
        if (!plain) fputc('\'', out);
    }
    return fclose(out) == 0 ? STATUS_OK : error_set(STATUS_MEMORY, "allocate: no memory for the command's line");
}

/* --- candidates ----------------------------------------------------------------------------------------------------
 */

/* A layer's rule must mean the same whatever the other layers are. */
static enum status check_rules(const struct bench_kinds *kinds, const char *where) {
    for (int n = 0; n < kinds->count; n++) {
        const struct config_attention *rule = &kinds->rules[n];
        for (size_t i = 0; i < rule->option_count; i++) {
            const struct config_option *option = &rule->options[i];
            if (strcmp(option->key, "per") != 0 || option->count != 1 || strcmp(option->words[0], "model") != 0)
                continue;
            return error_set(STATUS_USAGE,
                             "%s:%d: %s: per: expected head or layer, found \"model\": layers are chosen one by one",
                             where, rule->line, rule->kind);
        }
    }
    return STATUS_OK;
}

static enum status read_candidates(const struct allocate_command *o, const struct model *teacher, const char *where,
                                   struct bench_kinds *kinds) {
    char *text = NULL;
    if (!o->kinds) TRY(allocate_builtin(o->length, teacher->config.head_width, o->density, &text));
    enum status status = bench_kinds_read("allocate", o->kinds ? o->kinds : text, kinds);
    free(text);
    return status == STATUS_OK ? check_rules(kinds, where) : status;
}

/* --- what comes out --------------------------------------------------------------------------------------------------
 */

/* runs/NAME, NAME as the recipe's file without its ending. */
static enum status name_run(const struct allocate_command *o, char **run) {
    const char *slash = o->out ? strrchr(o->out, '/') : NULL, *name = slash ? slash + 1 : o->out ? o->out : "allocated";
    if (o->run) return memory_copy_text(o->run, run);
    size_t length = strcspn(name, ".");
    return memory_format(run, "runs/%.*s", (int)(length > 0 ? length : strlen(name)), name);
}

/* Where the shards are named NAME-valid-…: NAME-train-…, if there are such; else those that were measured on. */
static enum status name_train(const struct option_list *data, char ***train, bool *same) {
    enum status status = STATUS_OK;
    *same = false;
    TRY(memory_new(data->count, sizeof **train, "names of shards", train));
    for (size_t i = 0; i < data->count && status == STATUS_OK; i++) {
        char *valid, **paths = NULL;
        size_t found = 0;
        TRY(memory_copy_text(data->values[i], &(*train)[i]));
        valid = (*train)[i];
        char *last = NULL;
        for (char *at = strstr(valid, "-valid-"); at; at = strstr(at + 1, "-valid-")) last = at;
        if (last) memcpy(last, "-train-", strlen("-train-"));
        status = last ? file_glob(valid, &paths, &found) : STATUS_NOT_FOUND;
        file_free_list(paths, found);
        if (status != STATUS_NOT_FOUND) continue;
        error_clear();
        status = STATUS_OK;
        *same = true;
        strcpy(valid, data->values[i]);
    }
    return status;
}

static enum status make_recipe(const struct allocate_command *o, const struct with_model *with,
                               const struct allocate_options *options, const struct allocation *allocation,
                               char **text) {
    char *run = NULL, **train = NULL;
    bool same = false;
    enum status status = name_run(o, &run);
    if (status == STATUS_OK && o->train.count == 0) status = name_train(&o->data, &train, &same);
    const struct allocate_recipe recipe = {
        .command = o->line,
        .run = run,
        .teacher = o->model.model,
        .train = o->train.count > 0 ? o->train.values : (const char *const *)train,
        .train_count = o->train.count > 0 ? o->train.count : o->data.count,
        .valid = o->data.values,
        .valid_count = o->data.count,
        .same_data = same,
        .precision = o->model.precision,
        .positions = o->model.positions,
        .length = o->length,
        .model = with->loaded.model,
        .options = options,
        .allocation = allocation,
    };
    if (status == STATUS_OK) status = allocate_recipe_write(&recipe, o->out ? o->out : "recipe", text);
    for (size_t i = 0; train && i < o->data.count; i++) free(train[i]);
    free(train);
    free(run);
    return status;
}

static enum status report(const struct allocate_command *o, const struct with_model *with,
                          const struct allocate_options *options, const struct allocation *allocation) {
    char *recipe = NULL, *json = NULL;
    bool json_only = o->json && strcmp(o->json, "-") == 0;
    enum status status;
    TRY_GOTO(done, make_recipe(o, with, options, allocation, &recipe));
    const struct allocate_results results = {.teacher = o->model.model,
                                             .options = options,
                                             .allocation = allocation,
                                             .recipe = recipe,
                                             .heads = with->loaded.model->config.heads,
                                             .length = o->length};
    if (o->json) TRY_GOTO(done, allocate_json(&results, &json));
    if (o->out) TRY_GOTO(done, file_write(o->out, recipe, strlen(recipe)));
    if (o->json && !json_only) TRY_GOTO(done, file_write(o->json, json, strlen(json)));
    if (json_only) {
        fputs(json, stdout);
    } else {
        TRY_GOTO(done, allocate_print(stdout, &results));
        if (!o->out) printf("\n%s", recipe);
    }
    if (o->out) log_line("recipe   %s", o->out);
done:
    free(recipe);
    free(json);
    return status;
}

/* --- the work --------------------------------------------------------------------------------------------------------
 */

static enum status check_teacher(const struct with_model *with) {
    const struct loaded_model *loaded = &with->loaded;
    bool full = !loaded->is_student;
    for (int64_t l = 0; full && l < loaded->model->config.layers; l++)
        full = kind_is_full(loaded->model->layers[l].kind);
    if (full) return STATUS_OK;
    return error_set(STATUS_USAGE, "allocate: --teacher: expected a model with full attention, found a student: %s",
                     loaded->path);
}

static enum status allocate(struct allocate_command *o, struct with_model *with, struct windows *windows) {
    const char *where = o->kinds ? "--kinds" : "built-in candidates";
    struct windows_options window_options = {.length = o->length, .stride = o->length, .sequences = 2 * o->sequences};
    const struct allocate_options options = {.by_density = o->density != 0,
                                             .budget = o->density != 0 ? o->density : o->kl,
                                             .per_head = !o->per || strcmp(o->per, "head") == 0,
                                             .evaluations = o->evaluations,
                                             .batch = o->batch,
                                             .seed = (uint64_t)o->seed,
                                             .where = where};
    struct bench_kinds kinds = {0};
    struct allocation allocation = {0};
    enum status status = check_teacher(with);
    if (status == STATUS_OK) status = read_candidates(o, with->loaded.model, where, &kinds);
    if (status == STATUS_OK) status = windows_open(o->data.values, o->data.count, &window_options, windows);
    TRY_GOTO(done, comm_agree(with->comm, status));
    TRY_GOTO(done, allocate_run(with->loaded.model, kinds.rules, (size_t)kinds.count, windows, &options, with->comm,
                                &allocation));
    if (comm_rank(with->comm) == 0) status = report(o, with, &options, &allocation);
    status = comm_agree(with->comm, status);
done:
    allocation_free(&allocation);
    bench_kinds_free(&kinds);
    return status;
}

static enum status work(struct allocate_command *o) {
    struct with_model with;
    struct windows windows = {0};
    enum status status = with_model_open("allocate", &o->model, true, o->length, &with);
    if (status == STATUS_OK) {
        if (o->length == 0) {
            int64_t positions = with.loaded.model->config.positions;
            o->length = positions > 0 && positions < 1024 ? positions : 1024;
        }
        status = allocate(o, &with, &windows);
    }
    windows_close(&windows);
    return with_model_close(&with, status);
}

static enum status run(int argc, char **argv) {
    struct allocate_command o = {.seed = 1, .sequences = 16, .evaluations = 2000};
    const struct option table[] = {
        {"teacher", OPTION_TEXT, &o.model.model, 0, 0},
        {"data", OPTION_LIST, &o.data, 0, 0},
        {"density", OPTION_REAL, &o.density, 1e-6, 1},
        {"kl", OPTION_REAL, &o.kl, 1e-9, 1e3},
        {"length", OPTION_INTEGER, &o.length, 1, 1e9},
        {"sequences", OPTION_INTEGER, &o.sequences, 1, 1e9},
        {"kinds", OPTION_TEXT, &o.kinds, 0, 0},
        {"per", OPTION_TEXT, &o.per, 0, 0},
        {"evaluations", OPTION_INTEGER, &o.evaluations, 0, 1e9},
        {"batch", OPTION_INTEGER, &o.batch, 1, 65536},
        {"seed", OPTION_INTEGER, &o.seed, 0, 9e15},
        {"train", OPTION_LIST, &o.train, 0, 0},
        {"run", OPTION_TEXT, &o.run, 0, 0},
        {"out", OPTION_TEXT, &o.out, 0, 0},
        {"json", OPTION_TEXT, &o.json, 0, 0},
        {"precision", OPTION_TEXT, &o.model.precision, 0, 0},
        {"positions", OPTION_TEXT, &o.model.positions, 0, 0},
        {"device", OPTION_TEXT, &o.model.device, 0, 0},
        {"threads", OPTION_INTEGER, &o.model.threads, 0, 4096},
    };
    enum status status = options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL);
    if (status == STATUS_OK) status = check(&o);
    if (status == STATUS_OK) status = write_line(argc, argv, &o.line);
    if (status == STATUS_OK) status = work(&o);
    free(o.line);
    options_free(&o.data);
    options_free(&o.train);
    return status;
}

const struct command command_allocate = {
    .name = "allocate",
    .summary = "a budget of density or KL -> the kind and size of every layer and head, as a recipe",
    .help =
        "usage: squint allocate --teacher DIR --data SHARD... (--density D | --kl K) [options]      (also under "
        "mpirun)\n"
        "\n"
        "Chooses for every layer, and every head where the kind allows it, how to attend and how far, so that the "
        "whole\n"
        "untrained student stays within the budget. Layers and heads are measured one at a time, then moved up and "
        "down on\n"
        "the whole student's KL(teacher‖student) until nothing gains; never worse than the best candidate in all "
        "layers\n"
        "alike. Writes a recipe that trains the student. The same result at any number of ranks.\n"
        "\n"
        "  --teacher DIR        a model with full attention\n"
        "  --data SHARD...      token shards that it was not trained on (squint prep), or patterns of them\n"
        "  --density D          at most this share of the causal pairs, mean over layers; the least KL is sought\n"
        "  --kl K               at most this KL, in nats a token; the least density is sought\n"
        "  --length T           tokens of a sequence (the model's positions, at most 1024)\n"
        "  --sequences N        sequences to search on; as many others check the result (16)\n"
        "  --kinds LIST         candidates: KIND[:OPTION=WORD+WORD...],... (a built-in list for the length: windows,\n"
        "                       windows with sinks, nsa, indexers, full). Windows alone and indexers per head also "
        "become sizes of\n"
        "                       single heads\n"
        "  --per P              head (default) | layer: layers are chosen as wholes, with fewer measurements\n"
        "  --evaluations N      students measured in the last step, at most (2000)\n"
        "  --batch B            sequences in a forward pass (4)\n"
        "  --seed S             of what kinds draw; the recipe's (1)\n"
        "  --train SHARD...     what the recipe trains on (NAME-train-... of data NAME-valid-..., else the data)\n"
        "  --run DIR            the recipe's run directory (runs/ and the recipe's name)\n"
        "  --out RECIPE.yaml    the recipe (standard output)\n"
        "  --json FILE          figures, and the recipe, as JSON; - is standard output\n"
        "  --positions HOW      of learned positions beyond their table: refuse (default) | interpolate | tile\n"
        "  --precision P        fp32 (default) | bf16\n"
        "  --device D           " DEVICE_HELP "\n"
        "  --threads N          of each rank; 0 (default): all that it may use\n"
        "\n"
        "example: squint allocate --teacher models/stories260K --data data/stories-valid-*.h5 --length 384 --density "
        "0.1 --out "
        "sparse.yaml\n",
    .run = run,
};
