/* Tables by name. */
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/cuda.h"
#include "kernels/guard/guard.h"

#include <string.h>

enum status ops_open(const char *name, const struct ops_options *options, const struct ops **ops) {
    static const char guard[] = "guard:";
    bool guarded = strncmp(name, guard, sizeof guard - 1) == 0;
    const char *inner_name = guarded ? name + sizeof guard - 1 : name;
    const struct ops *inner = NULL;
    if (strcmp(inner_name, "cpu") == 0) {
        TRY(cpu_open(options, &inner));
    } else if (strcmp(inner_name, "cpu-f64") == 0) {
        TRY(cpu_f64_open(options, &inner));
    } else if (strcmp(inner_name, "cuda") == 0) {
        TRY(cuda_open(options, DTYPE_BF16, &inner));
    } else if (strcmp(inner_name, "cuda-f32") == 0) {
        TRY(cuda_open(options, DTYPE_F32, &inner));
    } else {
        return error_set(
            STATUS_USAGE,
            "unknown operation table '%s': expected cpu, cpu-f64, cuda or cuda-f32, with or without guard: before it",
            name);
    }
    if (!guarded) {
        *ops = inner;
        return STATUS_OK;
    }
    enum status status = guard_open(inner, ops);
    if (status != STATUS_OK) inner->close(inner);
    return status;
}
