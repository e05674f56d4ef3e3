/* Attention of a GPU's table against the naive reference in double, in fp32 and in bf16, and decoding against the CPU's
 * oracle: what tests/simt executes on the host and tests/gpu on a GPU.
 *
 * Tolerances. fp32: as for the CPU table, 2e-5 of an array's largest element. bf16, whose unit roundoff is u = 2^-8:
 * the reference gets the rounded inputs, scores and sums are fp32, so log_sums keep fp32's tolerance. What is rounded
 * besides is each weight A_ij (or ds_ij) before its product, and the result: an output's error is at most u (Σ_j |A_ij
 * v_j| + |o_i|), that is 2u of the largest where terms do not cancel, and signed coefficients or gradients (Σ_j ds_ij =
 * 0 in every row) make |terms| a few times |sum|. delta = do·o/c is made from the rounded o: u Σ_d |do o| / |c|. 4u =
 * 2^-6 of the largest element covers that; a mistake of one element is far larger. */
#ifndef SQUINT_TESTS_OPS_ATTENTION_DEVICE_H
#define SQUINT_TESTS_OPS_ATTENTION_DEVICE_H

#include "tests/ops/attention_case.h"
#include "tests/ops/device_table.h"

#define ATTENTION_F32  2e-5
#define ATTENTION_BF16 0x1p-6

/* Lengths and widths around the tiles' edges; rows of memory that no load of 16 bytes may touch (`fused` with an odd
 * width). */
extern const struct attention_case device_shapes[];
extern const int device_shape_count;

/* One row on a table, compared with the reference. */
void device_attention(const struct ops *ops, const struct attention_case *row, uint64_t seed, bool backward);
/* The token at i of a row decoded, from the lists that the definitions give; compared with `oracle`. */
void device_decode_row(const struct ops *ops, const struct ops *oracle, const struct attention_case *row, int64_t i);
/* Lists of other heads' own, a slot listed twice, an empty list, lists long enough to be divided among blocks. */
void device_decode_lists(const struct ops *ops, const struct ops *oracle);
/* [count] I32 in a table's memory. Given back with ops->release. */
struct tensor device_ids(const struct ops *ops, const int32_t *from, int64_t count);

#endif
