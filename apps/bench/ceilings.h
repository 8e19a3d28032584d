/**
 * @file ceilings.h
 * @brief What this machine can do at most, measured beside what is judged by it.
 */
#ifndef BENCH_CEILINGS_H
#define BENCH_CEILINGS_H

#include "bench/timing.h"

/** Every measurement of a run; the ceiling is their median. */
typedef struct bench_ceilings {
    double gflops[64]; /**< OpenBLAS sgemm 1024 x 1024 x 1024 */
    double gbs[64];    /**< copying, bytes read and written */
    int count;         /**< how often measured */
} bench_ceilings;

/** Measure both once more: the median of five runs each.
 *  @param c        one more is added
 *  @param arena    copied from one half to the other
 *  @param threads  for both */
void ceilings_measure(bench_ceilings *c, const bench_arena *arena, int threads);

#endif
