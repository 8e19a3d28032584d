/** @file ceilings.c
 *  @brief Ceilings of this machine. */
#include "bench/ceilings.h"
#include "bench/blas.h"
#include "bench/gpu.h"

#include <stdlib.h>
#include <string.h>

enum { REPEATS = 5, SIDE = 1024 };

/* 2 SIDE^3 operations. The values vary: on zeros some processors run faster. */
static double measure_gflops(int threads, int runs) {
    const size_t count = (size_t)SIDE * SIDE;
    float *m = malloc(3 * count * sizeof *m);
    double seconds[REPEATS + 1];
    blas_threads(threads);
    if (!m || blas_missing()) {
        free(m);
        return 0;
    }
    for (size_t i = 0; i < 3 * count; i++)
        m[i] = (float)((i * 2654435761u) % 1021) / 510.0f - 1;
    for (int i = 0; i <= runs; i++) { /* the first warms up */
        double start = bench_now();
        blas_nn(SIDE, SIDE, SIDE, 1, m, SIDE, m + count, SIDE, 0, m + 2 * count, SIDE);
        seconds[i] = bench_now() - start;
    }
    blas_threads(1);
    free(m);
    return 2e-9 * SIDE * SIDE * SIDE / bench_quartiles(seconds + 1, runs).median;
}

typedef struct copying {
    const bench_arena *arena;
    int threads;
} copying;

/* Each thread copies its own part. */
static void copy_part(void *arg, int thread) {
    const copying *c = arg;
    size_t part = c->arena->half / (size_t)c->threads, first = part * (size_t)thread;
    memcpy(c->arena->data + c->arena->half + first, c->arena->data + first, part);
}

static double measure_gbs(const bench_arena *arena, int threads, int runs) {
    double seconds[REPEATS];
    copying c = {arena, threads};
    for (int i = 0; i < runs; i++) { /* no warm-up: rows run with cold caches too */
        double start = bench_now();
        bench_parallel(threads, copy_part, &c);
        seconds[i] = bench_now() - start;
    }
    return 2e-9 * (double)arena->half / bench_quartiles(seconds, runs).median;
}

void ceilings_measure(bench_ceilings *c, const bench_arena *arena, int threads) {
    if (c->count == (int)(sizeof c->gbs / sizeof c->gbs[0]))
        return;
    c->gflops[c->count] = measure_gflops(threads, REPEATS);
    c->gbs[c->count++] = measure_gbs(arena, threads, REPEATS);
}

void ceilings_sample(const bench_arena *arena, int threads, double *gflops, double *gbs) {
    *gflops = measure_gflops(threads, 1);
    *gbs = measure_gbs(arena, threads, 1);
}

void ceilings_measure_gpu(bench_ceilings *c) {
    double rate[BENCH_CEILINGS];
    if (gpu_missing() || c->gpu_count == (int)(sizeof c->gpu[0] / sizeof c->gpu[0][0]))
        return;
    gpu_warm(0.2);
    gpu_ceilings(rate);
    for (int i = 0; i < BENCH_CEILINGS; i++)
        c->gpu[i][c->gpu_count] = rate[i];
    c->gpu_count++;
}
