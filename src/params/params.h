/* THE tensor table of a model: names, shapes, initial values, who trains, and where each lies. One row a tensor drives
 * allocation, initialisation, weight decay, freezing, gradient buckets, file names and tests.
 *
 * A teacher owns every value. A student's rows are the teacher's rows (views into the teacher's memory) and those that its
 * kinds and LoRA add; what it trains it owns: own value and gradient, each in one contiguous block, and moments (division.h).
 *
 * Names: wte, wpe, h.N.norm1.{weight,bias}, h.N.attn.qkv.{weight,bias}, h.N.attn.out.{weight,bias}, h.N.norm2.{weight,bias},
 * h.N.mlp.up.{weight,bias} (Llama type: gate rows, then up rows), h.N.mlp.down.{weight,bias}, norm.{weight,bias}, head.weight
 * (when not tied), and what kinds add, such as h.N.attn.masks.coefficients. Matrices are [out,in]; attn.qkv holds the query
 * rows [H·D], then key rows [G·D], then value rows [G·D]. */
#ifndef SQUINT_PARAMS_PARAMS_H
#define SQUINT_PARAMS_PARAMS_H

#include "base/tensor.h"
#include "config/model_config.h"
#include "kernels/ops.h"

/* INIT_IDENTITY: row n of each matrix is ±1 in column n mod columns, the sign turning every `columns` rows.
 * INIT_ORTHOGONAL: params_draw_orthogonal, the same in every matrix of the row and in all such rows whose names agree up to the last
 * dot, so that queries and keys start with one map. */
enum param_init { INIT_ZERO = 0, INIT_ONE, INIT_NORMAL, INIT_VALUES, INIT_IDENTITY, INIT_ORTHOGONAL };

struct param {
    char name[64];
    int rank;
    int64_t shape[TENSOR_MAX_RANK];
    enum param_init init;
    double init_std;            /* INIT_NORMAL */
    const double *init_values;  /* INIT_VALUES: one an element, in order; owned by the table */
    bool decay;                 /* weight decay applies: matrices, not biases, norms or kinds' own numbers */
    bool sparse;                /* the proximal L1 step applies */
    bool added;                 /* by a kind ("new") */
    bool constant;              /* never trained once it is drawn: no pattern names it. Kept with the others in checkpoints and exports */
    bool lora;                  /* added by LoRA */
    bool owned;                 /* value lies in this table's own block */
    bool trained;               /* in the stage that runs now */
    int64_t offset;             /* elements from the start of the owned blocks; −1: not owned */
    /* value: ops->parameter; of a model that is only read it may be ops->real. Without memory (data NULL, though
     * tensor_present) where masters are divided and the row is not an added one. working: what operations read, in ops->real; the value
     * itself where that is its dtype, else a copy that params_wrote makes. grad: none when not owned by a trainer. */
    struct tensor value, working, grad;
    uint64_t read_hash; /* of the values as they were read, where `value` is narrower than ops->parameter; else 0 */
};

/* Neighbouring elements of the owned blocks whose gradients travel between the ranks at once (params/division.h). */
struct bucket {
    int64_t first, count;
    int64_t layer; /* params_layer's least of its rows: once the backward pass has left this layer its gradients are complete */
    int64_t row;   /* of the table, the first in it; all train in the same stages, and are added or not alike */
};
/* Elements that this rank updates; the first one's place in the moments' and masters' blocks, and in `kept`: −1, it is not there. */
struct span {
    int64_t first, count, state, kept;
};
struct division {
    int rank, size;
    bool zero; /* ZeRO stage 1: the spans are this rank's parts of the buckets; else one span is all */
    struct bucket *buckets; /* in the blocks' order, without gaps */
    int64_t bucket_count;
    struct span *spans;
    int64_t span_count;
    int64_t state_elements; /* of all spans */
};

struct params {
    const struct ops *ops;
    struct param *rows;
    int64_t count;
    int64_t owned_elements;
    struct tensor values, grads; /* [owned_elements] each; grads: none for a model that only runs; values: none once masters are divided */
    struct division division;
    struct tensor m, v; /* [division.state_elements]: none before params_divide */
    /* After params_divide_masters: values of this rank's spans [division.state_elements]; those of added rows, whole on every rank, for
     * their kinds read them. */
    struct tensor masters, kept;
    struct tensor workings;            /* [owned_elements] in ops->real, or none: operations read the values */
    bool shares_teacher;
    void *extra; /* memory of a row that was replaced by a longer one (learned positions beyond their table) */
};

/* The rows of a model, without memory. */
enum status params_new(const struct ops *ops, const struct model_config *model, struct params *params);
/* A student's table: the teacher's rows as views. */
enum status params_share(const struct params *teacher, struct params *params);
/* Appends a row (its init_values are copied). Before params_place. STATUS_FAILED when the name exists. */
enum status params_add(struct params *params, const struct param *row, int64_t init_values_count);
void params_free(struct params *params); /* NULL-safe */

struct param *params_find(const struct params *params, const char *name); /* NULL: not there */
int64_t params_elements(const struct params *params);                      /* of all rows */
size_t params_bytes(const struct params *params); /* of the table's own blocks: values, working copies, gradients, moments */
/* The layer down to which a backward pass has to go until the row's gradient is complete: its own; −1 of embeddings and of rows that
 * layers share; PARAMS_TOP of the final norm and the head. */
#define PARAMS_TOP INT64_MAX
int64_t params_layer(const struct param *row);
/* True when `pattern` names the row: "all"; "new" (added by kinds); "lora" or "lora(…)" (LoRA's rows); a shell pattern over the
 * whole name; or a run of dotted parts inside it ("attn.qkv" names h.3.attn.qkv.weight and .bias). */
bool params_match(const struct param *row, const char *pattern);
/* What "lora(r)", "lora(r,svd)" or "lora(r,svd,fixed)" among the patterns asks for; rank 0: none. STATUS_USAGE when malformed or when
 * two differ. */
struct lora {
    int64_t rank;
    bool svd;   /* A starts at the leading right singular vectors of the weight, not at random */
    bool fixed; /* and stays there: the update is constrained to read nothing but these directions */
};
enum status params_lora(char *const *patterns, size_t count, struct lora *lora);

/* Marks as owned the rows that match any pattern (of any stage), besides those already owned. STATUS_USAGE names a pattern that matches
 * nothing, with the nearest names. */
enum status params_own(struct params *params, char *const *patterns, size_t count);
/* Allocates the owned blocks: values, and with `train` grads (zero). Rows that were shared are copied from the teacher. Where
 * ops->real is narrower than ops->parameter, a table that neither trains nor shares a teacher holds its values in ops->real, nothing
 * else; any other table also holds working copies. */
enum status params_place(struct params *params, bool train);
/* The row's value was written: its working copy follows. */
enum status params_wrote(const struct params *params, const struct param *row);
/* The row lies elsewhere from now on: `value` is its value and, for tables without working copies, what operations read. */
void params_move(const struct params *params, struct param *row, struct tensor value);
/* Fills the rows that are added (or, of a model from scratch, all): a function of (seed, name). */
enum status params_initialise(struct params *params, uint64_t seed, bool only_added);
/* Rows of x [rows,columns] made orthonormal, in order (Gram-Schmidt); one that depends on those before it becomes 0. */
void params_orthonormalise(double *x, int64_t rows, int64_t columns);
/* out [rows,columns]: blocks of `columns` orthogonal rows (QR of Gaussians), each row as long as a Gaussian vector of its own
 * (Choromanski et al. 2020); a function of (seed, part). STATUS_MEMORY. */
enum status params_draw_orthogonal(uint64_t seed, uint64_t part, int64_t rows, int64_t columns, double *out);
/* Draw number `draw` of a row with INIT_ORTHOGONAL; draw 0 is its initial value. */
enum status params_redraw(const struct params *params, const struct param *row, uint64_t seed, uint64_t draw);
/* Sets `trained` for the rows that match, false for the rest; *elements = how many elements train. Every such row must be owned. */
enum status params_train(struct params *params, char *const *patterns, size_t count, int64_t *elements);
/* Moments to zero: a new stage begins. */
enum status params_reset_moments(struct params *params);
/* The next run of trained elements at or after *offset in the owned blocks: *offset, *count; false when there is none. Neighbouring
 * rows join. */
bool params_next_run(const struct params *params, int64_t *offset, int64_t *count);

/* One hash over names, shapes and values of all rows, as they were read: a teacher's identity, the same on every table. */
enum status params_hash(const struct params *params, uint64_t *hash);

#endif
