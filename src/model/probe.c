/* Looks for the first value that is not finite, in the order of the passes: an operation's output by layer, and by head where it has
 * heads. Only a pass that is repeated for that purpose looks; all others see one comparison. */
#include "model/internal.h"

#include <math.h>
#include <stdio.h>

static enum status all_finite(const struct plan *plan, struct tensor x, bool *is_finite) {
    const struct ops *ops = plan->model->params.ops;
    double sum = 0;
    TRY(ops->sum(ops, x, tensor_rows(plan->sums, 0, 1)));
    TRY(ops->download(ops, tensor_rows(plan->sums, 0, 1), &sum));
    *is_finite = isfinite(sum) != 0;
    return STATUS_OK;
}

static void note(struct plan *plan, int64_t layer, int64_t head, const char *what) {
    char *text = plan->probed, *end = text + sizeof plan->probed;
    if (layer >= 0) text += snprintf(text, sizeof plan->probed, "layer %lld, ", (long long)layer);
    if (head >= 0) text += snprintf(text, (size_t)(end - text), "head %lld, ", (long long)head);
    snprintf(text, (size_t)(end - text), "%s", what);
}

enum status probe_look(struct plan *plan, int64_t layer, const char *what, struct tensor x) {
    bool fine = true;
    if (!plan->probing || plan->probed[0] || !tensor_present(x)) return STATUS_OK;
    TRY(all_finite(plan, x, &fine));
    if (!fine) note(plan, layer, -1, what);
    return STATUS_OK;
}

enum status probe_look_heads(struct plan *plan, int64_t layer, const char *what, struct tensor x) {
    if (!plan->probing || plan->probed[0]) return STATUS_OK;
    for (int64_t h = 0; h < x.shape[2]; h++) {
        bool fine = true;
        struct tensor head = x;
        head.data = (char *)x.data + (size_t)(h * x.stride[2]) * dtype_size(x.dtype);
        head.shape[2] = 1;
        TRY(all_finite(plan, head, &fine));
        if (fine) continue;
        note(plan, layer, h, what);
        break;
    }
    return STATUS_OK;
}

void plan_probe(struct plan *plan, bool on) {
    plan->probing = on;
    plan->probed[0] = '\0';
}

const char *plan_probed(const struct plan *plan) { return plan->probed; }
