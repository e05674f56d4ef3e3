/* squint eval: perplexity, divergence, agreement, recall, health -> a table for people and JSON. */
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "commands/commands.h"
#include "commands/eval_print.h"
#include "commands/with_model.h"
#include "eval/audit.h"
#include "eval/variants.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_MAX = 5 + AUDIT_BRANCHES_MAX };

struct eval_command {
    struct model_options model;
    struct option_list data;
    const char *json, *recall, *tokenizer;
    int64_t length, stride, batch, sequences, seed;
    bool ladder, joined, documents, no_baselines, audit, by_position;
};

/* The models of the table, those that this command made, and what was found. */
struct eval_table {
    struct evaluate_row rows[ROWS_MAX];
    struct evaluate_figures figures[ROWS_MAX];
    struct eval_recall recall; /* no documents: not asked for */
    struct recall_figures recalls[ROWS_MAX];
    size_t count;
    struct model made[3];
    size_t made_count;
    char window_name[64];
    char audit_names[AUDIT_BRANCHES_MAX][ATTENTION_BRANCH_NAME + 8];
};

static void add_row(struct eval_table *table, const char *name, const struct model *model) {
    table->rows[table->count++] = (struct evaluate_row){name, model};
}

/* Untrained, no attention, a window alone at the same density: what a student has to be better than. */
static enum status add_baselines(const struct eval_command *o, const struct loaded_model *loaded,
                                 const struct windows *windows, struct eval_table *table) {
    struct model *made = table->made;
    int64_t narrowest, widest;
    TRY(variant_untrained(loaded->teacher, loaded->rules, loaded->rule_count, (uint64_t)o->seed, &made[0]));
    add_row(table, "untrained", &made[table->made_count++]);
    TRY(variant_calibrate(windows, &made[0]));
    TRY(variant_no_attention(loaded->teacher, loaded->model, &made[1]));
    add_row(table, "no attention", &made[table->made_count++]);
    enum status status = variant_window(loaded->teacher, loaded->model, o->length, &narrowest, &widest, &made[2]);
    if (status == STATUS_NOT_FOUND) { /* linear kinds have no density that a window could have too */
        error_clear();
        return STATUS_OK;
    }
    TRY(status);
    if (narrowest == widest) {
        snprintf(table->window_name, sizeof table->window_name, "window %lld", (long long)widest);
    } else {
        snprintf(table->window_name, sizeof table->window_name, "window %lld-%lld", (long long)narrowest,
                 (long long)widest);
    }
    add_row(table, table->window_name, &made[table->made_count++]);
    return STATUS_OK;
}

static bool has_kinds(const struct model *model) {
    for (int64_t l = 0; l < model->config.layers; l++) {
        if (!kind_is_full(model->layers[l].kind)) return true;
    }
    return false;
}

static enum status make_table(const struct eval_command *o, const struct loaded_model *loaded,
                              const struct windows *windows, struct eval_table *table) {
    if (loaded->teacher) add_row(table, "teacher", loaded->teacher);
    if (loaded->model == loaded->teacher) return STATUS_OK;
    add_row(table, loaded->teacher ? "student" : "model", loaded->model);
    bool comparable = loaded->teacher && loaded->rule_count > 0 && has_kinds(loaded->model);
    return comparable && !o->no_baselines ? add_baselines(o, loaded, windows, table) : STATUS_OK;
}

/* Every rank reads the corpus with the model's own tokenizer. */
static enum status read_recall(const struct eval_command *o, const struct loaded_model *loaded,
                               const struct windows *windows, struct eval_recall *recall) {
    const struct model_config *model = &loaded->model->config;
    const char *path = o->tokenizer ? o->tokenizer : loaded->tokenizer;
    const struct shard_info *shard = &windows->shards[0].info;
    struct tokenizer *tokenizer = NULL;
    enum status status;
    if (!path)
        return error_set(STATUS_USAGE, "eval: --recall: %s: no tokenizer in it; name one with --tokenizer DIR",
                         loaded->path);
    TRY_GOTO(done, tokenizer_open(path, &tokenizer));
    if (shard->tokenizer_hash != 0 && shard->tokenizer_hash != tokenizer_hash(tokenizer)) {
        char expected[17], found[17];
        hash_text(shard->tokenizer_hash, expected);
        hash_text(tokenizer_hash(tokenizer), found);
        status = error_set(STATUS_USAGE, "eval: --recall: %s: tokenizer: expected %s (hash %s) as in %s, found hash %s",
                           path, shard->tokenizer_name, expected, windows->shards[0].path, found);
        goto done;
    }
    int64_t begin = model->begin_of_text >= 0 ? model->begin_of_text : tokenizer_begin_of_text(tokenizer);
    status = eval_recall_read(o->recall, tokenizer, begin == model->end_of_text ? -1 : begin, recall);
done:
    tokenizer_close(&tokenizer);
    return status;
}

/* Figures of `count` rows from `first` on. */
static enum status run_recall(const struct eval_command *o, struct eval_table *table, size_t first, size_t count,
                              const char *label, struct comm *comm) {
    const struct recall_options options = {.length = o->length, .batch = o->batch, .label = label};
    if (!o->recall) return STATUS_OK;
    return recall_run(&table->rows[first], count, table->recall.documents, table->recall.count, &options, comm,
                      &table->recalls[first]);
}

/* The student again with each of its branches switched off. */
static enum status audit_branches(const struct eval_command *o, const struct with_model *with,
                                  const struct windows *windows, struct eval_table *table) {
    struct audit audit;
    struct model *model = with->loaded.model;
    enum status status = STATUS_OK;
    audit_list(model, &audit);
    for (size_t i = 0; i < audit.count && status == STATUS_OK; i++) {
        char *name = table->audit_names[i];
        struct evaluate_options options = {.batch = o->batch, .label = name};
        snprintf(name, sizeof table->audit_names[i], "no %s", audit.names[i]);
        add_row(table, name, model);
        size_t row = table->count - 1;
        status = audit_switch(model, audit.names[i]);
        if (status == STATUS_OK) {
            status = evaluate_run(with->loaded.teacher, &table->rows[row], 1, windows, &options, with->comm,
                                  &table->figures[row]);
        }
        if (status == STATUS_OK) status = run_recall(o, table, row, 1, name, with->comm);
    }
    KEEP_FIRST(status, audit_switch(model, NULL));
    return status;
}

static void free_table(struct eval_table *table) {
    for (size_t i = 0; i < table->made_count; i++) model_free(&table->made[i]);
    eval_recall_free(&table->recall);
}

static void alarm_of(const struct eval_table *table) {
    for (size_t i = 0; i < table->count; i++) {
        const struct evaluate_figures *f = &table->figures[i];
        if (f->nonfinite > 0) {
            log_warning("%s: %.0f values are not finite", table->rows[i].name, f->nonfinite);
        } else if (f->token0 > 0.5) {
            log_warning("%s: id 0 is the most likely token at %.0f%% of the places looked at", table->rows[i].name,
                        100 * f->token0);
        }
    }
}

static enum status report(const struct eval_command *o, const struct loaded_model *loaded,
                          const struct windows *windows, const struct eval_table *table,
                          const struct ladder_rung *rungs) {
    const struct eval_results results = {.loaded = loaded,
                                         .windows = windows,
                                         .rows = table->rows,
                                         .figures = table->figures,
                                         .count = table->count,
                                         .by_position = o->by_position,
                                         .rungs = rungs,
                                         .recall = o->recall ? &table->recall : NULL,
                                         .recalls = table->recalls};
    bool to_stdout = o->json && strcmp(o->json, "-") == 0;
    if (!to_stdout) eval_print(stdout, &results);
    alarm_of(table);
    if (!o->json) return STATUS_OK;
    char *text = NULL;
    TRY(eval_json(&results, &text));
    enum status status = STATUS_OK;
    if (to_stdout) {
        fputs(text, stdout);
    } else {
        status = file_write(o->json, text, strlen(text));
    }
    free(text);
    return status;
}

/* Rank 0 climbs; a rung that fails makes the command fail on every rank. */
static enum status climb(const struct eval_command *o, const struct loaded_model *loaded, const struct windows *windows,
                         struct comm *comm, struct ladder_rung *rungs) {
    const struct ladder_subject subject = {.model = loaded->model,
                                           .teacher = loaded->teacher ? loaded->teacher : loaded->base,
                                           .rules = loaded->rules,
                                           .rule_count = loaded->rule_count,
                                           .windows = windows,
                                           .seed = (uint64_t)o->seed};
    return comm_agree(comm, comm_rank(comm) == 0 ? ladder_run(&subject, rungs) : STATUS_OK);
}

static enum status judge(const struct ladder_rung *rungs) {
    for (int i = 0; i < LADDER_RUNGS; i++) {
        if (rungs[i].result != LADDER_FAIL) continue;
        return error_set(STATUS_FAILED, "ladder: rung %d, %s: expected %s, found %s", i + 1, rungs[i].name,
                         rungs[i].bound, rungs[i].measured);
    }
    return STATUS_OK;
}

static enum status evaluate(const struct eval_command *o, struct with_model *with, struct windows *windows) {
    struct eval_table table = {0};
    struct ladder_rung rungs[LADDER_RUNGS] = {0};
    struct evaluate_options options = {.batch = o->batch, .label = "eval"};
    const struct loaded_model *loaded = &with->loaded;
    bool speaks = comm_rank(with->comm) == 0;
    enum status status;
    if (o->recall) TRY_GOTO(done, comm_agree(with->comm, read_recall(o, loaded, windows, &table.recall)));
    TRY_GOTO(done, comm_agree(with->comm, make_table(o, loaded, windows, &table)));
    TRY_GOTO(done,
             evaluate_run(loaded->teacher, table.rows, table.count, windows, &options, with->comm, table.figures));
    TRY_GOTO(done, run_recall(o, &table, 0, table.count, "recall", with->comm));
    if (o->audit) TRY_GOTO(done, audit_branches(o, with, windows, &table));
    if (o->ladder) TRY_GOTO(done, climb(o, loaded, windows, with->comm, rungs));
    if (speaks) status = report(o, loaded, windows, &table, o->ladder ? rungs : NULL);
    if (speaks && o->ladder && status == STATUS_OK) status = judge(rungs);
    status = comm_agree(with->comm, status);
done:
    free_table(&table);
    return status;
}

static enum status check(struct eval_command *o) {
    if (o->data.count == 0) return error_set(STATUS_USAGE, "eval: --data: expected token shards, found none");
    if (o->joined && o->documents) return error_set(STATUS_USAGE, "eval: --joined and --documents do not go together");
    if (o->tokenizer && !o->recall)
        return error_set(STATUS_USAGE, "eval: --tokenizer: expected --recall FILE beside it, found none");
    if (o->stride > 0 && o->length > 0 && o->stride > o->length) {
        return error_set(STATUS_USAGE, "eval: --stride: expected 1 to --length, %lld, found %lld", (long long)o->length,
                         (long long)o->stride);
    }
    return STATUS_OK;
}

static enum status work(struct eval_command *o) {
    struct with_model with;
    struct windows windows = {0};
    enum status status = with_model_open("eval", &o->model, true, o->length, &with);
    if (status != STATUS_OK) goto done;
    if (o->length == 0) {
        int64_t positions = with.loaded.model->config.positions;
        o->length = positions > 0 && positions < 1024 ? positions : 1024;
    }
    if (o->stride == 0) o->stride = o->length;
    struct windows_options options = {.length = o->length,
                                      .stride = o->stride,
                                      .sequences = o->sequences,
                                      .joined = o->joined,
                                      .documents = o->documents};
    TRY_GOTO(done, comm_agree(with.comm, windows_open(o->data.values, o->data.count, &options, &windows)));
    status = evaluate(o, &with, &windows);
done:
    windows_close(&windows);
    return with_model_close(&with, status);
}

static enum status run(int argc, char **argv) {
    struct eval_command o = {.seed = 1};
    const struct option table[] = {
        MODEL_OPTION_ROWS(o.model),
        {"teacher", OPTION_TEXT, &o.model.teacher, 0, 0},
        {"data", OPTION_LIST, &o.data, 0, 0},
        {"length", OPTION_INTEGER, &o.length, 1, 1e9},
        {"stride", OPTION_INTEGER, &o.stride, 1, 1e9},
        {"batch", OPTION_INTEGER, &o.batch, 1, 65536},
        {"sequences", OPTION_INTEGER, &o.sequences, 1, 1e12},
        {"seed", OPTION_INTEGER, &o.seed, 0, 9e15},
        {"joined", OPTION_FLAG, &o.joined, 0, 0},
        {"documents", OPTION_FLAG, &o.documents, 0, 0},
        {"no-baselines", OPTION_FLAG, &o.no_baselines, 0, 0},
        {"ladder", OPTION_FLAG, &o.ladder, 0, 0},
        {"audit", OPTION_FLAG, &o.audit, 0, 0},
        {"by-position", OPTION_FLAG, &o.by_position, 0, 0},
        {"recall", OPTION_TEXT, &o.recall, 0, 0},
        {"tokenizer", OPTION_TEXT, &o.tokenizer, 0, 0},
        {"json", OPTION_TEXT, &o.json, 0, 0},
    };
    enum status status = options_read(argc, argv, table, sizeof table / sizeof *table, NULL, NULL);
    if (status == STATUS_OK) status = check(&o);
    if (status == STATUS_OK) status = work(&o);
    options_free(&o.data);
    return status;
}

const struct command command_eval = {
    .name = "eval",
    .summary = "perplexity, divergence from the teacher, agreement, recall, health -> table + JSON",
    .help =
        "usage: squint eval --model MODEL [--teacher DIR] --data SHARD... [options]      (also under mpirun)\n"
        "\n"
        "Measures a model on held-out token shards, beside its teacher and what it has to be better than: itself\n"
        "untrained, no attention at all, and a window alone at the same density. Figures are means over tokens, with\n"
        "standard errors by sequences; they do not depend on the number of ranks.\n"
        "\n" MODEL_OPTION_HELP
        "  --teacher DIR        in place of the one that a checkpoint names; an exported student names none\n"
        "  --data SHARD...      token shards (squint prep), or patterns of them\n"
        "  --length T           tokens of a sequence (the model's positions, at most 1024)\n"
        "  --stride S           from one sequence to the next; below T only the last S tokens of each count (T)\n"
        "  --joined             attention and targets run across documents\n"
        "  --documents          sequences begin with documents: each document is cut up by itself\n"
        "  --sequences N        at most so many, spread evenly (all)\n"
        "  --batch B            sequences in a forward pass (8)\n"
        "  --no-baselines       the student and its teacher only\n"
        "  --audit              also the student with each branch of its attention switched off\n"
        "  --by-position        also perplexity and divergence by the tokens' place in their document\n"
        "  --recall FILE.jsonl  also, of stories that squint corpus wrote, how many answers that only an earlier "
        "sentence\n"
        "                       gives away are right, by how many tokens back that is; a story is one sequence of T\n"
        "  --tokenizer DIR      for --recall; default: the model's own\n"
        "  --ladder             also the exactness ladder; exit code 1 when a rung fails\n"
        "  --seed S             of the untrained student's parameters (1)\n"
        "  --json FILE          figures as JSON; - is standard output\n"
        "\n"
        "example: squint eval --model runs/stories --data data/stories-valid-*.h5 --length 384 --json eval.json\n",
    .run = run,
};
