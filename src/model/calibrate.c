/* The start of a student's own rows from what its teacher sees. */
#include "model/internal.h"

static enum status calibrate_layer(void *user, int64_t layer, struct plan *plan) {
    const struct model *student = user;
    const struct attention_layer *attention = &student->layers[layer], *taught = &plan->model->layers[layer];
    const struct layer_saved *s = &plan->saved[layer];
    struct attention_pass pass = attention_pass_of(plan, layer, s->n1, s->qkv, s->o);
    TRY(taught->kind->forward(taught, &pass));
    if (!attention->kind->calibrate) return STATUS_OK;
    pass.o = tensor_none();
    pass.saved = NULL;
    return attention->kind->calibrate(attention, &pass);
}

bool model_calibrates(const struct model *student) {
    for (int64_t l = 0; student->teacher && l < student->config.layers; l++)
        if (student->layers[l].kind->calibrate) return true;
    return false;
}

enum status model_calibrate(struct model *student, const struct batch *batch) {
    struct plan_options options = {.batch = batch->batch, .length = batch->length};
    struct attend attend = {.run = calibrate_layer, .user = student, .nothing_after = true};
    struct plan *plan = NULL;
    if (!model_calibrates(student)) return STATUS_OK;
    TRY(plan_open(student->teacher, &options, &plan));
    enum status status = plan_load_batch(plan, batch);
    if (status == STATUS_OK) status = network_forward(plan, &attend);
    plan_close(&plan);
    return status;
}
