/* Linear attention of a GPU's table against the CPU's oracle, in fp32 and in bf16: what tests/simt executes on the host
 * and tests/gpu on a GPU.
 *
 * Tolerances, of an array's largest element. fp32: 1e-4, as between chunks of the CPU's fp32. bf16, u = 2^-8: the
 * oracle gets the rounded inputs; sums, exponents and log_sums are fp32. A far weight comes of φ_q, φ_k (or a state)
 * and of the weight itself, each rounded once, and the result is rounded: 4u at most for o, and for log Σ w, whose
 * weights are not rounded, 2u. Gradients have four products one behind the other (do·v, by φ, by W x, by x), each with
 * a rounded left side, and sums over a row that cancel to a part of their terms (hedgehog's and exp's softmax forms):
 * 8u. beta's gradient is a sum over all rows whose roundings are independent: √(B·T) times as much. KL is a mean of
 * differences of logarithms, each off by up to 3u, of which a row's sum of weights takes most back: u of the loss. */
#ifndef SQUINT_TESTS_OPS_LINEAR_DEVICE_H
#define SQUINT_TESTS_OPS_LINEAR_DEVICE_H

#include "tests/ops/device_table.h"
#include "tests/ops/linear_case.h"

#define LINEAR_F32           1e-4
#define LINEAR_BF16          0x1p-6 /* o */
#define LINEAR_BF16_GRADIENT 0x1p-5
#define LINEAR_BF16_LOSS     0x1p-8

/* Lengths, widths and maps around the tiles' edges; documents, windows and segments (chunk) that cut across them. */
extern const struct linear_case linear_device_cases[];
extern const int linear_device_case_count;
/* Short ones, to be decoded token by token. */
extern const struct linear_case linear_decode_cases[];
extern const int linear_decode_case_count;

/* One row on a table, compared with the oracle. */
void linear_device_row(const struct ops *ops, const struct ops *oracle, const struct linear_case *row, bool backward);
/* The implied weights' divergence from a teacher's, and its gradients, compared with the oracle. */
void linear_device_weights(const struct ops *ops, const struct ops *oracle, const struct linear_case *row);
/* Every token of a row decoded, compared with the oracle's parallel pass. */
void linear_device_decode(const struct ops *ops, const struct ops *oracle, const struct linear_case *row);

#endif
