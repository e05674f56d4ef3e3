/* Makes one chosen call of the system, the allocator, a library or our own collectives fail. The calls are exchanged by
 * the linker: a test links inject.c and names every function of INJECT_FUNCTIONS in --wrap options
 * (tests/faults/CMakeLists.txt). */
#ifndef SQUINT_TESTS_SUPPORT_INJECT_H
#define SQUINT_TESTS_SUPPORT_INJECT_H

#include <stdbool.h>

extern const char *const inject_functions[]; /* ends with NULL */

/* From now on call number `call` of `function` fails, counted from 0, and none after it. */
void inject_start(const char *function, long call);
/* Ends it; true when a call has failed since inject_start. */
bool inject_stop(void);

#endif
