/**
 * @file timing.h
 * @brief Clocks, cold caches, threads and quartiles.
 */
#ifndef BENCH_TIMING_H
#define BENCH_TIMING_H

#include <stddef.h>

/** Where a duration comes from. A device has its own: events around the call in its queue. */
typedef struct bench_clock {
    const char *name;            /**< for the run file */
    void (*start)(void *state);  /**< begin */
    double (*stop)(void *state); /**< end; @return seconds since start */
    void *state;                 /**< the clock's own */
} bench_clock;

/** @return the machine's monotonic clock. */
const bench_clock *bench_cpu_clock(void);

/** @return seconds on the monotonic clock. */
double bench_now(void);

/** Three points of a sample. */
typedef struct bench_stats {
    double q1;     /**< first quartile */
    double median; /**< second */
    double q3;     /**< third */
} bench_stats;

/** Sort the samples and take quartiles, between neighbours by proportion. */
bench_stats bench_quartiles(double *samples, int count);

/** Whether a row that wants `wanted` runs has one in this round of `rounds`. Spread over all of
 * them, and of two rows one runs in every round of the other: ratios are of rounds that both ran
 * in. */
int bench_takes_part(int round, int rounds, int wanted);

/** Memory larger than the last-level cache: to empty it, and to copy within. */
typedef struct bench_arena {
    char *data;  /**< 2 * half bytes */
    size_t half; /**< bytes of a half: the last-level cache's, within reason */
} bench_arena;

/** Take the arena. @return 0 if there is no memory */
int bench_arena_open(bench_arena *arena);

/** Write a half, so that nothing of what came before is left in a cache. */
void bench_flush(const bench_arena *arena);

/** Give it back. */
void bench_arena_close(bench_arena *arena);

/** Call work(arg, thread) on `threads` threads, this one among them, and wait for all. */
void bench_parallel(int threads, void (*work)(void *arg, int thread), void *arg);

#endif
