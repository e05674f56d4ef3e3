/* Rounding fp32 matrices to bf16 in the layouts that the bf16 product reads. Needs avx512bf16. */
#ifndef SQUINT_KERNELS_CPU_BF16_PACK_H
#define SQUINT_KERNELS_CPU_BF16_PACK_H

#include <stdbool.h>
#include <stdint.h>

enum { BF16_DEPTH = 32, BF16_COLUMNS = 64 }; /* depth and columns of a packed b are padded to multiples of these */

bool bf16_can_pack(void);

/* to [rows,padded] = scale · a, zeros beyond `depth`. a: [rows,depth], or [depth,rows] when `transpose`; `stride`
 * elements from row to row. padded: depth rounded up to BF16_DEPTH. `to` has room for `rows` rounded up to 16. */
void bf16_pack_a(const float *a, int64_t stride, bool transpose, float scale, int64_t rows, int64_t depth,
                 int64_t padded, uint16_t *to);
/* to [padded/32][16][64][2] = one block of up to 64 columns of b, in pairs along the depth, zeros outside.
 * b: [depth,columns], or [columns,depth] when `transpose`. */
void bf16_pack_b(const float *b, int64_t stride, bool transpose, int64_t depth, int64_t columns, int64_t padded,
                 uint16_t *to);

#endif
