/* Counter-based random numbers: every value is a function of (seed, stream, index), never of who asks or when.
 * Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". */
#ifndef SQUINT_BASE_RNG_H
#define SQUINT_BASE_RNG_H

#include <stdint.h>

/* Uses of randomness; each is its own stream, so that none disturbs another. */
enum rng_stream { RNG_INIT = 1, RNG_ORDER, RNG_SAMPLE, RNG_CORPUS, RNG_FEATURES, RNG_TEST, RNG_SPLIT, RNG_WINDOW, RNG_INDEX };

/* Four words for counter block (stream, index) under `seed`. `stream`: a use in the low 8 bits, a sub-stream (a tensor, a
 * sequence) above. */
void rng_block(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]);
uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index); /* in [0,1), 53 bits */
double rng_normal(uint64_t seed, uint64_t stream, uint64_t index);  /* mean 0, variance 1; Box-Muller */
uint64_t rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound); /* in [0,bound), bound > 0 */
/* A bijection of [0,count) chosen by (seed, stream): Feistel network with cycle walking; O(1) memory. */
uint64_t rng_permute(uint64_t seed, uint64_t stream, uint64_t index, uint64_t count);

static inline uint64_t rng_substream(enum rng_stream use, uint64_t part) { return (part << 8) | (uint64_t)use; }

#endif
