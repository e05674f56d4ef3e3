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
/* From one fiber to another, until it is switched to again; nullptr stands for the scheduler: the stack that all began
 * on. */
void fiber_switch(fiber *from, fiber *to);
/* For good; does not return, which it does not declare: AddressSanitizer would clear the whole stack before every call.
 */
void fiber_leave(fiber *from, fiber *to);
/* First thing in entry(). */
void fiber_started();

#endif
