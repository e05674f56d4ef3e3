/* See device.h. */
#include "commands/device.h"

#include "base/log.h"
#include "eval/tuning.h"

#include <string.h>

static enum status open_named(const char *name, bool bf16, const struct ops_options *options, const struct ops **ops) {
    const char *gpu = bf16 ? "cuda" : "cuda-f32";
    if (name && strcmp(name, "cuda") == 0) return ops_open(gpu, options, ops);
    if (name && strcmp(name, "auto") != 0) return ops_open(name, options, ops);
    const enum status status = ops_open(gpu, options, ops);
    if (status != STATUS_NOT_FOUND && status != STATUS_USAGE) return status;
    if (status == STATUS_NOT_FOUND) log_line("device   %s: running on the CPU", error_message());
    error_clear();
    return ops_open("cpu", options, ops);
}

enum status device_choose(const char *name, bool bf16, const struct ops_options *options, const struct ops **ops) {
    TRY(open_named(name, bf16, options, ops));
    const enum status status = tuning_apply(*ops, options);
    if (status == STATUS_OK) return STATUS_OK;
    (*ops)->close(*ops);
    *ops = NULL;
    return status;
}
