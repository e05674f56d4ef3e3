/* The lines that a person reads before and between the steps. */
#include "base/memory.h"
#include "train/record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *last_part(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    const char *begin = path + length;
    while (begin > path && begin[-1] != '/') begin--;
    return begin;
}

static void describe_teacher(const struct run *run) {
    char count[32];
    const char *name = last_part(run->config->teacher);
    count_text(params_elements(&run->teacher.params), count);
    log_line("teacher  %.*s, %s parameters, frozen and shared", (int)strcspn(name, "/"), name, count);
}

enum { WORDS_SHOWN = 8 }; /* of an option: the recipe has the rest */

/* "masks: candidates window(32) sinks(4), per head" for every rule. */
static void describe_rules(const struct config *config, char *text, size_t capacity) {
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < config->attention_count && used + 64 < capacity; i++) {
        const struct config_attention *rule = &config->attention[i];
        used += (size_t)snprintf(text + used, capacity - used, "%s%s", i ? "; " : "", rule->kind);
        if (config->attention_count > 1 && (rule->first != 0 || rule->last != -1) && used + 64 < capacity) {
            used += (size_t)snprintf(text + used, capacity - used, " in layers %lld-", (long long)rule->first);
            if (rule->last >= 0 && used < capacity) {
                used += (size_t)snprintf(text + used, capacity - used, "%lld", (long long)rule->last);
            }
        }
        for (size_t o = 0; o < rule->option_count && used + 64 < capacity; o++) {
            used += (size_t)snprintf(text + used, capacity - used, "%s %.24s", o ? "," : ":", rule->options[o].key);
            size_t count = rule->options[o].count;
            for (size_t w = 0; count <= WORDS_SHOWN && w < count && used + 64 < capacity; w++) {
                used += (size_t)snprintf(text + used, capacity - used, " %.40s", rule->options[o].words[w]);
            }
            if (count > WORDS_SHOWN && used < capacity) {
                used += (size_t)snprintf(text + used, capacity - used, " (%zu words)", count);
            }
        }
    }
}

/* All parameters that any stage trains. */
static int64_t to_learn(const struct run *run) {
    int64_t count = 0;
    for (int64_t i = 0; i < run->student.params.count; i++) {
        const struct param *row = &run->student.params.rows[i];
        if (row->owned && !row->constant) count += tensor_count(row->value);
    }
    return count;
}

void record_announce(const struct run *run) {
    char text[512], count[32], tokens[32];
    const struct config *config = run->config;
    int size = comm_size(run->comm);
    log_line("squint %s  %d rank%s  %s  %s", SQUINT_VERSION, size, size == 1 ? "" : "s", run->ops->describe(run->ops),
             config->precision == PRECISION_BF16 ? "bf16" : "fp32");
    count_text(to_learn(run), count);
    if (run->has_teacher) {
        describe_teacher(run);
        describe_rules(config, text, sizeof text);
        log_line("student  %s; %s parameters to learn", text, count);
    } else {
        const struct model_config *m = &config->scratch;
        log_line(
            "model    %s from scratch: %lld layers, %lld heads, width %lld, vocabulary %lld; %s parameters to learn",
            m->type == MODEL_GPT2 ? "gpt2" : "llama", (long long)m->layers, (long long)m->heads, (long long)m->width,
            (long long)m->vocabulary, count);
    }
    count_text(run->batches.tokens, tokens);
    log_line("data     %s tokens in %zu shard%s (%s)", tokens, run->batches.shard_count,
             run->batches.shard_count == 1 ? "" : "s", run->batches.shards[0].info.tokenizer_name);
}

void record_plan(const struct run *run, size_t index, const struct stage_memory *memory) {
    const struct config_stage *stage = &run->config->stages[index];
    char total[16], program[16], parameters[16], optimizer[16], plans[16], head[16], windows[32];
    int64_t first = 0, part = 0;
    (void)stage_part(stage, comm_rank(run->comm), comm_size(run->comm), &first, &part);
    bytes_text((double)memory->total, total);
    bytes_text((double)memory->program, program);
    bytes_text((double)memory->parameters, parameters);
    bytes_text((double)memory->optimizer, optimizer);
    bytes_text((double)(memory->teacher_plan + memory->student_plan), plans);
    bytes_text((double)memory->head, head);
    count_text(run->batches.windows, windows);
    log_line(
        "plan     %s: %s a rank (program %s, parameters %s, optimizer %s, activations %s, head %s); micro-batch %lld x %lld%s; "
        "%s windows of %lld, %.2f epochs",
        stage->name, total, program, parameters, optimizer, plans, head, (long long)memory->micro_batch,
        (long long)(part / memory->micro_batch), memory->recompute ? ", recompute" : "", windows,
        (long long)stage->length, (double)stage->steps * (double)stage->batch / (double)run->batches.windows);
}
