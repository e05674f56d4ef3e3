/* The compressed branch of kind nsa on a GPU's table, against the CPU's oracle in double: what tests/simt executes on
 * the host and tests/gpu on a GPU. Every operation gets the oracle's inputs, so that each is judged alone.
 *
 * Tolerances. fp32: 2e-5 of an array's largest element, as attention. bf16, u = 2^-8: the oracle gets the rounded
 * inputs. Attention: as ops/attention_device.h has it, 4u of the largest element. Compression: each of x + places, what
 * GELU takes, what it gives, and the result is rounded once, in sums whose terms have either sign: u√4 of the
 * largest where the roundings are independent, 4u at most; its gradients alike, dx with what it is added to. Gates: the
 * result is rounded once, u. log_sums are fp32 and keep its bound. The choice: scores, their exponents and sums are
 * fp32 in both, so a block may be preferred to another only where importances differ by less than COMPRESSED_CHOICE for
 * each head of the list. */
#ifndef SQUINT_TESTS_OPS_COMPRESSED_DEVICE_H
#define SQUINT_TESTS_OPS_COMPRESSED_DEVICE_H

#include "tests/ops/nsa_case.h"

#define COMPRESSED_F32    2e-5
#define COMPRESSED_BF16   0x1p-6
#define COMPRESSED_CHOICE 1e-5

/* Lengths, widths and blocks around the tiles' edges. */
extern const struct nsa_case compressed_shapes[];
extern const int compressed_shape_count;

/* Inputs of a row as the table gets them, and what the oracle makes of them: outputs of `parts`, each operation alone,
 * from what its full run left between. found: what it is to be run with. */
void compressed_expect(const struct ops *oracle, bool bf16, const struct nsa_case *row, int parts,
                       struct nsa_arrays *expected, struct nsa_arrays *found);
/* block_compress and compressed_attention with its choice, both ways, on a table. */
void compressed_row(const struct ops *ops, const struct ops *oracle, const struct nsa_case *row);
/* gate_mix, both ways: branches that are absent, one gate for two, rows that no load of 16 bytes may touch. */
void compressed_gates(const struct ops *ops, const struct ops *oracle);
/* Choices whose scores are exact, ties above all, against a plain sort. */
void compressed_ties(const struct ops *ops);
/* log_sums and the choice without o are those with it. */
void compressed_alone(const struct ops *ops, const struct nsa_case *row);
/* compressed_decode: documents anywhere in the cache, few and many visible blocks. */
void compressed_decoding(const struct ops *ops, const struct ops *oracle);

#endif
