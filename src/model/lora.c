/* LoRA on the attention's projections (Hu et al. 2021): W + B·A, B zero at the start, A by option normal or the leading
 * right singular vectors of W, where W itself does most (as in PiSSA, Meng et al. 2024, but the frozen W stays whole).
 */
#include "model/internal.h"

#include "base/memory.h"
#include "base/rng.h"
#include "params/values.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const parts[] = {"attn.qkv", "attn.out"};
enum { PARTS = 2, OVERSAMPLED = 8, ROUNDS = 8 };

static const struct param *row_of(const struct model *model, int64_t layer, int part, const char *ending) {
    char name[64];
    snprintf(name, sizeof name, "h.%lld.%s.%s", (long long)layer, parts[part], ending);
    return params_find(&model->params, name);
}

enum status lora_add(struct model *model) {
    int64_t rank = model->lora.rank;
    for (int64_t l = 0; l < model->config.layers; l++) {
        for (int part = 0; part < PARTS; part++) {
            const struct param *weight = row_of(model, l, part, "weight");
            int64_t out = weight->shape[0], in = weight->shape[1];
            if (rank > in || rank > out) {
                return error_set(STATUS_USAGE, "train: lora(%lld): %s is %lldx%lld; expected a rank of at most %lld",
                                 (long long)rank, weight->name, (long long)out, (long long)in,
                                 (long long)(in < out ? in : out));
            }
            struct param a = {.rank = 2,
                              .shape = {rank, in},
                              .init = INIT_NORMAL,
                              .init_std = 1.0 / sqrt((double)in),
                              .decay = true,
                              .lora = true,
                              .constant = model->lora.fixed};
            struct param b = {.rank = 2, .shape = {out, rank}, .init = INIT_ZERO, .decay = true, .lora = true};
            snprintf(a.name, sizeof a.name, "h.%lld.%s.lora_a", (long long)l, parts[part]);
            snprintf(b.name, sizeof b.name, "h.%lld.%s.lora_b", (long long)l, parts[part]);
            TRY(params_add(&model->params, &a, 0));
            TRY(params_add(&model->params, &b, 0));
        }
    }
    return STATUS_OK;
}

/* What the iteration works in: `count` candidate vectors of a weight [out,in], on the device and on the host. */
struct iteration {
    const struct ops *ops;
    struct tensor weight, x, y; /* [out,in]; [count,in]; [count,out] */
    double *host;               /* [count,in] */
};

/* x = the host's vectors, orthonormal. */
static enum status place_vectors(struct iteration *it) {
    params_orthonormalise(it->host, it->x.shape[0], it->x.shape[1]);
    return values_write(it->ops, it->x, it->host);
}

/* Subspace iteration on WᵀW (Halko, Martinsson and Tropp 2011, algorithm 4.4): x holds the leading right singular vectors, in order of
 * their values up to what the rounds resolve. */
static enum status iterate(struct iteration *it, uint64_t seed, uint64_t stream) {
    const struct gemm forward = {.a = it->x, .b = it->weight, .c = it->y, .transpose_b = true, .alpha = 1};
    const struct gemm back = {.a = it->y, .b = it->weight, .c = it->x, .alpha = 1};
    for (int64_t i = 0; i < tensor_count(it->x); i++) it->host[i] = rng_normal(seed, stream, (uint64_t)i);
    for (int round = 0; round < ROUNDS; round++) {
        TRY(place_vectors(it));
        TRY(it->ops->gemm(it->ops, &forward));
        TRY(it->ops->gemm(it->ops, &back));
        TRY(values_read(it->ops, it->x, it->host));
    }
    return place_vectors(it);
}

static enum status start_row(const struct model *model, int64_t layer, int part, uint64_t seed) {
    enum status status = STATUS_OK;
    const struct ops *ops = model->params.ops;
    const struct param *weight = row_of(model, layer, part, "weight"), *a = row_of(model, layer, part, "lora_a");
    int64_t out = weight->shape[0], in = weight->shape[1], most = in < out ? in : out;
    int64_t count = model->lora.rank + OVERSAMPLED < most ? model->lora.rank + OVERSAMPLED : most;
    struct iteration it = {.ops = ops, .weight = weight->working};
    size_t bytes = dtype_size(ops->real) * (size_t)(count * (in + out));
    void *block = NULL;
    TRY_GOTO(done, ops->allocate(ops, bytes, &block));
    it.x = tensor_2d(block, ops->real, count, in);
    it.y = tensor_2d((char *)block + dtype_size(ops->real) * (size_t)(count * in), ops->real, count, out);
    TRY_GOTO(done, memory_new((size_t)(count * in), sizeof(double), "singular vectors", &it.host));
    TRY_GOTO(done, iterate(&it, seed, rng_substream(RNG_INIT, (uint64_t)(layer * PARTS + part))));
    TRY_GOTO(done, ops->copy(ops, tensor_rows(it.x, 0, model->lora.rank), a->value));
    status = params_wrote(&model->params, a);
done:
    free(it.host);
    ops->release(ops, block);
    return status;
}

enum status lora_start(struct model *model, uint64_t seed) {
    for (int64_t l = 0; model->lora.svd && l < model->config.layers; l++) {
        for (int part = 0; part < PARTS; part++) TRY(start_row(model, l, part, seed));
    }
    return STATUS_OK;
}
