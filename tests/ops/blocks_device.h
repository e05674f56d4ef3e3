/* Attention to chosen blocks, and learning to choose, of a GPU's table against the oracle in double: what tests/simt
 * executes on the host and tests/gpu on a GPU. Which blocks are chosen, and the compressed keys, are the oracle's.
 *
 * Tolerances, of an array's largest element. fp32: 2e-5, as for attention (ops/attention_device.h). bf16, whose unit
 * roundoff is u = 2^-8: the oracle gets the rounded inputs. Forward, the window's part is rounded before chosen blocks
 * are joined with it, each weight before its product, and the result: 3u of the largest where terms do not cancel.
 * Gradients' terms are a few times their sum, for Σ_j ds_ij = 0 in every row; delta is made from the rounded o; and
 * what the window's part left in dq, dk, dv is rounded before the chosen part is added. 4u = 2^-6 covers that; a
 * mistake of one token is far larger. Losses are fp32 throughout, and keep its bound. */
#ifndef SQUINT_TESTS_OPS_BLOCKS_DEVICE_H
#define SQUINT_TESTS_OPS_BLOCKS_DEVICE_H

#include "tests/ops/device_table.h"
#include "tests/ops/nsa_case.h"

#define BLOCKS_F32  2e-5
#define BLOCKS_BF16 0x1p-6

/* Lengths, widths and blocks around the tiles' edges; heads that share lists and key heads in every way. */
extern const struct nsa_case block_shapes[];
extern const int block_shape_count;
/* Lists so long that partial results of all queries together would not fit. */
extern const struct nsa_case block_chunks;

/* One row on a table, compared with the oracle; parts: of NSA_FINE, NSA_MASS, NSA_BACKWARD. */
void device_blocks(const struct ops *ops, const struct nsa_case *row, int parts);
/* x [count]: the row's inputs, for a bf16 table rounded, and of the oracle what the parts read. */
void device_blocks_fill(const struct ops *ops, const struct nsa_case *row, struct nsa_arrays *x, int count);

#endif
