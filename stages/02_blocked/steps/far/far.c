/** @file
 *  @brief What a decode step can reach: the stage's own product on blocks that come from memory.
 *
 *  One query reads every block once, so nothing is near. A block of 64 keys or values and D = 64 is
 *  16 KiB and 2 * 64 * 64 * G FLOPs: this times its bytes alone, its arithmetic alone, and both
 *  together, in turn in one process, and so says how much of a copy's bandwidth the two leave.
 *
 *      copied    memcpy() of far bytes, counted as in `nsa bench`: read and written
 *      read      far blocks, only added up
 *      asked     far blocks, prefetched and not waited for
 *      near      products on blocks that have just been read: 1 MiB, for the second-level cache
 *      softmax   the same with the exponentials between keys and values: all of a step's arithmetic
 *                but the choice
 *      far       the same on far blocks
 *      ahead     the same, each asking for the block after its own: matmul_ahead(), as decode does
 */
#include "tile.h"

#include "harness/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { BLOCK = 64, D = 64, BLOCKS = 64, FLOATS = BLOCK * D, MOST_HEADS = 256, RUNS = 21 };
enum { COPIED, READ, ASKED, NEAR, SOFTMAX, FAR, AHEAD, WAYS };

static const char *const names[WAYS] = {"copied",  "read", "asked", "near",
                                        "softmax", "far",  "ahead"};
static const float SCALE = 0.125f * 1.4426950f; /* log2(e)/sqrt(D) */
static const size_t HUGE_PAGE = (size_t)2 << 20, FLUSH = (size_t)768 << 20;

typedef struct bench {
    float *q, *blocks; /* [G,D]; [BLOCKS]: keys [D,BLOCK] and values [BLOCK,D] in turn */
    float *s, *o;      /* [G,BLOCK], [G,D] */
    char *flush;       /* more than the caches hold */
    int64_t heads;
} bench;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* In huge pages, as the stages' pool takes memory, and not zero. */
static float *draw(int64_t count, uint64_t *random) {
    const size_t bytes = ((size_t)count * sizeof(float) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    float *x = aligned_alloc(HUGE_PAGE, bytes);
    if (!x) {
        fprintf(stderr, "far: no memory for %zu bytes\n", bytes);
        exit(2);
    }
    madvise(x, bytes, MADV_HUGEPAGE); /* a wish: nothing depends on it but time */
    for (int64_t i = 0; i < count; i++)
        x[i] = random_normal(random);
    return x;
}

static void add_up(const float *block, float *sum) {
    vec a = {0}, b = {0};
    for (int i = 0; i < FLOATS; i += 2 * LANES) {
        a += *(const vec *)(block + i);
        b += *(const vec *)(block + i + LANES);
    }
    *(vec *)sum = a + b;
}

/* One block of keys to probabilities up to a factor, or one of values to outputs. */
static void attend(const bench *x, int exponentials, int64_t at, const float *next) {
    const float *block = x->blocks + at * FLOATS;
    if (at % 2) {
        matmul_ahead(x->heads, D, BLOCK, (operand){x->s, BLOCK, 1}, block, D, x->o, D, 1, next);
        return;
    }
    matmul_ahead(x->heads, BLOCK, D, (operand){x->q, D, 1}, block, BLOCK, x->s, BLOCK, 0, next);
#pragma omp simd
    for (int64_t i = 0; i < x->heads * BLOCK * exponentials; i++)
        x->s[i] = exp2_bounded(SCALE * x->s[i] - 8);
}

static void visit(const bench *x, int way, int64_t at) {
    const float *block = x->blocks + at * FLOATS;
    if (way == READ)
        add_up(block, x->s);
    else if (way >= NEAR)
        attend(x, way != NEAR, at, way == AHEAD && at + 2 < BLOCKS ? block + 2 * FLOATS : NULL);
    for (int i = 0; i < FLOATS && way == ASKED; i += LANES)
        __builtin_prefetch(block + i, 0, 2);
}

static double run(const bench *x, int way, int round) {
    if (way != COPIED) /* a copy is so long that it goes past the caches by itself */
        memset(x->flush, way + WAYS * round, FLUSH / 2);
    __asm__ volatile("" ::"r"(x->flush) : "memory"); /* or it could be left out */
    for (int64_t at = 0; at < BLOCKS && (way == NEAR || way == SOFTMAX); at++)
        visit(x, READ, at);
    const double from = now();
    for (int64_t at = 0; at < BLOCKS && way != COPIED; at++)
        visit(x, way, at);
    if (way != COPIED)
        return now() - from;
    memcpy(x->flush, x->flush + FLUSH / 2, FLUSH / 2);
    __asm__ volatile("" ::"r"(x->flush) : "memory");
    return (now() - from) * BLOCKS * FLOATS * sizeof(float) / (double)(FLUSH / 2);
}

/* One block's scores, with and without asking, against sums in float64. */
static int wrong(const bench *x) {
    int bad = 0;
    for (int ask = 0; ask < 2; ask++) {
        attend(x, 0, 0, ask ? x->blocks + FLOATS : NULL);
        for (int64_t i = 0; i < x->heads * BLOCK; i++) {
            double sum = 0;
            for (int64_t c = 0; c < D; c++)
                sum += (double)x->q[i / BLOCK * D + c] * (double)x->blocks[c * BLOCK + i % BLOCK];
            bad += !(fabs((double)x->s[i] - sum) <= 1e-4);
        }
    }
    return bad;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_row(const bench *x, int way, double *seconds, double copied) {
    const double mib = (double)BLOCKS * FLOATS * sizeof(float) / (1 << 20), us = 1e6 / mib;
    const double bytes = (way == COPIED ? 2 : 1) * mib * (1 << 20);
    const double median = seconds[RUNS / 2], flops = 2.0 * BLOCKS * FLOATS * (double)x->heads;
    printf("%-7s %8.1f  %5.1f..%-5.1f %7.1f %10.2f", names[way], us * median,
           us * seconds[RUNS / 4], us * seconds[3 * RUNS / 4], 1e-9 * bytes / median,
           bytes / median / copied);
    if (way >= NEAR)
        printf(" %9.0f", 1e-9 * flops / median);
    printf("\n");
}

int main(int argc, char **argv) {
    char *end = NULL;
    const long heads = argc > 1 ? strtol(argv[1], &end, 10) : 16;
    if (argc > 2 || (end && *end) || heads < 1 || heads > MOST_HEADS) {
        fprintf(stderr, "usage: %s [G]   query heads, 1 to %d; 16 if not given\n", argv[0],
                MOST_HEADS);
        return 2;
    }
    uint64_t random = random_seed("far of 02_blocked");
    bench x = {.heads = heads, .flush = malloc(FLUSH)};
    double seconds[WAYS][RUNS];
    x.q = draw(heads * D, &random);
    x.blocks = draw(BLOCKS * FLOATS, &random);
    x.s = draw(heads * BLOCK, &random);
    x.o = draw(heads * D, &random);
    if (!x.flush || wrong(&x)) {
        fprintf(stderr, "far: %s\n", x.flush ? "a product is wrong" : "no memory to flush with");
        return 1;
    }
    memset(x.flush, 1, FLUSH); /* pages exist from here on */
    for (int round = 0; round < RUNS; round++) {
        for (int way = 0; way < WAYS; way++)
            seconds[way][round] = run(&x, way, round);
    }
    printf("G=%ld D=%d, %d blocks of %d keys, one thread, median and quartiles of %d runs\n\n",
           heads, D, BLOCKS, BLOCK, RUNS);
    printf("%-7s %8s  %-12s %7s %10s %9s\n", "blocks", "us a MiB", "quartiles", "GB/s",
           "of copying", "GFLOP/s");
    for (int way = 0; way < WAYS; way++)
        qsort(seconds[way], RUNS, sizeof seconds[way][0], by_size);
    const double copied = 2.0 * BLOCKS * FLOATS * sizeof(float) / seconds[COPIED][RUNS / 2];
    for (int way = 0; way < WAYS; way++)
        print_row(&x, way, seconds[way], copied);
    return 0;
}
