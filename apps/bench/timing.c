/** @file timing.c
 *  @brief Clocks, cold caches, threads and quartiles. */
#include "bench/timing.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ------------------------------------------------------------------- clock */

static void cpu_start(void *state) {
    *(double *)state = bench_now();
}

static double cpu_stop(void *state) {
    return bench_now() - *(double *)state;
}

const bench_clock *bench_cpu_clock(void) {
    static double began;
    static const bench_clock clock = {"CLOCK_MONOTONIC", cpu_start, cpu_stop, &began};
    return &clock;
}

/* --------------------------------------------------------------- quartiles */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value a part `p` of the way through sorted samples. */
static double quantile(const double *sorted, int count, double p) {
    double at = p * (count - 1);
    int low = (int)at, high = low + 1 < count ? low + 1 : low;
    return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

bench_stats bench_quartiles(double *samples, int count) {
    if (count < 1)
        return (bench_stats){0};
    qsort(samples, (size_t)count, sizeof *samples, ascending);
    return (bench_stats){quantile(samples, count, 0.25), quantile(samples, count, 0.5),
                         quantile(samples, count, 0.75)};
}

/* The place of a round in the order in which rounds are given away: all even ones before the odd
 * ones; of the even ones every other first; and so on. */
static int place(int round, int most) {
    const int even = (most + 1) / 2;
    if (most < 2)
        return 0;
    return round % 2 ? even + place(round / 2, most / 2) : place(round / 2, even);
}

int bench_takes_part(int round, int most, int wanted) {
    return place(round, most) < wanted;
}

/* ------------------------------------------------------------------- arena */

int bench_arena_open(bench_arena *arena) {
    long level3 = sysconf(_SC_LEVEL3_CACHE_SIZE), page = sysconf(_SC_PAGESIZE);
    size_t cache = level3 > 0 ? (size_t)level3 : 0, least = (size_t)64 << 20;
    size_t memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)page, most = memory / 16;
    arena->half = cache > least ? cache : least;
    if (arena->half > most) /* a virtual machine may see its host's whole cache */
        arena->half = most;
    arena->data = malloc(2 * arena->half);
    if (!arena->data)
        return 0;
    memset(arena->data, 1, 2 * arena->half); /* pages exist from here on */
    return 1;
}

void bench_flush(const bench_arena *arena) {
    static unsigned char value;
    /* another value each time, so that the write cannot be left out */
    memset(arena->data, ++value, arena->half);
    __asm__ volatile("" ::"r"(arena->data) : "memory");
}

void bench_arena_close(bench_arena *arena) {
    free(arena->data);
    arena->data = NULL;
}

/* ----------------------------------------------------------------- threads */

typedef struct errand {
    void (*work)(void *arg, int thread);
    void *arg;
    int thread;
} errand;

static void *run_errand(void *arg) {
    const errand *e = arg;
    e->work(e->arg, e->thread);
    return NULL;
}

void bench_parallel(int threads, void (*work)(void *arg, int thread), void *arg) {
    enum { MOST = 256 };
    pthread_t id[MOST];
    errand errands[MOST];
    int started = 1;
    for (; started < threads && started < MOST; started++) {
        errands[started] = (errand){work, arg, started};
        if (pthread_create(&id[started], NULL, run_errand, &errands[started]))
            break; /* fewer threads do the same work: it is shared out as they come for it */
    }
    work(arg, 0);
    for (int i = 1; i < started; i++)
        pthread_join(id[i], NULL);
}
