// Which thread runs: its state and the choice of the next one. It is inlined into what a thread
// waits in, because a warp collective does it 32 times.
//
// A bit mask for each warp says which of its threads are ready, another says which warps have ready
// threads, so the next thread is found in a few instructions.
#ifndef SIMT_SCHEDULE_H
#define SIMT_SCHEDULE_H

#include "async_copy.h"
#include "engine.h"
#include "switch.h"

namespace simt {

// What a thread waits for.
struct Wait {
    const char *what;
    Where where;   // line 0: it has returned
    uint32_t mask; // 0: at a barrier of the block
};

struct alignas(64) Thread {
    Context context;
    int stack; // -1: not started
    uint3 index;
    Wait wait;
};

enum Order { FORWARD, REVERSE, RANDOM };

extern Thread threads[MAX_THREADS];
extern uint32_t ready[MAX_WARPS], ready_warps;
extern long spins; // yields since the last progress
extern Order order;

void thread_prepare(int thread);     // give it a stack
[[noreturn]] void report_deadlock(); // no thread is ready, and some have not returned
int next_slow();                     // as next_ready(), for every order
bool same_text(const char *a, const char *b);

// The next set bit of `mask` (not 0) after `last`, forward or in reverse, with wraparound.
inline int next_bit(uint32_t mask, int last) {
    uint32_t left = order == FORWARD ? mask & ~((2u << last) - 1) : mask & ((1u << last) - 1);
    left = left ? left : mask;
    return order == FORWARD ? __builtin_ctz(left) : 31 - __builtin_clz(left);
}

// The thread to run next, -1 if none is ready; of the same warp if that has one. Mostly it is the
// neighbour, and the processor goes on with that guess before it has read who is ready.
__attribute__((always_inline)) inline int next_ready() {
    int mine = self, lane = mine & 31;
    uint32_t mask = ready[mine >> 5];
    if (order == FORWARD && mask >> lane >> 1 & 1)
        return mine + 1;
    if (order == REVERSE && mask << (31 - lane) << 1 >> 31)
        return mine - 1;
    return next_slow();
}

inline void lanes_wake(int warp, uint32_t lanes) {
    ready[warp] |= lanes;
    ready_warps |= 1u << warp;
    spins = 0;
}

inline void set_waiting(int thread) {
    int warp = thread >> 5;
    ready[warp] &= ~(1u << (thread & 31));
    if (!ready[warp])
        ready_warps &= ~(1u << warp);
}

inline void set_current(int thread) {
    self = thread;
    threadIdx = threads[thread].index;
}

// The running thread leaves, and `next` becomes the current one.
inline Turn turn_of(int next) {
    int mine = self;
    if (next == mine)
        return {nullptr, nullptr};
    if (next < 0)
        report_deadlock();
    if (threads[next].stack < 0)
        thread_prepare(next);
    copies_turn(mine, next);
    set_current(next);
    return {&threads[mine].context, threads[next].context};
}

inline void set_wait(const Wait &wait) {
    threads[self].wait = wait;
    set_waiting(self);
}

// Do both name the same barrier or collective? Equal literals may have two addresses.
inline bool same_call(const char *a, const char *b) {
    return a == b || same_text(a, b);
}

} // namespace simt

#endif
