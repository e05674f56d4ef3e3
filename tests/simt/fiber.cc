/* See fiber.h. x86-64 saves what the calling convention asks for and no more; elsewhere the C library's contexts do the
 * same, slower. */
#include "tests/simt/fiber.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif
#ifdef FIBER_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

static fiber scheduler; /* the stack that fibers were first entered from */

static const size_t stack_size = 512 << 10;

static void take_stack(fiber *f) {
    if (f->stack) return;
    void *memory =
        mmap(nullptr, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        fprintf(stderr, "simt: no memory for a thread's stack\n");
        abort();
    }
    /* Stacks that all began at the same place of a page would push each other out of the processor's caches. */
    static size_t taken;
    f->stack = static_cast<char *>(memory);
    f->stack_bytes = stack_size - taken++ % 64 * (1024 + 64);
}

#if defined(__x86_64__)
extern "C" void simt_switch(void **save, void *restore);
asm(R"(
    .text
    .globl simt_switch
    .type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size simt_switch, .-simt_switch
)");
void fiber_prepare(fiber *f, void (*entry)()) {
    take_stack(f);
    void **top = reinterpret_cast<void **>(f->stack + f->stack_bytes - 64);
    *--top = nullptr; /* where entry would return to; keeps the stack aligned as after a call */
    *--top = reinterpret_cast<void *>(entry);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    f->stack_pointer = top;
    f->fake_stack = nullptr;
}

static void switch_stacks(fiber *from, fiber *to) {
    simt_switch(&from->stack_pointer, to->stack_pointer);
}
#else
#include <ucontext.h>

void fiber_prepare(fiber *f, void (*entry)()) {
    take_stack(f);
    if (!f->stack_pointer) f->stack_pointer = new ucontext_t;
    ucontext_t *context = static_cast<ucontext_t *>(f->stack_pointer);
    getcontext(context);
    context->uc_stack.ss_sp = f->stack;
    context->uc_stack.ss_size = f->stack_bytes;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    f->fake_stack = nullptr;
}

static void switch_stacks(fiber *from, fiber *to) {
    if (!from->stack_pointer) from->stack_pointer = new ucontext_t; /* the scheduler's */
    swapcontext(static_cast<ucontext_t *>(from->stack_pointer), static_cast<ucontext_t *>(to->stack_pointer));
}
#endif

#ifdef FIBER_ASAN
static const fiber *previous; /* whose stack was left last */
static void leaving(const fiber *from, void **fake_stack, const fiber *to) {
    previous = from;
    __sanitizer_start_switch_fiber(fake_stack, to->stack, to->stack_bytes);
}
static void arrived(void *fake_stack) {
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
    if (previous == &scheduler) { /* nobody else knows where that stack lies */
        scheduler.stack = static_cast<char *>(const_cast<void *>(bottom));
        scheduler.stack_bytes = bytes;
    }
}
#else
static void leaving(const fiber *, void **, const fiber *) {}
static void arrived(void *) {}
#endif

void fiber_started() {
    arrived(nullptr);
}

void fiber_switch(fiber *from, fiber *to) {
    if (!from) from = &scheduler;
    if (!to) to = &scheduler;
    leaving(from, &from->fake_stack, to);
    switch_stacks(from, to);
    arrived(from->fake_stack);
}

void fiber_leave(fiber *from, fiber *to) {
    if (!to) to = &scheduler;
    leaving(from, nullptr, to); /* the stack's frames are done with */
    switch_stacks(from, to);
    abort();
}
