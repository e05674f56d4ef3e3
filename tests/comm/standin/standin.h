/* What a test may ask of the stand-in for CUDA's streams and NCCL. */
#ifndef SQUINT_STANDIN_H
#define SQUINT_STANDIN_H

#include <stddef.h>

/* The n-th call (from 1) of the function of this name from now on returns `result`, an error of its library, and does
 * nothing. "async": the n-th look at the communicator's state finds it. NULL: none fails. */
void standin_fail(const char *function, long n, int result);
/* The function of this name never comes to its end from now on: ncclCommAbort does not return; ncclCommInitRankConfig,
 * ncclCommFinalize and collectives ("run") stay in progress. NULL: none. */
void standin_hang(const char *function);
/* Calls so far of all functions that may fail. */
long standin_calls(void);
/* Streams, events and communicators that exist. */
long standin_alive(void);
/* All ranks of this machine are on one GPU; else each has its own. */
void standin_share_gpu(int share);
/* From now on collectives move nothing and are done at once; of the last one asked for: elements, and bytes of one. */
void standin_dry(int dry);
void standin_asked(size_t *count, size_t *width);
/* What ncclGetVersion says. */
void standin_set_version(int version);

#endif
