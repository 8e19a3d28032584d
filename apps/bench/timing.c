/** @file timing.c
 *  @brief Clocks, flushing caches, threads and quartiles. */
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

/* The quantile p of sorted samples. */
static double quantile(const double *sorted, int count, double p) {
    double pos = p * (count - 1);
    int low = (int)pos, high = low + 1 < count ? low + 1 : low;
    return sorted[low] + (pos - low) * (sorted[high] - sorted[low]);
}

bench_stats bench_quartiles(double *samples, int count) {
    if (count < 1)
        return (bench_stats){0};
    qsort(samples, (size_t)count, sizeof *samples, ascending);
    return (bench_stats){quantile(samples, count, 0.25), quantile(samples, count, 0.5),
                         quantile(samples, count, 0.75)};
}

/* The rank of a round: all even rounds come before the odd ones, and recursively within each half.
 * A row with k runs takes the rounds of the lowest k ranks. */
static int round_rank(int round, int rounds) {
    const int even = (rounds + 1) / 2;
    if (rounds < 2)
        return 0;
    return round % 2 ? even + round_rank(round / 2, rounds / 2) : round_rank(round / 2, even);
}

int bench_takes_part(int round, int rounds, int wanted) {
    return round_rank(round, rounds) < wanted;
}

/* ------------------------------------------------------------------- arena */

int bench_arena_open(bench_arena *arena) {
    long level3 = sysconf(_SC_LEVEL3_CACHE_SIZE), page = sysconf(_SC_PAGESIZE);
    size_t cache = level3 > 0 ? (size_t)level3 : 0, min_bytes = (size_t)64 << 20;
    size_t memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)page, max_bytes = memory / 16;
    arena->half = cache > min_bytes ? cache : min_bytes;
    if (arena->half > max_bytes) /* a virtual machine may see its host's whole cache */
        arena->half = max_bytes;
    arena->data = malloc(2 * arena->half);
    if (!arena->data)
        return 0;
    memset(arena->data, 1, 2 * arena->half); /* touch all pages now */
    return 1;
}

void bench_flush(const bench_arena *arena) {
    static unsigned char value;
    /* a new value each time, so that the write is not optimised away */
    memset(arena->data, ++value, arena->half);
    __asm__ volatile("" ::"r"(arena->data) : "memory");
}

void bench_arena_close(bench_arena *arena) {
    free(arena->data);
    arena->data = NULL;
}

/* ----------------------------------------------------------------- threads */

typedef struct thread_task {
    void (*work)(void *arg, int thread);
    void *arg;
    int thread;
} thread_task;

static void *run_task(void *arg) {
    const thread_task *task = arg;
    task->work(task->arg, task->thread);
    return NULL;
}

void bench_parallel(int threads, void (*work)(void *arg, int thread), void *arg) {
    enum { MAX_THREADS = 256 };
    pthread_t id[MAX_THREADS];
    thread_task tasks[MAX_THREADS];
    int started = 1;
    for (; started < threads && started < MAX_THREADS; started++) {
        tasks[started] = (thread_task){work, arg, started};
        if (pthread_create(&id[started], NULL, run_task, &tasks[started]))
            break; /* fewer threads share the same work */
    }
    work(arg, 0);
    for (int i = 1; i < started; i++)
        pthread_join(id[i], NULL);
}
