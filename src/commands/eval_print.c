/* See eval_print.h. */
#include "commands/eval_print.h"

#include "base/log.h"
#include "base/memory.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>

static const char *const result_names[] = {"pass", "FAIL", "-"};

static void print_error(FILE *stream, double error) {
    if (isfinite(error)) {
        fprintf(stream, " ±%-8.2g", error);
    } else {
        fprintf(stream, " %-9s", "");
    }
}

static void print_row(FILE *stream, const char *name, const struct evaluate_figures *f) {
    fprintf(stream, "%-14s %10.4f %8.4f", name, f->perplexity, f->ce);
    print_error(stream, f->ce_error);
    fprintf(stream, " %7.4f", f->bits);
    if (f->has_teacher) {
        fprintf(stream, " %10.6f", f->kl);
        print_error(stream, f->kl_error);
        fprintf(stream, " %10.6f %7.2f%%", f->reverse_kl, 100 * f->agreement);
    } else {
        fprintf(stream, " %10s %9s %10s %8s", "-", "", "-", "-");
    }
    fprintf(stream, " %8.4f", f->entropy);
    if (f->cost.density >= 0) {
        fprintf(stream, " %8.4f", f->cost.density);
    } else {
        fprintf(stream, " %8s", "-");
    }
    fprintf(stream, " %10.3f\n", f->flops / 1e6);
}

/* A line a bucket of positions, two columns a model: perplexity, and KL where there is a teacher. */
static void print_positions(FILE *stream, const struct eval_results *r) {
    fprintf(stream, "\n%-14s %10s", "position", "tokens");
    for (size_t m = 0; m < r->count; m++) fprintf(stream, "  %20.20s", r->rows[m].name);
    fprintf(stream, "\n%-14s %10s", "", "");
    for (size_t m = 0; m < r->count; m++)
        fprintf(stream, "  %10s %9s", "perplexity", r->figures[m].has_teacher ? "KL" : "");
    fprintf(stream, "\n");
    for (int i = 0; i < EVALUATE_POSITIONS; i++) {
        char range[32];
        int64_t first, end;
        if (r->figures[0].positions[i].tokens == 0) continue;
        evaluate_position_range(i, &first, &end);
        snprintf(range, sizeof range, "%lld-%lld", (long long)first, (long long)end - 1);
        fprintf(stream, "%-14s %10.0f", range, r->figures[0].positions[i].tokens);
        for (size_t m = 0; m < r->count; m++) {
            const struct evaluate_position *p = &r->figures[m].positions[i];
            fprintf(stream, "  %10.4f", exp(p->ce));
            if (r->figures[m].has_teacher) {
                fprintf(stream, " %9.6f", p->kl);
            } else {
                fprintf(stream, " %9s", "");
            }
        }
        fprintf(stream, "\n");
    }
}

static int64_t recall_left_out(const struct eval_results *r) {
    const struct eval_recall *recall = r->recall;
    return recall_count(recall->documents, recall->count, INT64_MAX - 1) -
           recall_count(recall->documents, recall->count, r->windows->options.length);
}

static void print_recall_line(FILE *stream, const struct eval_results *r, const char *name, int bucket) {
    double answers = 0;
    for (size_t m = 0; m < r->count; m++) {
        const struct recall_figures *f = &r->recalls[m];
        const struct recall_bucket *b = bucket < 0 ? &f->all : &f->buckets[bucket];
        if (m == 0) {
            answers = b->answers;
            if (answers == 0) return;
            fprintf(stream, "%-14s %10.0f", name, answers);
        }
        fprintf(stream, "  %9.2f%% %9.4f", 100 * b->accuracy, b->nll);
    }
    fprintf(stream, "\n");
}

/* A line a bucket of distances, two columns a model: answers that are right, and −log p of an answer. */
static void print_recall(FILE *stream, const struct eval_results *r) {
    char answers[32], left_out[32];
    count_text((int64_t)r->recalls[0].all.answers, answers);
    count_text(recall_left_out(r), left_out);
    fprintf(stream, "\nrecall   %s, %zu document%s cut after %lld tokens: %s answers; %s beyond are left out\n",
            r->recall->path, r->recall->count, r->recall->count == 1 ? "" : "s", (long long)r->windows->options.length,
            answers, left_out);
    fprintf(stream, "\n%-14s %10s", "tokens back", "answers");
    for (size_t m = 0; m < r->count; m++) fprintf(stream, "  %20.20s", r->rows[m].name);
    fprintf(stream, "\n%-14s %10s", "", "");
    for (size_t m = 0; m < r->count; m++) fprintf(stream, "  %10s %9s", "right", "-log p");
    fprintf(stream, "\n");
    for (int i = 0; i < RECALL_BUCKETS; i++) {
        char range[48];
        int64_t first, end;
        recall_distance_range(i, &first, &end);
        if (end < 0)
            snprintf(range, sizeof range, "%lld+", (long long)first);
        else
            snprintf(range, sizeof range, "%lld-%lld", (long long)first, (long long)end - 1);
        print_recall_line(stream, r, range, i);
    }
    print_recall_line(stream, r, "all", -1);
}

void eval_print(FILE *stream, const struct eval_results *r) {
    const struct windows_options *options = &r->windows->options;
    char tokens[32];
    count_text((int64_t)r->figures[0].tokens, tokens);
    fprintf(stream, "model    %s", r->loaded->path);
    if (r->loaded->step >= 0) fprintf(stream, "  (stage %s, step %lld)", r->loaded->stage, (long long)r->loaded->step);
    fprintf(stream, "\n");
    if (r->loaded->teacher_path) fprintf(stream, "teacher  %s\n", r->loaded->teacher_path);
    fprintf(stream, "data     %zu shard%s, %lld sequences of %lld tokens, ", r->windows->shard_count,
            r->windows->shard_count == 1 ? "" : "s", (long long)r->windows->count, (long long)options->length);
    if (options->stride == options->length) {
        fprintf(stream, "disjoint, ");
    } else {
        fprintf(stream, "stride %lld, ", (long long)options->stride);
    }
    fprintf(stream, "documents %s: %s tokens count\n\n",
            options->joined      ? "joined"
            : options->documents ? "each by itself"
                                 : "separate",
            tokens);
    fprintf(stream, "%-14s %10s %8s %9s %7s %10s %9s %10s %8s %8s %8s %10s\n", "", "perplexity", "CE", "", "bits", "KL",
            "", "reverse KL", "top-1", "entropy", "density", "MFLOP/tok");
    for (size_t i = 0; i < r->count; i++) print_row(stream, r->rows[i].name, &r->figures[i]);
    if (r->by_position) print_positions(stream, r);
    if (r->recall) print_recall(stream, r);
    if (!r->rungs) return;
    fprintf(stream, "\n");
    for (int i = 0; i < LADDER_RUNGS; i++) {
        const struct ladder_rung *rung = &r->rungs[i];
        fprintf(stream, "rung %d  %-19s %-4s  %s", i + 1, rung->name, result_names[rung->result], rung->measured);
        if (rung->result != LADDER_NOT_MEASURED) fprintf(stream, "  (%s)", rung->bound);
        fprintf(stream, "\n");
    }
}

/* JSON has no NaN and no infinity. */
static json_t *number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *positions_json(const struct evaluate_figures *f) {
    json_t *list = json_array();
    for (int i = 0; i < EVALUATE_POSITIONS; i++) {
        const struct evaluate_position *p = &f->positions[i];
        int64_t first, end;
        if (p->tokens == 0) continue;
        evaluate_position_range(i, &first, &end);
        json_t *bucket = json_object();
        json_object_set_new(bucket, "first", json_integer(first));
        json_object_set_new(bucket, "end", json_integer(end));
        json_object_set_new(bucket, "tokens", json_integer((json_int_t)p->tokens));
        json_object_set_new(bucket, "perplexity", number(exp(p->ce)));
        if (f->has_teacher) json_object_set_new(bucket, "kl", number(p->kl));
        json_array_append_new(list, bucket);
    }
    return list;
}

static json_t *row_json(const char *name, const struct evaluate_figures *f) {
    json_t *row = json_object();
    json_object_set_new(row, "name", json_string(name));
    json_object_set_new(row, "tokens", json_integer((json_int_t)f->tokens));
    json_object_set_new(row, "sequences", json_integer((json_int_t)f->sequences));
    json_object_set_new(row, "perplexity", number(f->perplexity));
    json_object_set_new(row, "ce", number(f->ce));
    json_object_set_new(row, "ce_error", number(f->ce_error));
    json_object_set_new(row, "bits", number(f->bits));
    if (f->has_teacher) {
        json_object_set_new(row, "kl", number(f->kl));
        json_object_set_new(row, "kl_error", number(f->kl_error));
        json_object_set_new(row, "reverse_kl", number(f->reverse_kl));
        json_object_set_new(row, "reverse_kl_error", number(f->reverse_kl_error));
        json_object_set_new(row, "agreement", number(f->agreement));
        json_object_set_new(row, "agreement_error", number(f->agreement_error));
    }
    json_object_set_new(row, "entropy", number(f->entropy));
    json_object_set_new(row, "token0_share", number(f->token0));
    json_object_set_new(row, "nonfinite", json_integer((json_int_t)f->nonfinite));
    json_object_set_new(row, "density", f->cost.density < 0 ? json_null() : number(f->cost.density));
    json_object_set_new(row, "attention_flops_per_token", number(f->cost.flops));
    json_object_set_new(row, "decode_bytes_per_layer", number(f->cost.decode_bytes));
    json_object_set_new(row, "flops_per_token", number(f->flops));
    json_object_set_new(row, "by_position", positions_json(f));
    return row;
}

static void add_recall_bucket(json_t *object, const struct recall_bucket *bucket) {
    json_object_set_new(object, "answers", json_integer((json_int_t)bucket->answers));
    json_object_set_new(object, "accuracy", number(bucket->accuracy));
    json_object_set_new(object, "nll", number(bucket->nll));
}

/* Of one model. */
static json_t *recall_json(const struct recall_figures *f) {
    json_t *recall = json_object(), *list = json_array();
    add_recall_bucket(recall, &f->all);
    for (int i = 0; i < RECALL_BUCKETS; i++) {
        int64_t first, end;
        if (f->buckets[i].answers == 0) continue;
        recall_distance_range(i, &first, &end);
        json_t *bucket = json_object();
        json_object_set_new(bucket, "first", json_integer(first));
        json_object_set_new(bucket, "end", end < 0 ? json_null() : json_integer(end));
        add_recall_bucket(bucket, &f->buckets[i]);
        json_array_append_new(list, bucket);
    }
    json_object_set_new(recall, "by_distance", list);
    return recall;
}

static json_t *recall_data_json(const struct eval_results *r) {
    json_t *data = json_object();
    json_object_set_new(data, "corpus", json_string(r->recall->path));
    json_object_set_new(data, "documents", json_integer((json_int_t)r->recall->count));
    json_object_set_new(data, "answers", json_integer((json_int_t)r->recalls[0].all.answers));
    json_object_set_new(data, "left_out", json_integer(recall_left_out(r)));
    return data;
}

static json_t *ladder_json(const struct ladder_rung *rungs) {
    json_t *list = json_array();
    for (int i = 0; i < LADDER_RUNGS; i++) {
        json_t *rung = json_object();
        bool measured = rungs[i].result != LADDER_NOT_MEASURED;
        json_object_set_new(rung, "rung", json_integer(i + 1));
        json_object_set_new(rung, "name", json_string(rungs[i].name));
        json_object_set_new(rung, "measured", json_string(rungs[i].measured));
        json_object_set_new(rung, "bound", json_string(rungs[i].bound));
        json_object_set_new(rung, "value", measured ? number(rungs[i].value) : json_null());
        json_object_set_new(rung, "limit", measured ? number(rungs[i].limit) : json_null());
        json_object_set_new(rung, "result",
                            json_string(measured ? rungs[i].result == LADDER_PASS ? "pass" : "fail" : "not measured"));
        json_array_append_new(list, rung);
    }
    return list;
}

enum status eval_json(const struct eval_results *r, char **text) {
    const struct windows_options *options = &r->windows->options;
    json_t *root = json_object(), *rows = json_array(), *data = json_object(), *shards = json_array();
    json_object_set_new(root, "model", json_string(r->loaded->path));
    json_object_set_new(root, "identity", json_string(r->loaded->identity));
    json_object_set_new(root, "teacher", r->loaded->teacher_path ? json_string(r->loaded->teacher_path) : json_null());
    json_object_set_new(root, "teacher_identity", json_string(r->loaded->teacher_identity));
    json_object_set_new(root, "stage", json_string(r->loaded->stage));
    json_object_set_new(root, "step", r->loaded->step < 0 ? json_null() : json_integer(r->loaded->step));
    for (size_t i = 0; i < r->windows->shard_count; i++)
        json_array_append_new(shards, json_string(r->windows->shards[i].path));
    json_object_set_new(data, "shards", shards);
    json_object_set_new(data, "length", json_integer(options->length));
    json_object_set_new(data, "stride", json_integer(options->stride));
    json_object_set_new(data, "sequences", json_integer(r->windows->count));
    json_object_set_new(data, "documents",
                        json_string(options->joined      ? "joined"
                                    : options->documents ? "each"
                                                         : "separate"));
    json_object_set_new(root, "data", data);
    if (r->recall) json_object_set_new(root, "recall", recall_data_json(r));
    for (size_t i = 0; i < r->count; i++) {
        json_t *row = row_json(r->rows[i].name, &r->figures[i]);
        if (r->recall) json_object_set_new(row, "recall", recall_json(&r->recalls[i]));
        json_array_append_new(rows, row);
    }
    json_object_set_new(root, "rows", rows);
    if (r->rungs) json_object_set_new(root, "ladder", ladder_json(r->rungs));
    char *dump = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (!dump) return error_set(STATUS_MEMORY, "eval: no memory for the results as JSON");
    enum status status = memory_format(text, "%s\n", dump);
    free(dump);
    return status;
}
