/* Forward and backward passes of the kind `nsa`. */
#include "attention/nsa.h"

#include "base/memory.h"
#include "params/values.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What forward keeps for backward, and room for gradients inside the kind. */
struct nsa_saved {
    struct tensor keys, values, pre_keys, pre_values; /* [B,Nb,G,D], what gelu takes [B,Nb,G,2D] */
    struct tensor logits;                             /* [B,T,H·columns] */
    struct tensor branches[NSA_BRANCHES];             /* [B,T,H,D]; with one softmax, selected is the union */
    struct tensor log_sums[NSA_BRANCHES];             /* [B,H,T] */
    struct tensor chosen;                             /* [B,T,lists,select], or as many as annealing begins with */
    struct tensor kv[NSA_BRANCHES];                   /* [B·T,2·G·D] of branches with their own */
    /* train */
    struct tensor d_kv; /* [B·T,2·G·D] */
    struct tensor d_branch, d_keys, d_values, d_logits, losses;
};

enum status nsa_plan(const struct attention_layer *layer, struct arena *arena, int64_t batch, int64_t length, bool train,
                     void **out) {
    const struct nsa_settings *s = layer->settings;
    const struct model_config *m = layer->model;
    const struct ops *ops = layer->params->ops;
    const int64_t blocks = compressed_bound(length, s->compress, s->stride), width = m->head_width;
    struct nsa_saved *p = NULL;
    TRY(memory_new(1, sizeof *p, "attention's plan", &p));
    p->keys = arena_4d(arena, ops->real, batch, blocks, m->kv_heads, width);
    p->values = arena_4d(arena, ops->real, batch, blocks, m->kv_heads, width);
    p->pre_keys = arena_4d(arena, ops->real, batch, blocks, m->kv_heads, 2 * width);
    p->pre_values = arena_4d(arena, ops->real, batch, blocks, m->kv_heads, 2 * width);
    p->logits = arena_3d(arena, ops->real, batch, length, m->heads * nsa_gate_columns(s));
    for (int n = 0; n < (s->apart ? NSA_BRANCHES : NSA_WINDOW); n++) {
        p->branches[n] = arena_4d(arena, ops->real, batch, length, m->heads, width);
        p->log_sums[n] = arena_3d(arena, ops->statistic, batch, m->heads, length);
    }
    const int64_t every = (length + s->block - 1) / s->block;
    const int64_t select = train && s->anneal && s->select > 0 && every > s->select ? every : s->select;
    if (select > 0) p->chosen = arena_4d(arena, DTYPE_I32, batch, length, nsa_lists(layer), select);
    const int64_t kv_width = 2 * m->kv_heads * width;
    for (int n = 0; n < NSA_BRANCHES; n++)
        if (nsa_own_kv(s, n)) p->kv[n] = arena_2d(arena, ops->real, batch * length, kv_width);
    if (train) {
        if (s->separate) p->d_kv = arena_2d(arena, ops->real, batch * length, kv_width);
        p->d_branch = arena_4d(arena, ops->real, batch, length, m->heads, width);
        p->d_keys = arena_4d(arena, ops->real, batch, blocks, m->kv_heads, width);
        p->d_values = arena_4d(arena, ops->real, batch, blocks, m->kv_heads, width);
        p->d_logits = arena_3d(arena, ops->real, batch, length, m->heads * nsa_gate_columns(s));
        p->losses = arena_3d(arena, ops->statistic, batch, nsa_lists(layer), length);
    }
    *out = p;
    return STATUS_OK;
}

/* One pass: what is read now, which while annealing is more than the options say. */
struct nsa_run {
    const struct attention_layer *layer;
    const struct attention_pass *pass;
    const struct nsa_settings *s;
    const struct nsa_saved *saved;
    struct tensor chosen; /* [B,T,lists,select] or none */
    int32_t window;       /* 0: none */
    double scale;
};

/* From `all` down to `target`, in equal ratios. */
static int64_t anneal(int64_t all, int64_t target, double progress) {
    if (target >= all || target <= 0) return target;
    return (int64_t)lround(exp((1 - progress) * log((double)all) + progress * log((double)target)));
}

/* Does the recipe anneal in this sort of stage? */
static bool annealing(const struct nsa_settings *s, const struct attention_context *c) {
    return c->training && (s->anneal & (c->attention_stage ? NSA_ANNEAL_ATTENTION : NSA_ANNEAL_KL)) != 0;
}

enum status nsa_turn(const struct attention_layer *layer, const struct attention_context *context, bool *steady) {
    *steady = !annealing(layer->settings, context);
    return STATUS_OK;
}

static struct nsa_run run_of(const struct attention_layer *layer, const struct attention_pass *pass) {
    const struct nsa_settings *s = layer->settings;
    const struct attention_context *c = &pass->context;
    struct nsa_run run = {.layer = layer, .pass = pass, .s = s, .saved = pass->saved};
    const double progress = annealing(s, c) ? c->progress : 1;
    const int64_t every = (pass->length + s->block - 1) / s->block;
    int64_t select = anneal(every, s->select, progress);
    run.scale = 1 / sqrt((double)layer->model->head_width);
    if (nsa_windows(layer)) run.window = (int32_t)anneal(pass->length, s->window, progress);
    if (!nsa_selects(layer)) return run;
    if (select < s->select) select = s->select;
    const struct tensor room = run.saved->chosen;
    run.chosen = tensor_4d(room.data, DTYPE_I32, room.shape[0], room.shape[1], room.shape[2], select);
    return run;
}

struct block_compress nsa_compress(const struct attention_layer *layer, const struct nsa_compressor *rows, struct tensor x,
                                   struct tensor start, struct tensor out, struct tensor pre) {
    const struct nsa_settings *s = layer->settings;
    return (struct block_compress){.x = x, .start = start, .w1 = rows->w1->working, .b1 = rows->b1->working,
                                   .w2 = rows->w2->working, .places = rows->places->working, .out = out, .pre = pre,
                                   .compress = (int32_t)s->compress, .stride = (int32_t)s->stride};
}

enum status nsa_project(const struct attention_layer *layer, const struct ops *ops, enum nsa_branch branch, struct tensor x,
                        struct tensor positions, struct tensor frequencies, struct tensor kv) {
    const struct nsa_bound *bound = layer->bound;
    const struct param *bias = bound->kv_bias[branch];
    const struct gemm gemm = {.a = x, .b = bound->kv[branch]->working, .c = kv, .bias = bias ? bias->working : tensor_none(),
                              .transpose_b = true, .alpha = 1};
    TRY(ops->gemm(ops, &gemm));
    if (!tensor_present(frequencies)) return STATUS_OK;
    const struct rope rope = {.x = nsa_kv_part(layer, kv, positions.shape[0], positions.shape[1], 0), .positions = positions,
                              .frequencies = frequencies};
    return ops->rope(ops, &rope);
}

struct tensor nsa_kv_part(const struct attention_layer *layer, struct tensor kv, int64_t batch, int64_t length, int part) {
    const struct model_config *m = layer->model;
    const int64_t width = m->kv_heads * m->head_width;
    return tensor_split_heads(tensor_columns(kv, part * width, width), batch, length, m->kv_heads, m->head_width);
}

/* Keys (part 0) or values (part 1) of a branch. */
static struct tensor kv_of(const struct nsa_run *r, enum nsa_branch branch, int part) {
    if (nsa_own_kv(r->s, branch))
        return nsa_kv_part(r->layer, r->saved->kv[branch], r->pass->batch, r->pass->length, part);
    return part == 0 ? r->pass->k : r->pass->v;
}

static struct block_compress compress_keys(const struct nsa_run *r) {
    return nsa_compress(r->layer, &((const struct nsa_bound *)r->layer->bound)->keys, kv_of(r, NSA_COMPRESSED, 0), r->pass->start,
                        r->saved->keys, r->saved->pre_keys);
}

static struct block_compress compress_values(const struct nsa_run *r) {
    return nsa_compress(r->layer, &((const struct nsa_bound *)r->layer->bound)->values, kv_of(r, NSA_COMPRESSED, 1), r->pass->start,
                        r->saved->values, r->saved->pre_values);
}

static struct compressed_attention coarse_of(const struct nsa_run *r) {
    return (struct compressed_attention){
        .q = r->pass->q, .k = r->saved->keys, .v = r->saved->values, .start = r->pass->start,
        .o = nsa_on(r->layer, NSA_COMPRESSED) ? r->saved->branches[NSA_COMPRESSED] : tensor_none(),
        .log_sums = r->saved->log_sums[NSA_COMPRESSED], .chosen = r->chosen, .compress = (int32_t)r->s->compress,
        .stride = (int32_t)r->s->stride, .block = (int32_t)r->s->block,
        .select = tensor_present(r->chosen) ? (int32_t)r->chosen.shape[3] : 0, .select_group = (int32_t)r->s->select_group,
        .scale = r->scale};
}

/* Branch `selected` (with one softmax: and the window), or `window`. */
static struct block_attention fine_of(const struct nsa_run *r, enum nsa_branch branch) {
    const bool window = branch == NSA_WINDOW || !r->s->apart;
    return (struct block_attention){
        .q = r->pass->q, .k = kv_of(r, branch, 0), .v = kv_of(r, branch, 1), .start = r->pass->start,
        .chosen = branch == NSA_WINDOW ? tensor_none() : r->chosen, .o = r->saved->branches[branch],
        .log_sums = r->saved->log_sums[branch], .block = (int32_t)r->s->block, .window = window ? r->window : 0,
        .scale = r->scale};
}

/* Whether the exact branch `branch` reads anything in this pass. */
static bool reads(const struct nsa_run *r, enum nsa_branch branch) {
    if (branch == NSA_WINDOW) return r->s->apart && r->window > 0;
    return tensor_present(r->chosen) || (!r->s->apart && r->window > 0);
}

static struct gate_mix gates_of(const struct nsa_run *r) {
    struct gate_mix mix = {.logits = r->saved->logits, .o = r->pass->o, .complement = !r->s->apart};
    if (!r->s->apart) {
        mix.count = 2;
        mix.branches[0] = r->saved->branches[NSA_SELECTED];
        mix.branches[1] = r->saved->branches[NSA_COMPRESSED];
        return mix;
    }
    mix.count = NSA_BRANCHES;
    mix.branches[NSA_COMPRESSED] = nsa_on(r->layer, NSA_COMPRESSED) ? r->saved->branches[NSA_COMPRESSED] : tensor_none();
    for (int n = NSA_SELECTED; n < NSA_BRANCHES; n++) mix.branches[n] = reads(r, n) ? r->saved->branches[n] : tensor_none();
    return mix;
}

enum status nsa_gate_logits(const struct attention_layer *layer, const struct ops *ops, struct tensor x, struct tensor logits) {
    const struct nsa_bound *bound = layer->bound;
    const struct gemm gemm = {.a = x, .b = bound->gate->working, .c = logits, .bias = bound->gate_bias->working,
                              .transpose_b = true, .alpha = 1};
    return ops->gemm(ops, &gemm);
}

/* For the metrics: gates and choices of the last query of every sequence. */
static enum status look(const struct nsa_run *r) {
    struct nsa_bound *bound = r->layer->bound;
    const struct ops *ops = r->pass->ops;
    const int64_t columns = nsa_gate_columns(r->s), width = r->saved->logits.shape[2], heads = r->layer->model->heads;
    const int64_t lists = nsa_lists(r->layer), select = tensor_present(r->chosen) ? r->chosen.shape[3] : 0;
    const double share = 1 / (double)(r->pass->batch * heads);
    enum status status = STATUS_OK;
    double *logits = NULL;
    int32_t *chosen = NULL;
    int64_t inside = 0, outside = 0;
    memset(bound->gate_means, 0, sizeof bound->gate_means);
    TRY_GOTO(done, memory_new((size_t)width, sizeof *logits, "gates", &logits));
    TRY_GOTO(done, memory_new((size_t)(lists * select + 1), sizeof *chosen, "choices", &chosen));
    for (int64_t b = 0; b < r->pass->batch; b++) {
        const int64_t row = (b + 1) * r->pass->length - 1;
        const struct tensor starts = tensor_1d(r->pass->start.data, DTYPE_I32, r->pass->batch * r->pass->length);
        const struct tensor last = tensor_rows(tensor_as_rows(r->saved->logits), row, 1);
        TRY_GOTO(done, values_read(ops, last, logits));
        for (int64_t n = 0; n < width; n++) bound->gate_means[n % columns] += share / (1 + exp(-logits[n]));
        if (select == 0) continue;
        int32_t start = 0;
        TRY_GOTO(done, ops->download(ops, tensor_rows(starts, row, 1), &start));
        const struct tensor lines = tensor_2d(r->chosen.data, DTYPE_I32, r->pass->batch * r->pass->length, lists * select);
        TRY_GOTO(done, ops->download(ops, tensor_rows(lines, row, 1), chosen));
        for (int64_t n = 0; n < lists * select; n++) {
            const int64_t end = start + (chosen[n] + 1) * r->s->block;
            if (chosen[n] < 0) continue;
            if (end <= row % r->pass->length + 1 - r->window) outside++;
            inside++;
        }
    }
    bound->outside = inside ? (double)outside / (double)inside : 0;
    bound->looked = true;
done:
    free(logits);
    free(chosen);
    return status;
}

enum status nsa_forward(const struct attention_layer *layer, const struct attention_pass *pass) {
    const struct ops *ops = pass->ops;
    const struct nsa_run r = run_of(layer, pass);
    const bool coarse = nsa_on(layer, NSA_COMPRESSED);
    for (enum nsa_branch n = NSA_COMPRESSED; n < NSA_BRANCHES; n++)
        if (nsa_own_kv(r.s, n)) TRY(nsa_project(layer, ops, n, pass->x, pass->positions, pass->frequencies, r.saved->kv[n]));
    if (coarse || tensor_present(r.chosen)) {
        const struct block_compress keys = compress_keys(&r), values = compress_values(&r);
        TRY(ops->block_compress(ops, &keys));
        if (coarse) TRY(ops->block_compress(ops, &values));
        const struct compressed_attention attention = coarse_of(&r);
        TRY(ops->compressed_attention(ops, &attention));
    }
    const bool alone = !r.s->apart && !coarse; /* then the union is all there is */
    for (enum nsa_branch n = NSA_SELECTED; n < (r.s->apart ? NSA_BRANCHES : NSA_WINDOW); n++) {
        struct block_attention fine = fine_of(&r, n);
        if (alone) fine.o = pass->o;
        if (reads(&r, n))
            TRY(ops->block_attention(ops, &fine));
        else if (!r.s->apart)
            TRY(ops->fill(ops, fine.o, 0));
    }
    if (alone) return STATUS_OK;
    TRY(nsa_gate_logits(layer, ops, pass->x, tensor_as_rows(r.saved->logits)));
    const struct gate_mix mix = gates_of(&r);
    TRY(ops->gate_mix(ops, &mix));
    return pass->context.looks ? look(&r) : STATUS_OK;
}

/* --- backward ----------------------------------------------------------------------------------------------------- */

static struct tensor gradient_of(const struct param *row) { return row->trained ? row->grad : tensor_none(); }

/* d logits -> gates' parameters, dx. */
static enum status gates_backward(const struct nsa_run *r) {
    const struct ops *ops = r->pass->ops;
    const struct nsa_bound *bound = r->layer->bound;
    const struct tensor d_logits = tensor_as_rows(r->saved->d_logits);
    if (bound->gate->trained) {
        const struct gemm weights = {.a = d_logits, .b = r->pass->x, .c = bound->gate->grad, .transpose_a = true,
                                     .accumulate = true, .alpha = 1};
        TRY(ops->gemm(ops, &weights));
    }
    if (bound->gate_bias->trained) TRY(ops->bias_backward(ops, d_logits, bound->gate_bias->grad));
    if (!tensor_present(r->pass->dx)) return STATUS_OK;
    const struct gemm back = {.a = d_logits, .b = bound->gate->working, .c = r->pass->dx, .alpha = 1};
    return ops->gemm(ops, &back);
}

/* d_branch = the part of d_o that reaches branch n; d logits come with each. */
static enum status branch_gradient(const struct nsa_run *r, enum nsa_branch n) {
    struct gate_mix_backward mix = {.forward = gates_of(r), .d_o = r->pass->d_o, .dlogits = r->saved->d_logits};
    mix.d_branches[r->s->apart ? (int)n : n == NSA_COMPRESSED] = r->saved->d_branch;
    return r->pass->ops->gate_mix_backward(r->pass->ops, &mix);
}

/* d_kv of a branch with its own keys and values -> its projections, dx +=. */
static enum status projection_backward(const struct nsa_run *r, enum nsa_branch branch) {
    const struct attention_pass *pass = r->pass;
    const struct ops *ops = pass->ops;
    const struct nsa_bound *bound = r->layer->bound;
    const struct param *weight = bound->kv[branch], *bias = bound->kv_bias[branch];
    const struct tensor d_kv = r->saved->d_kv;
    if (tensor_present(pass->frequencies)) {
        const struct rope rope = {.x = nsa_kv_part(r->layer, d_kv, pass->batch, pass->length, 0), .positions = pass->positions,
                                  .frequencies = pass->frequencies, .inverse = true};
        TRY(ops->rope(ops, &rope));
    }
    if (weight->trained) {
        const struct gemm weights = {.a = d_kv, .b = pass->x, .c = weight->grad, .transpose_a = true, .accumulate = true,
                                     .alpha = 1};
        TRY(ops->gemm(ops, &weights));
    }
    if (bias && bias->trained) TRY(ops->bias_backward(ops, d_kv, bias->grad));
    if (!tensor_present(pass->dx)) return STATUS_OK;
    const struct gemm back = {.a = d_kv, .b = weight->working, .c = pass->dx, .accumulate = true, .alpha = 1};
    return ops->gemm(ops, &back);
}

/* Where the gradients of a branch's keys (part 0) or values (part 1) go. */
static struct tensor d_kv_of(const struct nsa_run *r, enum nsa_branch branch, int part) {
    if (nsa_own_kv(r->s, branch)) return nsa_kv_part(r->layer, r->saved->d_kv, r->pass->batch, r->pass->length, part);
    return part == 0 ? r->pass->dk : r->pass->dv;
}

static enum status fine_backward(const struct nsa_run *r) {
    const struct attention_pass *pass = r->pass;
    const struct ops *ops = pass->ops;
    bool first = true, written = false; /* dq and dx; dk and dv of the layer */
    for (enum nsa_branch n = NSA_SELECTED; n < (r->s->apart ? NSA_BRANCHES : NSA_WINDOW); n++) {
        if (!reads(r, n)) continue;
        const bool own = nsa_own_kv(r->s, n);
        TRY(branch_gradient(r, n));
        if (first) TRY(gates_backward(r));
        const struct block_attention_backward fine = {
            .forward = fine_of(r, n), .d_o = r->saved->d_branch, .dq = pass->dq, .dk = d_kv_of(r, n, 0),
            .dv = d_kv_of(r, n, 1), .accumulate_q = !first, .accumulate_kv = !own && written};
        TRY(ops->block_attention_backward(ops, &fine));
        if (own) TRY(projection_backward(r, n));
        first = false;
        written = written || !own;
    }
    if (written) return STATUS_OK;
    TRY(ops->fill(ops, pass->dk, 0));
    return ops->fill(ops, pass->dv, 0);
}

static enum status compressor_backward(const struct nsa_run *r, const struct nsa_compressor *rows, struct block_compress forward,
                                       struct tensor d_out, struct tensor dx) {
    const struct block_compress_backward g = {.forward = forward, .d_out = d_out, .dx = dx, .dw1 = gradient_of(rows->w1),
                                              .db1 = gradient_of(rows->b1), .dw2 = gradient_of(rows->w2),
                                              .dplaces = gradient_of(rows->places)};
    return r->pass->ops->block_compress_backward(r->pass->ops, &g);
}

/* The loss of choosing, added to the pass's, and its gradients. */
static enum status learn_to_choose(const struct nsa_run *r) {
    const struct attention_pass *pass = r->pass;
    const struct ops *ops = pass->ops;
    const double share = r->s->select_weight / (double)nsa_lists(r->layer);
    const struct block_mass mass = {
        .teacher_q = pass->teacher_q, .teacher_k = pass->teacher_k, .own_q = pass->q, .compressed = r->saved->keys,
        .start = pass->start, .log_sums = r->saved->log_sums[NSA_COMPRESSED], .losses = r->saved->losses,
        .loss = pass->loss, .weight = share, .d_own_q = pass->dq, .d_compressed = r->saved->d_keys,
        .compress = (int32_t)r->s->compress, .stride = (int32_t)r->s->stride, .block = (int32_t)r->s->block,
        .select_group = (int32_t)r->s->select_group, .scale = r->scale, .gradient_scale = share * pass->context.loss_scale};
    return ops->block_mass(ops, &mass);
}

enum status nsa_backward(const struct attention_layer *layer, const struct attention_pass *pass) {
    const struct ops *ops = pass->ops;
    const struct nsa_bound *bound = layer->bound;
    const struct nsa_run r = run_of(layer, pass);
    if (bound->off) return error_set(STATUS_FAILED, "attention nsa: a branch is switched off; such a layer does not train");
    TRY(fine_backward(&r));
    TRY(branch_gradient(&r, NSA_COMPRESSED));
    const struct compressed_attention_backward coarse = {
        .forward = coarse_of(&r), .d_o = r.saved->d_branch, .dq = pass->dq, .dk = r.saved->d_keys, .dv = r.saved->d_values,
        .accumulate_q = true};
    TRY(ops->compressed_attention_backward(ops, &coarse));
    const bool learns = pass->context.attention_stage && tensor_present(pass->teacher_q) && r.s->select > 0;
    if (learns && r.s->select_weight > 0) TRY(learn_to_choose(&r));
    const bool own = nsa_own_kv(r.s, NSA_COMPRESSED);
    if (own) TRY(ops->fill(ops, r.saved->d_kv, 0));
    TRY(compressor_backward(&r, &bound->keys, compress_keys(&r), r.saved->d_keys, d_kv_of(&r, NSA_COMPRESSED, 0)));
    TRY(compressor_backward(&r, &bound->values, compress_values(&r), r.saved->d_values, d_kv_of(&r, NSA_COMPRESSED, 1)));
    return own ? projection_backward(&r, NSA_COMPRESSED) : STATUS_OK;
}
