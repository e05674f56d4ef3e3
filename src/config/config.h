/* A run, as its YAML recipe describes it. Owns the texts that it points to; knows nothing of models or kinds: a kind's
 * own options are kept as words with their line, and checked by the kind (attention/registry). */
#ifndef SQUINT_CONFIG_CONFIG_H
#define SQUINT_CONFIG_CONFIG_H

#include "base/error.h"
#include "config/model_config.h"

#include <stddef.h>
#include <stdio.h>

enum objective { OBJECTIVE_LM = 0, OBJECTIVE_ATTENTION, OBJECTIVE_KL };
enum precision { PRECISION_FP32 = 0, PRECISION_BF16 };
enum lr_decay { LR_COSINE = 0, LR_LINEAR, LR_CONSTANT };
enum reduce { REDUCE_FP32 = 0, REDUCE_BF16 };
enum recompute { RECOMPUTE_AUTO = 0, RECOMPUTE_NONE, RECOMPUTE_LAYER };

/* One "key: value" that belongs to a kind. A scalar is one word, a list several; "window(32)" stays one word. */
struct config_option {
    char *key;
    char **words;
    size_t count;
    int line; /* in the recipe; 0: from the command line */
};

/* One entry of student.attention: layers first … last (both included; last −1: the model's last). First match wins. */
struct config_attention {
    int64_t first, last;
    char *kind;
    struct config_option *options;
    size_t option_count;
    int line;
};

struct config_stage {
    char *name;
    enum objective objective;
    char **
        train; /* patterns: "new", "all", "lora(8)", or parts of parameter names such as "attn.qkv" (params/params.h) */
    size_t train_count;
    int64_t length, batch, steps; /* T; sequences in a step over all ranks; optimizer updates */
    double lr, lr_end;            /* peak; at the stage's end (default: lr/10) */
    double temperature;           /* kl; default 1 */
    double ce_share;              /* kl: loss = (1−share)·kl + share·ce; default 0 */
    bool weights;                 /* attention: also the cross-entropy of implied weights */
    double l1;                    /* λ of the proximal step on kinds' sparse parameters; default 0 */
    int64_t warmup_steps;         /* −1: train.warmup_steps */
    int line;
};

struct config {
    char *path; /* of the recipe, for messages */
    char *text; /* the resolved config as YAML: what a checkpoint stores; reading it gives an equal config */
    char *run;
    char *teacher; /* NULL with from_scratch */
    bool from_scratch;
    struct model_config scratch;     /* vocabulary 0: taken from the shards */
    char *tokenizer;                 /* directory; NULL: the teacher's directory when it holds one */
    char **train_data, **valid_data; /* patterns of shard paths */
    size_t train_data_count, valid_data_count;
    bool documents_joined; /* data.documents: separate (default) | joined */
    struct config_attention *attention;
    size_t attention_count;
    struct config_stage *stages;
    size_t stage_count;
    struct {
        double clip, weight_decay, beta1, beta2, epsilon;
        int64_t warmup_steps;
        int64_t micro_batch; /* sequences a rank and micro-step; 0: auto */
        enum recompute recompute;
        enum lr_decay decay;
        int64_t max_bad_steps;
    } train;
    struct {
        int64_t context;
        bool zero, overlap;
        double bucket_mib;
        enum reduce reduce;
    } parallel;
    struct {
        int64_t every, keep; /* steps; how many stay */
    } checkpoint;
    struct {
        int64_t every;     /* steps; 0: only at a stage's start and end */
        int64_t sequences; /* of valid data */
    } eval;
    enum positions_beyond positions;
    enum precision precision;
    bool deterministic;
    uint64_t seed;
    char *device; /* auto | cpu */
};

/* Reads the recipe at `path` and applies `overrides` ("--train.clip=0.5", "--stages.0.steps=10",
 * "--stages.align.lr=1e-3"). STATUS_USAGE names file, line, key, the allowed values and what was found. */
enum status config_read(const char *path, const char *const *overrides, size_t override_count, struct config *config);
/* The same from text (a checkpoint's); `path` is for messages. */
enum status config_parse(const char *path, const char *text, size_t length, const char *const *overrides,
                         size_t override_count, struct config *config);
/* Writes config->text anew, after a field was changed. */
enum status config_write_text(struct config *config);
/* A text as one word of YAML, in quotes where it needs them. */
void config_write_word(FILE *out, const char *word);
/* *text = a Markdown table of every key: allowed values, default, meaning. Release with free(). */
enum status config_reference(char **text);
void config_free(struct config *config); /* NULL-safe, twice-safe */

#endif
