/**
 * @file timing.h
 * @brief Clocks, flushing caches, threads and quartiles.
 */
#ifndef BENCH_TIMING_H
#define BENCH_TIMING_H

#include <stddef.h>

/** A clock for one run. */
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

/** Sort the samples and compute quartiles, interpolated linearly. */
bench_stats bench_quartiles(double *samples, int count);

/** 1 if a row with `wanted` runs has one in this round of `rounds`. Its runs are spread over all
 * rounds, and every round of a row with fewer runs is a round of each row with more: ratios need
 * shared rounds. */
int bench_takes_part(int round, int rounds, int wanted);

/** Memory larger than the last-level cache, to flush it and to measure copies. */
typedef struct bench_arena {
    char *data;  /**< 2 * half bytes */
    size_t half; /**< bytes of a half: the size of the last-level cache, within limits */
} bench_arena;

/** Allocate the arena. @return 0 if there is no memory */
int bench_arena_open(bench_arena *arena);

/** Write one half, which evicts everything else from the caches. */
void bench_flush(const bench_arena *arena);

/** Free it. */
void bench_arena_close(bench_arena *arena);

/** Call work(arg, thread) on `threads` threads, this one among them, and wait for all. */
void bench_parallel(int threads, void (*work)(void *arg, int thread), void *arg);

#endif
