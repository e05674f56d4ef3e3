/* Which operation table a command runs on: --device of the command line, `device` of a recipe. */
#ifndef SQUINT_COMMANDS_DEVICE_H
#define SQUINT_COMMANDS_DEVICE_H

#include "kernels/ops.h"

/* name: cpu; cuda (bf16 or fp32 activations, as `bf16` says); auto or NULL: the GPU where there is one and this program
 * was built for it, else the CPU, and the log says why a GPU that was looked for is not used; or a table of ops_open,
 * for tests. The environment's SQUINT_TUNING is applied (eval/tuning.h). STATUS_USAGE: an unknown name, or cuda in a
 * build without CUDA, or a fault in that file. STATUS_NOT_FOUND: cuda, and no GPU that serves. */
enum status device_choose(const char *name, bool bf16, const struct ops_options *options, const struct ops **ops);

#define DEVICE_HELP                                                                                                    \
    "auto (default: a GPU where there is one) | cpu | cuda | guard:cpu (slow, checks every operation) | cpu-f64"

#endif
