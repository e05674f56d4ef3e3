/* The guarded data movement, losses, reductions and optimizer. */
#include "kernels/check.h"
#include "kernels/guard/internal.h"

static enum status guarded_copy(const struct ops *ops, struct tensor from, struct tensor to) {
    struct call call = {.operation = "copy"};
    TRY(check_copy(from, to));
    call_add(&call, "from", from, ACCESS_READ, NULL);
    call_add(&call, "to", to, ACCESS_WRITE, NULL);
    GUARDED(&call, copy, from, to);
}

static enum status guarded_fill(const struct ops *ops, struct tensor x, double value) {
    struct call call = {.operation = "fill"};
    if (!tensor_present(x)) return error_set(STATUS_SHAPE, "fill: x: expected a tensor, found nothing");
    TRY(check_tensor("fill", "x", x, x.dtype, x.rank, x.shape));
    call_add(&call, "x", x, ACCESS_WRITE, NULL);
    GUARDED(&call, fill, x, value);
}

static enum status guarded_add_scaled(const struct ops *ops, double alpha, struct tensor x, struct tensor y) {
    struct call call = {.operation = "add_scaled"};
    TRY(check_float(ops, "add_scaled", "x", x));
    TRY(check_same("add_scaled", x, y));
    call_add(&call, "x", x, ACCESS_READ, NULL);
    call_add(&call, "y", y, ACCESS_UPDATE, NULL);
    GUARDED(&call, add_scaled, alpha, x, y);
}

static enum status guarded_scale(const struct ops *ops, double alpha, struct tensor x) {
    struct call call = {.operation = "scale"};
    TRY(check_float(ops, "scale", "x", x));
    call_add(&call, "x", x, ACCESS_UPDATE, NULL);
    GUARDED(&call, scale, alpha, x);
}

static enum status guarded_fill_normal(const struct ops *ops, struct tensor x, double std, uint64_t seed,
                                       uint64_t stream) {
    struct call call = {.operation = "fill_normal"};
    TRY(check_float(ops, "fill_normal", "x", x));
    call_add(&call, "x", x, ACCESS_WRITE, NULL);
    GUARDED(&call, fill_normal, x, std, seed, stream);
}

static enum status guarded_loss_rows(const struct ops *ops, const struct loss_rows *a) {
    struct call call = {.operation = "loss_rows"};
    TRY(check_loss_rows(ops, a));
    call_add(&call, "student", a->student, ACCESS_READ, NULL);
    call_add(&call, "teacher", a->teacher, ACCESS_READ, NULL);
    call_add(&call, "targets", a->targets, ACCESS_READ, NULL);
    call_add(&call, "gradient", a->gradient, ACCESS_WRITE, "student");
    call_add(&call, "kl", a->kl, ACCESS_WRITE, NULL);
    call_add(&call, "reverse_kl", a->reverse_kl, ACCESS_WRITE, NULL);
    call_add(&call, "ce", a->ce, ACCESS_WRITE, NULL);
    call_add(&call, "teacher_ce", a->teacher_ce, ACCESS_WRITE, NULL);
    call_add(&call, "agree", a->agree, ACCESS_WRITE, NULL);
    call_add(&call, "entropy", a->entropy, ACCESS_WRITE, NULL);
    GUARDED(&call, loss_rows, a);
}

static enum status guarded_log_softmax(const struct ops *ops, struct tensor x, struct tensor y) {
    struct call call = {.operation = "log_softmax"};
    TRY(check_log_softmax(ops, x, y));
    call_add(&call, "x", x, ACCESS_READ, NULL);
    call_add(&call, "y", y, ACCESS_WRITE, "x");
    GUARDED(&call, log_softmax, x, y);
}

static enum status guarded_sum(const struct ops *ops, struct tensor x, struct tensor out) {
    struct call call = {.operation = "sum"};
    TRY(check_reduction(ops, "sum", x, out));
    call_add(&call, "x", x, ACCESS_READ, NULL);
    call_add(&call, "out", out, ACCESS_WRITE, NULL);
    GUARDED(&call, sum, x, out);
}

static enum status guarded_sum_squares(const struct ops *ops, struct tensor x, struct tensor out) {
    struct call call = {.operation = "sum_squares"};
    TRY(check_reduction(ops, "sum_squares", x, out));
    call_add(&call, "x", x, ACCESS_READ, NULL);
    call_add(&call, "out", out, ACCESS_WRITE, NULL);
    GUARDED(&call, sum_squares, x, out);
}

static enum status guarded_sum_squares_parts(const struct ops *ops, struct tensor x, const struct param_part *parts,
                                             int64_t count, struct tensor out) {
    struct call call = {.operation = "sum_squares_parts"};
    TRY(check_sum_squares_parts(ops, x, parts, count, out));
    call_add(&call, "x", x, ACCESS_READ, NULL);
    call_add(&call, "out", out, ACCESS_WRITE, NULL);
    GUARDED(&call, sum_squares_parts, x, parts, count, out);
}

static enum status guarded_sum_squared_difference(const struct ops *ops, struct tensor x, struct tensor y,
                                                  struct tensor out) {
    struct call call = {.operation = "sum_squared_difference"};
    TRY(check_reduction(ops, "sum_squared_difference", x, out));
    TRY(check_same("sum_squared_difference", x, y));
    call_add(&call, "x", x, ACCESS_READ, NULL);
    call_add(&call, "y", y, ACCESS_READ, NULL);
    call_add(&call, "out", out, ACCESS_WRITE, NULL);
    GUARDED(&call, sum_squared_difference, x, y, out);
}

static enum status guarded_adamw(const struct ops *ops, const struct adamw *a) {
    struct call call = {.operation = "adamw"};
    TRY(check_adamw(ops, a));
    call_add(&call, "grad", a->grad, ACCESS_READ, NULL);
    call_add(&call, "value", a->value, ACCESS_UPDATE, NULL);
    call_add(&call, "m", a->m, ACCESS_UPDATE, NULL);
    call_add(&call, "v", a->v, ACCESS_UPDATE, NULL);
    call_add(&call, "working", a->working, ACCESS_UPDATE, NULL);
    GUARDED(&call, adamw, a);
}

static enum status guarded_upload(const struct ops *ops, struct tensor device, const void *host) {
    struct call call = {.operation = "upload"};
    if (tensor_is_contiguous(device)) call_add(&call, "device", device, ACCESS_UPDATE, NULL);
    GUARDED(&call, upload, device, host);
}

static enum status guarded_download(const struct ops *ops, struct tensor device, void *host) {
    struct call call = {.operation = "download"};
    if (tensor_is_contiguous(device)) call_add(&call, "device", device, ACCESS_READ, NULL);
    GUARDED(&call, download, device, host);
}

void guard_losses(struct ops *ops) {
    ops->copy = guarded_copy;
    ops->fill = guarded_fill;
    ops->add_scaled = guarded_add_scaled;
    ops->scale = guarded_scale;
    ops->fill_normal = guarded_fill_normal;
    ops->loss_rows = guarded_loss_rows;
    ops->log_softmax = guarded_log_softmax;
    ops->sum = guarded_sum;
    ops->sum_squares = guarded_sum_squares;
    ops->sum_squares_parts = guarded_sum_squares_parts;
    ops->sum_squared_difference = guarded_sum_squared_difference;
    ops->adamw = guarded_adamw;
    ops->upload = guarded_upload;
    ops->download = guarded_download;
}
