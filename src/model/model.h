/* One model definition for every type, teacher and student, either device: sequences of operations on opaque tensors. */
#ifndef SQUINT_MODEL_MODEL_H
#define SQUINT_MODEL_MODEL_H

#include "attention/attention.h"
#include "params/params.h"

/* Stays where it was made: its layers point into it. */
struct model {
    struct model_config config;
    struct params params;
    struct attention_layer *layers; /* [L]; a teacher's are all `full` */
    struct lora lora;               /* rank 0: none */
    const struct model *teacher;    /* whose frozen values a student shares; NULL: none */
    bool bf16;                      /* gemms may round their inputs to bf16 */
};

/* --- making models ---------------------------------------------------------------------------------------------- */
/* A model with rows and memory but undefined values; for io to fill and for training from scratch (model_initialise).
 * train: with gradients and moments for every parameter. */
enum status model_new(const struct ops *ops, const struct model_config *config, bool train, struct model *model);
enum status model_initialise(struct model *model, uint64_t seed);
/* A student of `teacher` with the recipe's kinds. patterns: those of all its stages ("lora(r)" adds LoRA to attn.qkv and attn.out, see struct lora); what
 * they match is owned. Without patterns it only runs. Its added rows are initialised from `seed`. */
enum status model_student(const struct model *teacher, const char *where, const struct config_attention *rules,
                          size_t rule_count, char *const *patterns, size_t pattern_count, bool train, uint64_t seed,
                          struct model *student);
/* An untrained student whose kinds read everything up to `length`: it must equal the teacher. STATUS_NOT_FOUND names a kind that has no
 * such form. */
enum status model_covered(const struct model *teacher, const char *where, const struct config_attention *rules, size_t rule_count,
                          int64_t length, uint64_t seed, struct model *student);
void model_free(struct model *model); /* NULL-safe */
/* Makes the learned position table reach `length` as config.positions_beyond says; nothing to do when it does, or when positions are
 * rotary. Before students are made. STATUS_USAGE when positions beyond the table are refused. */
enum status model_extend_positions(struct model *model, int64_t length);

/* --- one batch ---------------------------------------------------------------------------------------------------- */
/* Host arrays, [B,T] each. */
struct batch {
    int64_t batch, length;
    const int32_t *ids;
    const int32_t *targets; /* the next token's id; −1: counts in nothing. May be NULL where no loss is taken */
    const int32_t *start;   /* index in its sequence of the document's first token */
};

/* Starts the rows of kinds that start from the teacher's own attention (struct kind, calibrate) on this batch; nothing to do without
 * one, which model_calibrates says. The same batch gives the same values on every rank. Before training. */
enum { CALIBRATION_TOKENS = 2048 }; /* that are enough */
bool model_calibrates(const struct model *student);
enum status model_calibrate(struct model *student, const struct batch *batch);

/* --- plans: memory of a forward (and backward) pass ---------------------------------------------------------------- */
struct plan_options {
    int64_t batch, length;
    bool train;     /* keeps what the backward pass needs */
    bool recompute; /* train: keep only each layer's input, compute the rest again in backward */
    bool align;     /* memory for objective `attention` instead of a backward pass through the network */
};
struct plan;

/* Where in a run the next passes stand; without a call a pass is no training. *steady: the passes may be recorded (ops->repeat), and
 * start the same operations as other steady ones. */
enum status plan_set_context(struct plan *plan, const struct attention_context *context, bool *steady);
/* Sums over the rows since the plan's forward pass (or align_run) of the layers' own losses, added up: *loss. */
enum status plan_read_loss(struct plan *plan, double *loss);

/* On: the passes of this plan look at the output of every operation (slow) until a value is not finite; which operation, layer and head
 * it was: plan_probed, "" while there is none. Values and gradients are computed as ever. */
void plan_probe(struct plan *plan, bool on);
const char *plan_probed(const struct plan *plan);

/* *bytes that a plan takes, without taking them. */
enum status plan_measure(const struct model *model, const struct plan_options *options, size_t *bytes);
enum status plan_open(const struct model *model, const struct plan_options *options, struct plan **plan);
void plan_close(struct plan **plan); /* NULL-safe */

/* hidden = the model's final normed hidden states [B·T,C], in the plan's memory, valid until the plan's next forward.
 * Ids and lengths are checked: STATUS_USAGE for learned positions beyond their table, STATUS_FAILED for an id >= V. */
enum status model_forward(struct plan *plan, const struct batch *batch, struct tensor *hidden);
/* Its two parts: the batch checked and brought to the device, and operations alone, which ops->repeat may record. */
enum status model_load(struct plan *plan, const struct batch *batch);
enum status model_run(struct plan *plan, struct tensor *hidden);
struct tensor plan_hidden(const struct plan *plan); /* [B·T,C]: where the plan's passes leave them */
/* d_hidden [B·T,C] (overwritten as scratch) -> parameter gradients += for what trains. After model_forward of the same plan. */
enum status model_backward(struct plan *plan, struct tensor d_hidden);
/* Of that pass what lies below `above` and not below `lowest`, as params_layer counts: parts from PARAMS_TOP to −1, in this order, each
 * beginning where the last one ended, are the pass. After a part the gradients of rows with params_layer >= lowest are complete. */
enum status model_backward_part(struct plan *plan, struct tensor d_hidden, int64_t above, int64_t lowest);

/* Objective `attention`: the teacher's forward pass, and at every layer the student's attention on the teacher's normed input:
 * loss of layer l = Σ‖o_student − o_teacher‖² / Σ‖o_teacher‖². Of the teacher nothing is kept but what the layer at hand needs; the
 * student's layer is done, backward pass included, before the teacher goes on. teacher: plan of a forward pass; student: an align plan. */
struct align {
    struct plan *teacher, *student;
    const double *denominators; /* host [L]: what the gradients' numerators are divided by, the same for all ranks and micro-steps; NULL: no gradients */
    double scale;               /* of the gradients, which the student's trained parameters accumulate */
};
enum status align_load(const struct align *align, const struct batch *batch);
/* Operations alone, which ops->repeat may record. */
enum status align_run(const struct align *align);
/* errors, norms: host [L], numerator and denominator over the rows of the batch. */
enum status align_read(const struct align *align, double *errors, double *norms);

/* --- the head: row chunks of bounded memory ------------------------------------------------------------------------ */
struct head_options {
    int64_t rows;         /* N: B·T of a micro-step */
    size_t budget_bytes;  /* memory of the logits' chunk; 0: 256 MiB */
    bool statistics;      /* reverse_kl, teacher_ce, agree, entropy too (evaluation) */
    bool gradient;        /* d_hidden may be asked for: logits are in ops->real; else in ops->statistic, for exact figures */
};
struct head;
struct head_sums { /* over the rows that count */
    double rows, kl, reverse_kl, ce, teacher_ce, agree, entropy;
};
/* teacher may be NULL (objective lm, evaluation of one model). */
enum status head_measure(const struct model *teacher, const struct model *student, const struct head_options *options,
                         size_t *bytes);
enum status head_open(const struct model *teacher, const struct model *student, const struct head_options *options,
                      struct head **head);
void head_close(struct head **head); /* NULL-safe */
struct head_loss {
    struct tensor teacher_hidden, student_hidden; /* [N,C]; the first may be none */
    const int32_t *targets;                       /* host [N] or NULL (then every row counts in kl) */
    double temperature, kl_weight, ce_weight;     /* gradient of scale · Σ_rows (kl_weight·kl + ce_weight·ce) */
    double scale;
    struct tensor d_hidden; /* [N,C] written; none: no gradient (evaluation) */
};
/* One pass over row chunks: losses (added up in *sums, which the caller zeroes), d_hidden and, when the head trains, its gradient. */
enum status head_loss(struct head *head, const struct head_loss *arguments, struct head_sums *sums);
/* Its three parts: targets brought to the device; operations alone, which ops->repeat may record; the sums brought back. */
enum status head_load(struct head *head, const struct head_loss *arguments);
enum status head_run(struct head *head, const struct head_loss *arguments);
enum status head_read(struct head *head, const struct head_loss *arguments, struct head_sums *sums);
/* Per-row values of the last head_loss, host arrays [N] (NULL: not wanted). */
struct head_rows {
    double *kl, *reverse_kl, *ce, *teacher_ce, *agree, *entropy;
};
enum status head_read_rows(struct head *head, const struct head_rows *rows);
/* logits (or log-probabilities) of the student for rows first … first+count−1 of hidden -> host, [count,V] F32. */
enum status head_logits(struct head *head, struct tensor hidden, int64_t first, int64_t count, bool log_probabilities,
                        float *out);

/* --- decoding from a cache --------------------------------------------------------------------------------------- */
struct decoder;
/* `batch` sequences in step, at most `length` tokens each. */
enum status decoder_open(const struct model *model, int64_t batch, int64_t length, struct decoder **decoder);
void decoder_close(struct decoder **decoder); /* NULL-safe */
/* Feeds one token a sequence; logits: host [B,V] F32 of the next token (NULL: not wanted, while reading a prompt).
 * starts_document: host [B] or NULL: true where this token begins a new document (the first always does). */
enum status decoder_step(struct decoder *decoder, const int32_t *ids, const bool *starts_document, float *logits);
int64_t decoder_position(const struct decoder *decoder); /* tokens fed so far */

/* --- facts -------------------------------------------------------------------------------------------------------- */
/* Mean density over the layers that have one, and FLOPs a token of one forward pass at length T. */
enum status model_cost(const struct model *model, int64_t length, struct attention_cost *mean, double *forward_flops);

#endif
