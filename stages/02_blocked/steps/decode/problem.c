/** @file
 *  @brief The chain `decode`: makes its problem, runs its steps, and computes rows in float64.
 */
#include "problem.h"

#include "harness/random.h"

/* Decode steps of one run: at the default T they read 64 MiB of the caches' 128, so that a block is
 * long out of the processor's caches when it is read again. */
enum { TOKENS = 16 };

enum { SAMPLE_EVERY = 7 }; /* one in so many rows is computed in float64 */

static problem pb; /* of all TOKENS decode steps: q and so on have TOKENS for a first dimension */

static const char *const what[] = {
    "stage 01: each head fetches its tokens",
    "a block to all heads, in one pass",
    "blocks, K transposed: two products",
    "the next block prefetched meanwhile",
    "slots over threads",
};

static void (*const steps[])(const problem *) = {
    decode_0_rows, decode_1_group, decode_2_products, decode_3_prefetch, decode_4_threads,
};

/* Step i of the run. */
static problem decode_step(int64_t i) {
    problem step = pb;
    step.t += i;
    step.q += i * SLOTS * G * D;
    step.block_idx += i * SLOTS * SLC_COUNT;
    step.out += i * SLOTS * G * D;
    return step;
}

/* n random rows a slot; the others are NaN: nothing may come of them. */
static real *draw_cache(int64_t n, uint64_t *random) {
    real *x = draw(SLOTS * pb.max_seq_len * D, random);
    for (int64_t row = 0; row < SLOTS * pb.max_seq_len; row++) {
        for (int64_t c = 0; c < D && row % pb.max_seq_len >= n; c++)
            x[row * D + c] = NAN;
    }
    return x;
}

/* T tokens a slot once the last step's are in, which is not before step TOKENS - 1. */
static void make(int64_t T) {
    uint64_t random = random_seed(SEED);
    int32_t *idx = allocate(TOKENS * SLOTS * SLC_COUNT, sizeof *idx);
    const int64_t t = T > TOKENS ? T - TOKENS : 0, n = t + TOKENS;
    pb = (problem){.t = t, .scale = 1 / sqrtf(D), .block_idx = idx};
    pb.max_seq_len = (n + BLOCK - 1) / BLOCK * BLOCK;
    pb.q = draw(TOKENS * SLOTS * G * D, &random);
    pb.cache_k = draw_cache(n, &random);
    pb.cache_v = draw_cache(n, &random);
    pb.transposed = transposed_blocks(pb.cache_k, SLOTS * pb.max_seq_len, D);
    pb.natural = natural_blocks(pb.cache_v, SLOTS * pb.max_seq_len, D);
    for (int64_t a = 0; a < TOKENS * SLOTS; a++)
        draw_blocks(idx + a * SLC_COUNT, SLC_COUNT, t + a / SLOTS, &random);
    pb.out = allocate(TOKENS * SLOTS * G * D, sizeof *pb.out);
}

static void run(int step) {
    for (int64_t i = 0; i < TOKENS; i++) {
        const problem one = decode_step(i);
        steps[step](&one);
    }
}

static real *result(int64_t *count) {
    *count = TOKENS * SLOTS * G * D;
    return pb.out;
}

/* Head g of slot a, o [D]. */
static void attend_float64(const problem *one, int64_t a, int64_t g, double *o) {
    const real *q = one->q + (a * G + g) * D;
    const int32_t *idx = one->block_idx + a * SLC_COUNT;
    double sum = 0;
    memset(o, 0, D * sizeof *o);
    for (int64_t i = 0; i < SLC_COUNT * BLOCK && idx[i / BLOCK] >= 0; i++) {
        const int64_t s = (int64_t)idx[i / BLOCK] * BLOCK + i % BLOCK;
        const int64_t row = (a * one->max_seq_len + s) * D;
        double score = 0;
        if (s > one->t)
            break;
        for (int c = 0; c < D; c++)
            score += (double)q[c] * (double)one->cache_k[row + c];
        const double e = exp((double)one->scale * score); /* scores are small here */
        sum += e;
        for (int c = 0; c < D; c++)
            o[c] += e * (double)one->cache_v[row + c];
    }
    for (int c = 0; c < D; c++)
        o[c] /= sum;
}

/* Rows of all decode steps, slots and heads: the worst. */
static double error(void) {
    double worst = 0;
    for (int64_t row = 0; row < TOKENS * SLOTS * G; row += SAMPLE_EVERY) {
        const problem one = decode_step(row / (SLOTS * G));
        double o[D];
        attend_float64(&one, row / G % SLOTS, row % G, o);
        const double e = relative_rms(pb.out + row * D, o, D);
        worst = worst != worst || e <= worst ? worst : e; /* a NaN of either, and it stays */
    }
    return worst;
}

const chain chain_decode = {
    .name = "decode",
    .what = what,
    .n_steps = sizeof steps / sizeof *steps,
    .default_T = 32768,
    .make = make,
    .run = run,
    .result = result,
    .error = error,
    .free = release,
};
