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
static const void *scheduler_bottom;
static size_t scheduler_bytes;
static void *scheduler_fake;
#define LEAVING(save, bottom, bytes) __sanitizer_start_switch_fiber(save, bottom, bytes)
#define ARRIVED(fake, bottom, bytes) __sanitizer_finish_switch_fiber(fake, bottom, bytes)
#else
#define LEAVING(save, bottom, bytes) ((void)0)
#define ARRIVED(fake, bottom, bytes) ((void)0)
#endif

static const size_t stack_size = 512 << 10;

static void take_stack(fiber *f) {
    if (f->stack) return;
    void *memory =
        mmap(nullptr, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        fprintf(stderr, "simt: no memory for a thread's stack\n");
        abort();
    }
    f->stack = static_cast<char *>(memory);
    f->stack_bytes = stack_size;
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
static void *scheduler_pointer;

void fiber_prepare(fiber *f, void (*entry)()) {
    take_stack(f);
    void **top = reinterpret_cast<void **>(f->stack + f->stack_bytes - 64);
    *--top = nullptr; /* where entry would return to; keeps the stack aligned as after a call */
    *--top = reinterpret_cast<void *>(entry);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    f->stack_pointer = top;
    f->fake_stack = nullptr;
}

static void switch_in(fiber *f) {
    simt_switch(&scheduler_pointer, f->stack_pointer);
}
static void switch_out(fiber *f) {
    simt_switch(&f->stack_pointer, scheduler_pointer);
}
#else
#include <ucontext.h>
static ucontext_t scheduler_context;

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

static void switch_in(fiber *f) {
    swapcontext(&scheduler_context, static_cast<ucontext_t *>(f->stack_pointer));
}
static void switch_out(fiber *f) {
    swapcontext(static_cast<ucontext_t *>(f->stack_pointer), &scheduler_context);
}
#endif

void fiber_started(fiber *f) {
    (void)f;
    ARRIVED(nullptr, &scheduler_bottom, &scheduler_bytes);
}

void fiber_enter(fiber *f) {
    LEAVING(&scheduler_fake, f->stack, f->stack_bytes);
    switch_in(f);
    ARRIVED(scheduler_fake, nullptr, nullptr);
}

void fiber_yield(fiber *f) {
    LEAVING(&f->fake_stack, scheduler_bottom, scheduler_bytes);
    switch_out(f);
    ARRIVED(f->fake_stack, &scheduler_bottom, &scheduler_bytes);
}

void fiber_leave(fiber *f) {
    LEAVING(nullptr, scheduler_bottom, scheduler_bytes); /* the stack's frames are done with */
    switch_out(f);
    abort();
}
