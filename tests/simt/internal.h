/* Between simt.cc, which executes kernels, and runtime.cc, which queues them. */
#ifndef SQUINT_TESTS_SIMT_INTERNAL_H
#define SQUINT_TESTS_SIMT_INTERNAL_H

#include "tests/simt/simt.h"

#include <cuda_runtime.h>

void simt_run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, const std::function<void()> &body);
simt_counts *simt_counters();
/* What a call that may fail does this time: cudaSuccess, or the error that simt_fail_call wants. */
cudaError_t simt_maybe_fail();

#endif
