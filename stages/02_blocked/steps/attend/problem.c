/** @file
 *  @brief The chain `attend`: makes its problem, runs its steps, and computes rows in float64.
 */
#include "problem.h"

#include "harness/random.h"

enum { SAMPLED = 16 }; /* queries that are computed in float64 */

static problem pb;

static const char *const what[] = {
    "stage 01: a list of keys a head",       "blocks of 64, keys transposed; spans",
    "a block to all G heads, then the next", "one pass: running maximum and sum",
    "products as sums of contiguous rows",   "softmax: whole vectors of 16 keys, masked",
    "a polynomial in place of expf()",       "a tile of the product in registers",
    "64 queries visit the blocks together",  "tiles of queries over threads",
};

static void (*const steps[])(const problem *) = {
    attend_0_gathered, attend_1_relaid,      attend_2_group, attend_3_online,  attend_4_rows,
    attend_5_lanes,    attend_6_exponential, attend_7_tiles, attend_8_queries, attend_9_threads,
};
_Static_assert(sizeof what / sizeof *what == sizeof steps / sizeof *steps, "a line for each step");

static void make(int64_t T) {
    uint64_t random = random_seed(SEED);
    int32_t *idx = allocate(T * SLC_COUNT, sizeof *idx);
    pb = (problem){.T = T, .scale = 1 / sqrtf(D), .block_idx = idx};
    pb.q = draw(T * G * D, &random);
    pb.k = draw(T * D, &random);
    pb.v = draw(T * D, &random);
    pb.transposed = transposed_blocks(pb.k, T, D);
    pb.natural = natural_blocks(pb.v, T, D);
    for (int64_t t = 0; t < T; t++)
        draw_blocks(idx + t * SLC_COUNT, SLC_COUNT, t, &random);
    pb.out = allocate(T * G * D, sizeof *pb.out);
}

static void run(int step) {
    steps[step](&pb);
}

static real *result(int64_t *count) {
    *count = pb.T * G * D;
    return pb.out;
}

/* Head g of the query at t, o [D]: Eq. 12 as it stands, every token asked whether it is seen. */
static void attend_float64(int64_t t, int64_t g, double *o) {
    const real *q = pb.q + (t * G + g) * D;
    const int32_t *idx = pb.block_idx + t * SLC_COUNT;
    double sum = 0;
    memset(o, 0, D * sizeof *o);
    for (int64_t s = 0; s <= t; s++) {
        int seen = 0;
        double score = 0;
        for (int i = 0; i < SLC_COUNT; i++)
            seen |= idx[i] == s / BLOCK;
        for (int c = 0; c < D && seen; c++)
            score += (double)q[c] * (double)pb.k[s * D + c];
        const double e = seen ? exp((double)pb.scale * score) : 0; /* scores are small here */
        sum += e;
        for (int c = 0; c < D; c++)
            o[c] += e * (double)pb.v[s * D + c];
    }
    for (int c = 0; c < D; c++)
        o[c] /= sum;
}

/* The first query, the last, and some between them: the worst. */
static double error(void) {
    double worst = 0;
    for (int64_t i = 0; i < SAMPLED; i++) {
        const int64_t t = (pb.T - 1) * i / (SAMPLED - 1);
        double rows[G * D];
        for (int64_t g = 0; g < G; g++)
            attend_float64(t, g, rows + g * D);
        const double e = relative_rms(pb.out + t * G * D, rows, G * D);
        worst = worst != worst || e <= worst ? worst : e; /* a NaN of either, and it stays */
    }
    return worst;
}

const chain chain_attend = {
    .name = "attend",
    .what = what,
    .n_steps = sizeof steps / sizeof *steps,
    .default_T = 2048,
    .make = make,
    .run = run,
    .result = result,
    .error = error,
    .free = release,
};
