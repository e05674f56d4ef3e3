/* The tests that run on a GPU, one program for all: the kernels are the largest part of it, and every program that
 * links them holds a copy. The same program linked with tests/simt's table is executed on the host, so that the tests
 * themselves are tested. */
#ifndef SQUINT_TESTS_GPU_GPU_H
#define SQUINT_TESTS_GPU_GPU_H

#include <stdbool.h>
#include <stddef.h>

struct gpu_choice {
    bool quick; /* fewer and smaller shapes: under compute-sanitizer every access costs a hundred times as much */
    const char *chosen; /* only cases whose name starts so; "" for all */
};
extern struct gpu_choice gpu_choice;

static inline bool gpu_quick(void) {
    return gpu_choice.quick;
}
bool gpu_chose(const char *case_name);

/* Groups of tests; they return how many failed. */
int gpu_test_ops(void);        /* every operation against the fp64 oracle */
int gpu_test_attention(void);  /* attention and its decoding against the naive reference */
int gpu_test_linear(void);     /* linear attention, its weights and its decoding */
int gpu_test_compressed(void); /* nsa's compressed branch, and the choice of blocks */
int gpu_test_blocks(void);     /* nsa's chosen blocks, and learning to choose */
int gpu_test_choice(void);     /* the indexer's choice and its decoding */
int gpu_test_tokens(void);     /* attention to single tokens, and learning where to look */
int gpu_test_million(void);    /* sequences of 2^20 tokens */
int gpu_test_repeat(void);     /* deterministic: the same bits again */
int gpu_test_model(void);      /* the exactness ladder of whole models */

#endif
