// Fibers: stacks, and the switch from one to the next.
//
// The switch is a few instructions of assembly on x86-64 (switch.h) and aarch64: save what a
// function must preserve, exchange the stack pointer, restore. Elsewhere it is swapcontext(), some
// 50 times slower. Floating point control words are not switched: kernels do not change them.
#include "engine.h"

#include "fiber.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef NSA_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef NSA_VALGRIND
#include <valgrind/valgrind.h>
#endif
#if !defined __x86_64__ && !defined __aarch64__
#include <ucontext.h>
#endif

namespace simt {

// The guard is wide, because a large local array could skip a page. Untouched pages cost nothing.
enum { STACK = 512 << 10, GUARD = 128 << 10, STEP = 320 };

static char *stacks; // MAX_THREADS of them, each with a guard at its low end
#ifdef NSA_ASAN
static int current_stack = -1;            // the running stack, -1 for the caller's
static int previous_stack = -1;           // the one before
static void *asan_stack[MAX_THREADS + 1]; // the sanitizer's stack of each fiber, then the caller's
static const void *caller_bottom;
static size_t caller_size;
#endif

static char *stack_bottom(int stack) {
    return stacks + (size_t)stack * STACK;
}

// The tops differ in their low bits; else all fibers would compete for the same cache sets.
static char *stack_top(int stack) {
    return stack_bottom(stack) + STACK - (size_t)(stack % 64) * STEP;
}

void stacks_map() {
    if (stacks)
        return;
    size_t bytes = (size_t)MAX_THREADS * STACK;
    void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        perror("simulator: no room for the stacks of a block");
        _exit(2);
    }
    stacks = (char *)at;
    for (int i = 0; i < MAX_THREADS; i++) {
        mprotect(stack_bottom(i), GUARD, PROT_NONE);
#ifdef NSA_VALGRIND
        (void)VALGRIND_STACK_REGISTER(stack_bottom(i) + GUARD, stack_bottom(i) + STACK);
#endif
    }
}

bool stack_guards(const void *address) {
    size_t offset = (size_t)((const char *)address - stacks);
    return stacks && offset < (size_t)MAX_THREADS * STACK && offset % STACK < GUARD;
}

static void stack_clean(int stack) {
    (void)stack;
#ifdef NSA_ASAN
    asan_stack[stack] = nullptr;
    nsa_show(stack_top(stack) - 4096, 4096);
#endif
}

#if defined __x86_64__

Context stack_prepare(int stack, void (*run)()) {
    stack_clean(stack);
    void **top = (void **)((uintptr_t)stack_top(stack) & ~(uintptr_t)15);
    *--top = nullptr;     // return address of `run`: ends a debugger's backtrace
    *--top = (void *)run; // where registers_switch() jumps to
    return top;
}

#elif defined __aarch64__

asm(".text\n.p2align 4\n.hidden simt_switch\n.globl simt_switch\n"
    ".type simt_switch,%function\n"
    "simt_switch:\n"
    "    sub sp, sp, #160\n"
    "    stp x19, x20, [sp, #0]\n    stp x21, x22, [sp, #16]\n    stp x23, x24, [sp, #32]\n"
    "    stp x25, x26, [sp, #48]\n    stp x27, x28, [sp, #64]\n    stp x29, x30, [sp, #80]\n"
    "    stp d8, d9, [sp, #96]\n    stp d10, d11, [sp, #112]\n"
    "    stp d12, d13, [sp, #128]\n    stp d14, d15, [sp, #144]\n"
    "    mov x9, sp\n    str x9, [x0]\n    mov sp, x1\n"
    "    ldp x19, x20, [sp, #0]\n    ldp x21, x22, [sp, #16]\n    ldp x23, x24, [sp, #32]\n"
    "    ldp x25, x26, [sp, #48]\n    ldp x27, x28, [sp, #64]\n    ldp x29, x30, [sp, #80]\n"
    "    ldp d8, d9, [sp, #96]\n    ldp d10, d11, [sp, #112]\n"
    "    ldp d12, d13, [sp, #128]\n    ldp d14, d15, [sp, #144]\n"
    "    add sp, sp, #160\n    ret\n"
    ".size simt_switch,.-simt_switch\n");

Context stack_prepare(int stack, void (*run)()) {
    stack_clean(stack);
    uintptr_t top = (uintptr_t)stack_top(stack) & ~(uintptr_t)15;
    void **saved = (void **)(top - 160);
    memset(saved, 0, 160);
    saved[11] = (void *)run; // x30, where ret goes
    return saved;
}

#else

extern "C" void simt_switch(Context *save, Context to) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, (ucontext_t *)to);
}

Context stack_prepare(int stack, void (*run)()) {
    stack_clean(stack);
    ucontext_t *begin = (ucontext_t *)((uintptr_t)(stack_top(stack) - sizeof *begin) & ~63ul);
    getcontext(begin);
    begin->uc_stack.ss_sp = stack_bottom(stack) + GUARD;
    begin->uc_stack.ss_size = (size_t)((char *)begin - stack_bottom(stack) - GUARD);
    begin->uc_link = nullptr;
    makecontext(begin, run, 0);
    return begin;
}

#endif

// AddressSanitizer must be told of every switch: it tracks the running stack.
#ifdef NSA_ASAN

void asan_leave(int stack, bool ends) {
    const void *bottom = stack < 0 ? caller_bottom : stack_bottom(stack) + GUARD;
    size_t size = stack < 0 ? caller_size : (size_t)(STACK - GUARD);
    void **mine = &asan_stack[current_stack < 0 ? (int)MAX_THREADS : current_stack];
    __sanitizer_start_switch_fiber(ends ? nullptr : mine, bottom, size);
    previous_stack = current_stack;
    current_stack = stack;
}

void asan_arrive() {
    const void *bottom;
    size_t size;
    void *mine = asan_stack[current_stack < 0 ? (int)MAX_THREADS : current_stack];
    __sanitizer_finish_switch_fiber(mine, &bottom, &size);
    if (previous_stack < 0)
        caller_bottom = bottom, caller_size = size;
}

#endif

void context_switch(Context *save, Context to, int stack, bool ends) {
    (void)stack, (void)ends;
#ifdef NSA_ASAN
    asan_leave(stack, ends);
#endif
    registers_switch(save, to);
    context_arrive();
}

void context_arrive() {
#ifdef NSA_ASAN
    asan_arrive();
#endif
}

void stacks_abandon() {
    nsa_show(stacks, (size_t)MAX_THREADS * STACK);
}

} // namespace simt
