/* Attention rows summed over heads: what an indexer is to find, and what it learns from. */
#include "kernels/cpu/index.h"

void NAME(index_mass)(const struct index_attention *a, int64_t b, int64_t first_head, int64_t count, int64_t first,
                      int64_t rows, int64_t low, int64_t row, real *q, real *e, real *mass) {
    const int32_t *start = (const int32_t *)a->start.data + b * a->start.stride[0];
    const int64_t columns = pad_lanes(first + rows - low);
    for (int64_t r = 0; r < rows; r++) memset(mass + r * row, 0, (size_t)columns * sizeof(real));
    for (int64_t h = first_head; h < first_head + count; h++) {
        const int64_t group = b * a->groups + h / (a->heads / a->groups);
        NAME(blocks_load)(blocks_rows(a->q, b, h), first, rows, a->width, a->scale, q);
        NAME(blocks_products)(rows, a->width, q, a->runs + group * a->run_elements, low, columns, e);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t i = first + r, from = start[i] - low, tokens = i - start[i] + 1;
            real *own = e + r * columns + from;
            const real sum = blocks_exponents(own, tokens, real_row_max(own, tokens));
            real_axpy(1 / sum, own, mass + r * row + from, tokens);
        }
    }
}
