/* Attention to single tokens, and learning where to look, of a GPU's table against the CPU's oracle in double: what
 * tests/simt executes on the host and tests/gpu on a GPU.
 *
 * Tolerances, of an array's largest element. fp32: as for the CPU table, 2e-5, times the row's magnitude. bf16, whose
 * unit roundoff is u = 2^-8: the oracle gets the rounded inputs; scores, their exponents and sums are fp32, so
 * log_sums, losses and hits keep fp32's tolerance. Rounded besides are each weight, or a product's gradient, before its
 * second product, and the result: see attention_device.h. Gradients of r and u are such sums too, whose terms cancel in
 * every row as Σ_j (softmax(I)_ij − m_ij) = 0; a's are rounded once. */
#ifndef SQUINT_TESTS_OPS_TOKENS_DEVICE_H
#define SQUINT_TESTS_OPS_TOKENS_DEVICE_H

#include "tests/ops/index_case.h"

#define TOKENS_F32  2e-5
#define TOKENS_BF16 0x1p-6

/* Lengths and widths around the tiles' edges. */
extern const struct index_case tokens_shapes[];
extern const int tokens_shape_count;

/* Parts (RUN_ATTEND, RUN_LEARN, RUN_BACKWARD) of a row on a table, with choices that the oracle made, compared with
 * what the oracle computes. */
void tokens_agree(const struct ops *ops, const struct ops *oracle, const struct index_case *row, int parts);

#endif
