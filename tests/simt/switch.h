// The switch from one thread to another, inlined into kernels where they wait.
//
// It jumps, and no function is left in between: the lanes of a warp continue one after the other
// behind the same collective, so the processor predicts the jump. A return it would predict by the
// last call, which is another lane's at the next collective.
#ifndef SIMT_SWITCH_H
#define SIMT_SWITCH_H

#include "common/fence.h"

namespace simt {

// A suspended fiber is the address at which its registers were saved, on its own stack.
typedef void *Context;

#if defined __x86_64__

// The compiler saves the registers that it needs afterwards; only the frame pointer cannot be named
// as overwritten.
__attribute__((always_inline)) inline void registers_switch(Context *save, Context to) {
    asm volatile("leaq -128(%%rsp), %%rsp\n\t" // below it the compiler may keep variables
                 "pushq %%rbp\n\t"
                 "leaq 1f(%%rip), %%rax\n\t"
                 "pushq %%rax\n\t"
                 "movq %%rsp, (%0)\n\t"
                 "movq %1, %%rsp\n\t"
                 "popq %%rax\n\t"
                 "jmpq *%%rax\n"
                 "1:\n\t"
                 "popq %%rbp\n\t"
                 "leaq 128(%%rsp), %%rsp"
                 : "+D"(save), "+S"(to)
                 :
                 : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                   "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
#ifdef __AVX512F__
                   "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24",
                   "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3",
                   "k4", "k5", "k6", "k7",
#endif
                   "memory", "cc");
}

#else

extern "C" __attribute__((visibility("hidden"))) void simt_switch(Context *save, Context to);
inline void registers_switch(Context *save, Context to) {
    simt_switch(save, to);
}

#endif

#ifdef NSA_ASAN
void asan_leave_for_current();
void asan_arrive();
#endif

// Whose turn is next, as those functions say in which a thread begins to wait; save is NULL if it
// is its own.
struct Turn {
    Context *save, to;
};

__attribute__((always_inline)) inline void take(Turn turn) {
    if (!turn.save)
        return;
#ifdef NSA_ASAN
    asan_leave_for_current();
#endif
    registers_switch(turn.save, turn.to);
#ifdef NSA_ASAN
    asan_arrive();
#endif
}

} // namespace simt

#endif
