/* Fibers: a stack each, switched by hand. */
#ifndef SQUINT_TESTS_SIMT_FIBER_H
#define SQUINT_TESTS_SIMT_FIBER_H

#include <cstddef>

struct fiber {
    void *stack_pointer;
    char *stack;
    size_t stack_bytes;
    void *fake_stack; /* AddressSanitizer's */
};

/* Prepares a fiber that will call entry() when it is first switched to; entry never returns: its last act is
 * fiber_leave. */
void fiber_prepare(fiber *f, void (*entry)());
/* From the scheduler into the fiber, until it yields or leaves. */
void fiber_enter(fiber *f);
/* From a fiber back to the scheduler. */
void fiber_yield(fiber *f);
[[noreturn]] void fiber_leave(fiber *f);
/* First thing in entry(). */
void fiber_started(fiber *f);

#endif
