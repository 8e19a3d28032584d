/** @file
 *  @brief Checks each step against step 0, times those that agree, and prints one table.
 */
#include "steps.h"

#include "harness/random.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { RUNS = 5, STEPS = 6, COLUMNS = 80 };

static const double TOLERANCE = 1e-5; /* float32 sums of 1024 terms in another order: ~1e-6 */

/* Compiler and flags: steps.mk passes what it compiled every step with. */
#ifndef STEPS_FLAGS
#define STEPS_FLAGS "(flags unknown)"
#endif
#ifdef __clang__
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

static const struct {
    const char *name, *change;
    void (*run)(const problem *pb);
} steps[STEPS] = {
    {"0_gathered", "stage 01: a list of tokens a head", step_0_gathered},
    {"1_relaid", "blocks of 64, K transposed; spans", step_1_relaid},
    {"2_group", "a block to all heads, then the next", step_2_group},
    {"3_online", "one pass: running maximum and sum", step_3_online},
    {"4_lanes", "16 keys to a vector, register tiles", step_4_lanes},
    {"5_threads", "tiles of 32 queries, over threads", step_5_threads},
};

/* Zeroed, on a cache line; the program ends with the memory, so nothing is freed. */
static void *allocate(int64_t count, size_t size) {
    const size_t bytes = ((size_t)count * size + 63) / 64 * 64;
    void *at = aligned_alloc(64, bytes);
    if (!at) {
        fprintf(stderr, "steps: no memory for %zu bytes\n", bytes);
        exit(2);
    }
    return memset(at, 0, bytes);
}

/* n normal numbers, none of them 0: a product with 0 would hide a wrong factor. */
static real *draw(int64_t n, uint64_t *random) {
    real *x = allocate(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        while (x[i] == 0)
            x[i] = random_normal(random);
    }
    return x;
}

/* For each query its own block and n-1 earlier ones, each set as likely as any other, ascending
 * (Knuth's algorithm S): block j is taken with chance (still wanted)/(still to come). */
static int32_t *pick(int64_t T, int64_t n, uint64_t *random) {
    int32_t *idx = allocate(T * n, sizeof *idx);
    for (int64_t t = 0; t < T; t++) {
        const int64_t own = t / BLOCK;
        int64_t wanted = own < n - 1 ? own : n - 1;
        int32_t *next = idx + t * n, *end = next + n;
        for (int64_t j = 0; j < own; j++) {
            if (random_uniform(random) * (real)(own - j) < (real)wanted && wanted > 0) {
                *next++ = (int32_t)j;
                wanted--;
            }
        }
        *next++ = (int32_t)own;
        while (next < end)
            *next++ = -1;
    }
    return idx;
}

/* The same keys and values in blocks. The last block's tail is NaN: nothing may come of it. */
static void lay_out(problem *pb) {
    const int64_t T = pb->T, D = pb->D, padded = (T + BLOCK - 1) / BLOCK * BLOCK;
    real *kt = allocate(padded * D, sizeof *kt), *vb = allocate(padded * D, sizeof *vb);
    for (int64_t t = 0; t < padded; t++) {
        for (int64_t c = 0; c < D; c++) {
            kt[t / BLOCK * BLOCK * D + c * BLOCK + t % BLOCK] = t < T ? pb->k[t * D + c] : NAN;
            vb[t * D + c] = t < T ? pb->v[t * D + c] : NAN;
        }
    }
    pb->kt = kt;
    pb->vb = vb;
}

static problem make(int64_t T, int threads) {
    problem pb = {.T = T, .G = 16, .D = 64, .n = 16, .scale = 0.125f};
    uint64_t random = random_seed("steps of 02_blocked");
    pb.q = draw(T * pb.G * pb.D, &random);
    pb.k = draw(T * pb.D, &random);
    pb.v = draw(T * pb.D, &random);
    pb.idx = pick(T, pb.n, &random);
    pb.out = allocate(T * pb.G * pb.D, sizeof *pb.out);
    pb.work = allocate(threads, sizeof *pb.work);
    lay_out(&pb);
    for (int i = 0; i < threads; i++) {
        work *w = pb.work + i;
        w->list = allocate(pb.n * BLOCK, sizeof *w->list);
        w->spans = allocate(QUERIES * pb.n, sizeof *w->spans);
        w->next_span = allocate(QUERIES, sizeof *w->next_span);
        w->end = allocate(QUERIES, sizeof *w->end);
        w->p = allocate(pb.G * pb.n * BLOCK, sizeof *w->p);
        w->s = allocate(pb.G * BLOCK, sizeof *w->s);
        w->most = allocate(QUERIES * pb.G, sizeof *w->most);
        w->row_sum = allocate(QUERIES * pb.G * LANES, sizeof *w->row_sum);
    }
    return pb;
}

/* Useful work: 4 D flops (a multiply and an add each for q.k and p v) a head and visible key. */
static double useful_flops(const problem *pb) {
    double pairs = 0;
    for (int64_t t = 0; t < pb->T; t++) {
        for (int64_t i = 0; i < pb->n && pb->idx[t * pb->n + i] >= 0; i++) {
            const int64_t left = t + 1 - (int64_t)pb->idx[t * pb->n + i] * BLOCK;
            pairs += (double)(left < BLOCK ? left : BLOCK);
        }
    }
    return 4 * (double)(pb->D * pb->G) * pairs;
}

/* rms(x - reference) / rms(reference), in float64. NaN where either holds one. */
static double difference(const real *x, const real *reference, int64_t n) {
    double apart = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)x[i] - (double)reference[i];
        apart += d * d;
        all += (double)reference[i] * (double)reference[i];
    }
    return sqrt(apart / all);
}

static double clock_ms(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static double run_ms(int step, const problem *pb) {
    const double from = clock_ms(CLOCK_MONOTONIC);
    steps[step].run(pb);
    return clock_ms(CLOCK_MONOTONIC) - from;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Each step once, into NaN: this is the check, and the warm-up. How far each is from step 0. */
static void check(const problem *pb, double *apart) {
    const int64_t n = pb->T * pb->G * pb->D;
    real *reference = allocate(n, sizeof *reference);
    for (int step = 0; step < STEPS; step++) {
        for (int64_t i = 0; i < n; i++)
            pb->out[i] = NAN;
        steps[step].run(pb);
        if (step == 0)
            memcpy(reference, pb->out, (size_t)n * sizeof *reference);
        apart[step] = difference(pb->out, reference, n);
    }
    free(reference);
}

/* Medians of the steps that passed, and what share of the time since the first round a core worked
 * for us: well below 1 means that others did too, and that the times are too long. Round after
 * round, each step once a round: what else the machine does then slows all of them alike. */
static double measure(const problem *pb, const double *apart, double *ms) {
    double runs[STEPS][RUNS];
    const double from = clock_ms(CLOCK_MONOTONIC), cpu = clock_ms(CLOCK_PROCESS_CPUTIME_ID);
    for (int round = 0; round < RUNS; round++) {
        for (int step = 0; step < STEPS; step++)
            runs[step][round] = apart[step] <= TOLERANCE ? run_ms(step, pb) : 0;
    }
    const double share =
        (clock_ms(CLOCK_PROCESS_CPUTIME_ID) - cpu) / (clock_ms(CLOCK_MONOTONIC) - from);
    for (int step = 0; step < STEPS; step++) {
        qsort(runs[step], RUNS, sizeof runs[step][0], by_size);
        ms[step] = runs[step][RUNS / 2];
    }
    return share;
}

/* Words, as many to a line as fit. */
static void print_wrapped(const char *text) {
    for (size_t column = 0; *text;) {
        const size_t word = strcspn(text, " ");
        const char *gap = !column ? "" : column + 1 + word > COLUMNS ? "\n  " : " ";
        column = *gap == '\n' ? 2 + word : column + strlen(gap) + word;
        printf("%s%.*s", gap, (int)word, text);
        text += word + strspn(text + word, " ");
    }
    printf("\n");
}

/* A row; `before` and `first` are the times of other steps, 0 if they were refused. */
static void print_row(int step, double ms, double flops, double before, double first) {
    char faster[2][16] = {"-", "-"};
    if (before > 0)
        snprintf(faster[0], sizeof faster[0], "%.2f", before / ms);
    if (first > 0)
        snprintf(faster[1], sizeof faster[1], "%.2f", first / ms);
    printf("%-10s  %-35s %9.1f %7.1f %6s %6s\n", steps[step].name, steps[step].change, ms,
           1e-6 * flops / ms, faster[0], faster[1]);
}

/* The table; returns how many steps were refused. */
static int print_table(const double *ms, const double *apart, double flops) {
    int refused = 0;
    printf("%-10s  %-35s %9s %7s %6s %6s\n", "step", "what changed", "ms", "GFLOP/s", "before",
           "step 0");
    for (int step = 0; step < STEPS; step++) {
        if (apart[step] <= TOLERANCE) { /* false for NaN */
            print_row(step, ms[step], flops, step ? ms[step - 1] : 0, step ? ms[0] : 0);
            continue;
        }
        printf("%-10s  REFUSED: %.1e of the rms away from step 0, %.0e at most\n", steps[step].name,
               apart[step], TOLERANCE);
        refused++;
    }
    printf("before, step 0: times faster than that step. GFLOP/s: 4 D a head and visible key.\n");
    return refused;
}

int main(int argc, char **argv) {
    char *end = NULL;
    const long T = argc > 1 ? strtol(argv[1], &end, 10) : 2048;
    if (argc > 2 || (end && *end) || T < 1 || T > 1 << 20) {
        fprintf(stderr, "usage: %s [T]   tokens, 1 to %d; 2048 if not given\n", argv[0], 1 << 20);
        return 2;
    }
    const int threads = omp_get_max_threads();
    const problem pb = make(T, threads);
    double ms[STEPS], apart[STEPS];
    print_wrapped(COMPILER ": " STEPS_FLAGS);
    printf("T=%ld G=%d D=%d n=%d, %d thread%s in step 5, median of %d runs\n\n", T, (int)pb.G,
           (int)pb.D, (int)pb.n, threads, threads == 1 ? "" : "s", RUNS);
    check(&pb, apart);
    const double share = measure(&pb, apart, ms);
    const int refused = print_table(ms, apart, useful_flops(&pb));
    if (share < 0.9)
        printf("Busy machine: %.2f of a core was ours: ms are too long, step 5 lacks cores.\n",
               share);
    return refused ? 1 : 0;
}
