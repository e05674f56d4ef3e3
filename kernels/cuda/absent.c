/* In the place of the CUDA table where the program is built without CUDA. */
#include "kernels/cuda/cuda.h"

enum status cuda_open(const struct ops_options *options, enum dtype real, const struct ops **ops) {
    (void)options;
    (void)real;
    (void)ops;
    return error_set(STATUS_USAGE, "cuda: this program was built without CUDA");
}
