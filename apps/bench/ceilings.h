/**
 * @file ceilings.h
 * @brief Ceilings of this machine, measured in the same run as the rows.
 */
#ifndef BENCH_CEILINGS_H
#define BENCH_CEILINGS_H

#include "bench/bench.h"
#include "bench/timing.h"

/** Every measurement of a run; the ceiling is their median. */
typedef struct bench_ceilings {
    double gflops[64];              /**< OpenBLAS sgemm 1024 x 1024 x 1024 */
    double gbs[64];                 /**< copying, bytes read and written */
    int count;                      /**< how often measured */
    double gpu[BENCH_CEILINGS][64]; /**< of the GPU, as gpu_ceilings() gives them */
    int gpu_count;                  /**< how often measured */
} bench_ceilings;

/** Measure both ceilings once more: the median of five runs each.
 *  @param c        gets one more measurement
 *  @param arena    copied from one half to the other
 *  @param threads  for both */
void ceilings_measure(bench_ceilings *c, const bench_arena *arena, int threads);

/** Measure both with a single run each, between the runs that they are compared with.
 *  @param arena        as above
 *  @param threads      for both
 *  @param[out] gflops  of sgemm, 0 if there is none
 *  @param[out] gbs     of copying */
void ceilings_sample(const bench_arena *arena, int threads, double *gflops, double *gbs);

/** Measure the GPU's ceilings once more; without a GPU do nothing. */
void ceilings_measure_gpu(bench_ceilings *c);

#endif
