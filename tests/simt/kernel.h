// What device code uses: qualifiers, grid and thread indices, barriers, warp collectives, atomics.
//
// Threads of a block are fibers of one operating system thread. A fiber runs until it waits at a
// barrier or a collective, yields, or returns; see block.cpp. Shared memory that a kernel declares
// with __shared__ is thread-local storage of this shared object, which the simulator fills with
// NaN before each block; so nothing else in the object may be thread_local.
#ifndef SIMT_KERNEL_H
#define SIMT_KERNEL_H

#include "switch.h"
#include "types.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__      static __thread
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

extern uint3 threadIdx; // of the running fiber; visible in a debugger
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

namespace simt {

// A source location in a kernel, for reports and to tell barriers apart.
struct Where {
    const char *file;
    int line;
};
constexpr Where here(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    return Where{file, line};
}
// As a parameter's default: the location of the call.
#define SIMT_HERE simt::here()

extern int self; // linear index in its block of the running thread

inline int lane() {
    return self & 31;
}

// Abandon the launch with a report that names kernel, block and this thread.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Result of the votes of all threads at a barrier.
struct Votes {
    int count, any, all;
};

// A thread arrives at a barrier or a collective in a function that returns whose turn it is then.
// It takes that turn, and continues when all have arrived. Here: every thread of the block; `what`
// names the barrier's kind.
Turn barrier(const char *what, int predicate, Where where);
Votes barrier_votes(); // of the last one that all passed

inline Votes barrier_vote(const char *what, int predicate, Where where) {
    take(barrier(what, predicate, where));
    return barrier_votes();
}

void yield();           // let another thread run; reported if nobody makes progress
void fence();           // the same, and everyone sees the thread's asynchronous copies
void maybe_yield();     // in random order: sometimes yield
void *dynamic_shared(); // 16-byte aligned start of the block's dynamic shared memory

// Collectives of the lanes of `mask`; then result() of the running lane.
enum Reduction { ADD, MIN, MAX, UMIN, UMAX, AND, OR, XOR };
Turn warp_barrier(uint32_t mask, Where where); // no result
Turn exchange(const char *what, uint32_t mask, uint64_t value, int source, Where where);
Turn ballot(const char *what, uint32_t mask, int predicate, Where where);
Turn match_any(uint32_t mask, uint64_t value, Where where);
Turn reduce(const char *what, Reduction how, uint32_t mask, uint32_t value, Where where);
uint64_t result();

inline uint64_t result_of(Turn turn) {
    take(turn);
    return result();
}

template <class T> struct same { typedef T type; };
template <class T> using just = typename same<T>::type; // a parameter without deduction

template <class T>
inline T shuffle(const char *what, uint32_t mask, T value, int source, Where where) {
    static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = result_of(exchange(what, mask, bits, source, where));
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline int segment(int width) { // first lane of this lane's segment
    if (width < 1 || width > 32 || (width & (width - 1)))
        fail("shuffle width %d is not a power of two up to 32", width);
    return lane() & ~(width - 1);
}

} // namespace simt

// ---------------------------------------------------------------------------- barriers, fences

inline void __syncthreads(simt::Where where = SIMT_HERE) {
    simt::take(simt::barrier("__syncthreads", 0, where));
}
inline int __syncthreads_count(int predicate, simt::Where where = SIMT_HERE) {
    return simt::barrier_vote("__syncthreads_count", predicate, where).count;
}
inline int __syncthreads_or(int predicate, simt::Where where = SIMT_HERE) {
    return simt::barrier_vote("__syncthreads_or", predicate, where).any;
}
inline int __syncthreads_and(int predicate, simt::Where where = SIMT_HERE) {
    return simt::barrier_vote("__syncthreads_and", predicate, where).all;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Where where = SIMT_HERE) {
    simt::take(simt::warp_barrier(mask, where));
}
inline void __threadfence() {
    simt::fence();
}
inline void __threadfence_block() {
    simt::fence();
}
inline void __threadfence_system() {
    simt::fence();
}
inline void __nanosleep(unsigned) {
    simt::yield();
}
[[noreturn]] inline void __trap() {
    simt::fail("__trap()");
}

// ----------------------------------------------------------------------------- warp collectives

// As in the PTX manual's shfl.sync: a lane whose source is outside its segment keeps its own value.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32,
                     simt::Where where = SIMT_HERE) {
    int from = simt::segment(width) | (source & (width - 1));
    return simt::shuffle("__shfl_sync", mask, value, from, where);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                        simt::Where where = SIMT_HERE) {
    int from = simt::lane() - (int)delta;
    from = from < simt::segment(width) ? simt::lane() : from;
    return simt::shuffle("__shfl_up_sync", mask, value, from, where);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                          simt::Where where = SIMT_HERE) {
    int from = simt::lane() + (int)delta;
    from = from >= simt::segment(width) + width ? simt::lane() : from;
    return simt::shuffle("__shfl_down_sync", mask, value, from, where);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                         simt::Where where = SIMT_HERE) {
    int from = simt::lane() ^ bits;
    from = from >= simt::segment(width) + width ? simt::lane() : from;
    return simt::shuffle("__shfl_xor_sync", mask, value, from, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Where where = SIMT_HERE) {
    return (unsigned)simt::result_of(simt::ballot("__ballot_sync", mask, predicate, where));
}
inline int __any_sync(unsigned mask, int predicate, simt::Where where = SIMT_HERE) {
    return simt::result_of(simt::ballot("__any_sync", mask, predicate, where)) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Where where = SIMT_HERE) {
    return simt::result_of(simt::ballot("__all_sync", mask, predicate, where)) == mask;
}
// Only the calling lane is sure to be active: that is all a portable kernel may rely on.
inline unsigned __activemask() {
    return 1u << simt::lane();
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, simt::Where where = SIMT_HERE) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return (unsigned)simt::result_of(simt::match_any(mask, bits, where));
}

// One function each: int and unsigned differ for the smaller and the larger only.
#define SIMT_REDUCE(NAME, SIGNED, UNSIGNED)                                                        \
    inline int NAME(unsigned mask, int value, simt::Where where = SIMT_HERE) {                     \
        return (int)simt::result_of(                                                               \
            simt::reduce(#NAME, simt::SIGNED, mask, (uint32_t)value, where));                      \
    }                                                                                              \
    inline unsigned NAME(unsigned mask, unsigned value, simt::Where where = SIMT_HERE) {           \
        return (unsigned)simt::result_of(simt::reduce(#NAME, simt::UNSIGNED, mask, value, where)); \
    }
SIMT_REDUCE(__reduce_add_sync, ADD, ADD)
SIMT_REDUCE(__reduce_min_sync, MIN, UMIN)
SIMT_REDUCE(__reduce_max_sync, MAX, UMAX)
SIMT_REDUCE(__reduce_and_sync, AND, AND)
SIMT_REDUCE(__reduce_or_sync, OR, OR)
SIMT_REDUCE(__reduce_xor_sync, XOR, XOR)

// -------------------------------------------------------------------------------------- atomics

// Fibers switch only where they wait or yield, so a plain read and write is atomic.
#define SIMT_ATOMIC(NAME, EXPRESSION)                                                              \
    template <class T> inline T NAME(T *address, simt::just<T> value) {                            \
        simt::maybe_yield();                                                                       \
        T old = *address;                                                                          \
        *address = (EXPRESSION);                                                                   \
        return old;                                                                                \
    }
SIMT_ATOMIC(atomicAdd, old + value)
SIMT_ATOMIC(atomicSub, old - value)
SIMT_ATOMIC(atomicMin, old < value ? old : value)
SIMT_ATOMIC(atomicMax, old > value ? old : value)
SIMT_ATOMIC(atomicAnd, old &value)
SIMT_ATOMIC(atomicOr, old | value)
SIMT_ATOMIC(atomicXor, old ^ value)
#undef SIMT_ATOMIC

template <class T> inline T atomicExch(T *address, simt::just<T> value) {
    simt::yield(); // may be a spin lock: let its owner run
    T old = *address;
    *address = value;
    return old;
}
template <class T> inline T atomicCAS(T *address, simt::just<T> expected, simt::just<T> value) {
    simt::yield();
    T old = *address;
    if (old == expected)
        *address = value;
    return old;
}
inline unsigned atomicInc(unsigned *address, unsigned limit) {
    simt::maybe_yield();
    unsigned old = *address;
    *address = old >= limit ? 0 : old + 1;
    return old;
}

// -------------------------------------------------------------------------------- cached access

template <class T> inline T __ldg(const T *address) {
    return *address;
}
template <class T> inline T __ldcg(const T *address) {
    return *address;
}
template <class T> inline T __ldcs(const T *address) {
    return *address;
}
template <class T> inline void __stcg(T *address, simt::just<T> value) {
    *address = value;
}
template <class T> inline void __stcs(T *address, simt::just<T> value) {
    *address = value;
}

#endif
