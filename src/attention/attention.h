/* The contract of a kind: a way to attend. A new kind is one file here and one line in registry.c.
 * Inputs are q, k, v as the teacher's own projections make them, so that every kind can start at the teacher. */
#ifndef SQUINT_ATTENTION_ATTENTION_H
#define SQUINT_ATTENTION_ATTENTION_H

#include "base/arena.h"
#include "config/config.h"
#include "params/params.h"

struct kind;

/* One layer's attention: a kind, its settings and its parameters. */
struct attention_layer {
    const struct kind *kind;
    void *settings; /* the kind's own, made by kind->configure */
    int64_t layer;
    const struct model_config *model;
    const struct params *params; /* of the model it belongs to; rows are found by name once, in bind */
    void *bound;                 /* the kind's own: pointers to its rows */
};

/* Where in a run a pass stands, for kinds whose training differs from their use: redrawn features, annealed choices, dropped windows.
 * Everything is a function of the run's seed and counters, so that no number of ranks, and no resume, changes it. */
struct attention_context {
    bool training;        /* false: evaluation, generation; the fields below are then those of a finished stage */
    bool attention_stage; /* objective `attention` */
    bool weights;         /* and the cross-entropy of the kind's implied weights against the teacher's joins its own loss */
    double progress;      /* share of the stage's steps that are done, 0 … 1; 1 outside of training */
    int64_t updates;      /* steps of the whole run before this one */
    int64_t first_sample; /* number in the stage of sequence 0 of the batch; sequence b is first_sample + b */
    uint64_t seed;        /* of the run */
    double loss_scale;    /* of a kind's own loss: 1 over the rows of the whole batch, all ranks and micro-steps */
    bool looks;           /* a pass reads back the numbers that the kind reports: it waits for the device, and is not recorded */
};

/* Tensors of one forward/backward pass of one layer. x: the layer's normed input. */
struct attention_pass {
    const struct ops *ops;
    int64_t batch, length;
    struct tensor x;          /* [B·T,C] */
    struct tensor q, k, v;    /* [B,T,H,D], [B,T,G,D], [B,T,G,D]: strided views; rotary positions applied */
    struct tensor start;      /* [B,T] I32 */
    struct tensor positions;  /* [B,T] I32, counted from the document's start */
    struct tensor frequencies; /* [D/2] of rotary positions, as struct rope; none: positions are learned */
    struct tensor o;          /* [B,T,H,D] */
    void *saved;              /* what the kind's plan made for this layer */
    struct attention_context context;
    /* In objective `attention`, for kinds that learn from the teacher's weights; none elsewhere. As q and k. */
    struct tensor teacher_q, teacher_k;
    /* backward only */
    struct tensor d_o;        /* [B,T,H,D] */
    struct tensor dq, dk, dv; /* written, views as q, k, v */
    struct tensor dx;         /* [B·T,C] written by kinds with reads_x, what flows into x besides q, k, v; none: not wanted */
    struct tensor loss;       /* [1] F64 += the sum over the rows of the kind's own loss, times its weight; gradients: times loss_scale */
};

/* Decoding: `batch` sequences in step, one token each at a time. */
struct attention_cache;
struct attention_decode_pass {
    const struct ops *ops;
    int64_t batch;
    int64_t position;        /* index of this token in its sequence, from 0 */
    const int32_t *start;    /* host [B]: index of the first token of the current document of each sequence */
    struct tensor x;         /* [B,C] */
    struct tensor positions, frequencies; /* [B] I32, counted from the document's start; as above */
    struct tensor q, k, v;   /* [B,H,D], [B,G,D], [B,G,D] */
    struct tensor o;         /* [B,H,D] */
};

struct attention_cost {
    double density;      /* pairs read / causal pairs at this T; negative: not defined for the kind */
    double flops;        /* attention FLOPs a token, forward, mean over positions */
    double decode_bytes; /* state of one sequence at this T, one layer, F32 */
};

enum { ATTENTION_BRANCH_NAME = 40 };

struct kind {
    const char *name;
    const char *summary; /* one line for help and docs */
    bool has_weights;    /* can learn from the teacher's weights (context.weights): they are positive on every pair */
    bool chooses; /* reads what scores choose: where two are a rounding apart, another way to the same numbers may choose the other */
    bool reads_x;        /* forward reads pass.x, and backward writes pass.dx (0 where no gradient flows that way) */
    /* Row h.N.attn.KIND.(bends_values): o is linear in v while it holds 0, and only then. NULL: o always is. */
    const char *bends_values;
    uint32_t summaries; /* branches, bits as switch_off has them, that read a summary of several tokens in place of the tokens */
    /* Makes *settings from a recipe's options, with defaults; checks them. STATUS_USAGE names `where` (file), line, key, allowed, found.
     * Released with free(). */
    enum status (*configure)(const char *where, const struct config_attention *options, const struct model_config *model,
                             void **settings);
    /* Changes the settings so that every query reads every token of at most `length`, untrained: the student then is the teacher (rung 1
     * of the ladder). Before add_params. NULL: the kind has no such form. */
    void (*cover)(struct attention_layer *layer, int64_t length);
    /* Adds its rows to the student's table (h.N.attn.KIND.…); NULL: none. */
    enum status (*add_params)(const struct attention_layer *layer, struct params *params);
    /* Finds its rows; fills layer->bound (released with free()). NULL: none. */
    enum status (*bind)(struct attention_layer *layer);
    /* Starts its rows from what the teacher's layer sees on a few sequences: the teacher's x, q, k, as in a forward pass, positions and
     * frequencies; no o, nothing saved. Before training, and wherever an untrained student is looked at. NULL: rows start without data. */
    enum status (*calibrate)(const struct attention_layer *layer, const struct attention_pass *pass);
    /* Takes from `arena` what forward keeps for backward (`train`) and what it needs; *saved is the kind's own, made with
     * memory_new while `arena` is placing or sizing alike (released with free()). */
    enum status (*plan)(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length, bool train,
                        void **saved);
    /* Before a micro-step's passes, outside of what ops->repeat records: brings the layer to where the run stands. *steady = false where
     * its passes upload, or start other operations than those of another micro-step: they are not to be recorded. NULL: nothing to do. */
    enum status (*turn)(const struct attention_layer *layer, const struct attention_context *context, bool *steady);
    enum status (*forward)(const struct attention_layer *layer, const struct attention_pass *pass);
    enum status (*backward)(const struct attention_layer *layer, const struct attention_pass *pass);
    /* *cache for `batch` sequences of at most `length` tokens. */
    enum status (*cache_open)(const struct attention_layer *layer, const struct ops *ops, int64_t batch, int64_t length,
                              struct attention_cache **cache);
    void (*cache_close)(const struct ops *ops, struct attention_cache *cache); /* NULL-safe */
    /* Takes in this token's k and v, writes o. */
    enum status (*decode)(const struct attention_layer *layer, struct attention_cache *cache,
                          const struct attention_decode_pass *pass);
    /* Cost at length T, with the parameters as they are now. */
    enum status (*cost)(const struct attention_layer *layer, int64_t length, struct attention_cost *cost);
    /* The kind's own numbers for the metrics line, as JSON members ("\"coefficient_mean\": 0.1"), into text. NULL: none. */
    enum status (*report)(const struct attention_layer *layer, char *text, size_t capacity);
    /* Name of branch number `branch` (from 0) that the audit may switch off, what takes its place after a colon; false past the last. NULL: none. */
    bool (*branch_name)(const struct attention_layer *layer, int branch, char name[ATTENTION_BRANCH_NAME]);
    /* Switches off the branches of the mask, a bit each, and the others on; parameters are not changed. */
    enum status (*switch_off)(struct attention_layer *layer, uint32_t branches);
};

/* The kind of teachers, and of layers that are left alone. */
bool kind_is_full(const struct kind *kind);
/* NULL when unknown. */
const struct kind *kind_find(const char *name);
/* Every kind, ends with NULL. */
extern const struct kind *const kind_table[];
/* The kind and settings of every layer from a recipe's rules (first match wins; a layer without a match is `full`).
 * layers: [model->layers], to be released with attention_free_layers. */
enum status attention_configure(const char *where, const struct config_attention *rules, size_t rule_count,
                                const struct model_config *model, struct attention_layer *layers);
void attention_free_layers(struct attention_layer *layers, int64_t count);

#endif
