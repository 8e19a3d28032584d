/** @file
 *  @brief The chain `attend`: makes its problem, runs its steps, and computes rows in float64. */
#include "problem.cuh"

#include "harness/random.h"

static problem pb;

/* The inputs as the host keeps them: keys and values natural, [T,D]. */
static float *q, *k, *v;

static const char *const what[] = {
    "stage 03's tile: float32 multiply-adds",
    "operands in bfloat16: half the bytes",
    "Q K^T by the matrix unit",
    "P V too: P stays in registers",
    "mem tiles, copied while others are multiplied",
    "two row tiles a warp: each B used twice",
};

static nsa_status (*const steps[])(const problem *) = {
    attend_0_float32, attend_1_bf16,  attend_2_scores,
    attend_3_values,  attend_4_async, attend_5_two_tiles,
};

static void make(int T) {
    uint64_t random = random_seed(SEED);
    const int64_t rows = (int64_t)T * G;
    pb = {};
    pb.T = T;
    pb.scale2 = (float)(1.4426950408889634 / sqrt((double)D));
    q = draw(rows * D, &random);
    k = draw((int64_t)T * D, &random);
    v = draw((int64_t)T * D, &random);
    pb.q = (float *)copy_to_device(q, rows * D, sizeof *q);
    pb.kt = transposed_blocks(k, T);
    pb.v = natural_blocks(v, T);
    pb.q16 = rounded(q, rows, ROWS);
    pb.kt16 = rounded(k, T, COLUMNS);
    pb.k16 = rounded(k, T, ROWS);
    pb.v16 = rounded(v, T, ROWS);
    pb.q_mem = rounded(q, rows, MEM_TILES);
    pb.k_mem = rounded(k, T, MEM_TILES);
    pb.v_mem = rounded(v, T, MEM_TILES);
    pb.out = (float *)device_output(rows * D, sizeof(float));
}

static nsa_status run(int step) {
    return steps[step](&pb);
}

static void *result(int64_t *bytes) {
    *bytes = (int64_t)pb.T * G * D * (int64_t)sizeof(float);
    return pb.out;
}

/* out [D] of one row in float64. p [t+1] is scratch. */
static void attend_float64(int t, int g, double *p, double *out) {
    const float *q_tg = q + ((int64_t)t * G + g) * D;
    double row_max = -INFINITY, row_sum = 0;
    for (int64_t s = 0; s <= t; s++) {
        p[s] = dot_float64(q_tg, k + s * D) / sqrt((double)D);
        row_max = p[s] > row_max ? p[s] : row_max;
    }
    for (int64_t s = 0; s <= t; s++) {
        p[s] = exp(p[s] - row_max);
        row_sum += p[s];
    }
    for (int c = 0; c < D; c++) {
        out[c] = 0;
        for (int64_t s = 0; s <= t; s++)
            out[c] += p[s] / row_sum * (double)v[s * D + c];
    }
}

/* Rows of queries at the edges of blocks, all heads. */
static double error(const void *first) {
    const int T = pb.T, queries[] = {0,     1,     BLOCK - 1, BLOCK,         2 * BLOCK, T / 3,
                                     T / 2, T - 9, T - BLOCK, T - BLOCK + 1, T - 2,     T - 1};
    double *p = (double *)allocate(T, sizeof *p), reference[D], worst = 0;
    for (int i = 0; i < (int)(sizeof queries / sizeof *queries) * G; i++) {
        const int t = max(0, min(T - 1, queries[i / G])), g = i % G;
        attend_float64(t, g, p, reference);
        worst = larger(worst,
                       relative_rms((const float *)first + ((int64_t)t * G + g) * D, reference, D));
    }
    return worst;
}

static double difference(const void *out, const void *first) {
    return rounding_error((const float *)out, (const float *)first, (int64_t)pb.T * G, D);
}

extern const chain chain_attend = {
    "attend", what,       sizeof steps / sizeof *steps, 16384, {1e-5, ROUNDED}, make, run, result,
    error,    difference,
};
