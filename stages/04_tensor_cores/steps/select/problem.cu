/** @file
 *  @brief The chain `select`: makes its problem, with the statistics that attention leaves, runs
 * its steps, and computes sums in float64. */
#include "problem.cuh"

#include "harness/random.h"

static problem pb;

/* The inputs as the host keeps them. */
static float *q, *k; /* [T,G,D] [padded,D] */
static int period;   /* of the keys, which come again */

static const char *const what[] = {
    "stage 03's tile: heads are rows, float32",
    "the matrix unit: a sum over heads is 3 shuffles",
    "keys are rows, heads columns: 2 shuffles",
    "heads of 4 queries are columns: no shuffle",
};

static nsa_status (*const steps[])(const problem *) = {
    select_0_float32,
    select_1_heads,
    select_2_keys,
    select_3_queries,
};

/* What attention leaves. A thread a row. */
static __global__ void __launch_bounds__(64) forward_kernel(problem one, row_stats *g_stats) {
    const int64_t row = (int64_t)blockIdx.x * 64 + threadIdx.x;
    const int t = (int)(row / G);
    float row_max = -INFINITY, row_sum = 0;
    if (t >= one.T)
        return;
    for (int i = 0; i < cmp_visible(&one, t); i++) {
        const int64_t at = block_offset(i / BLOCK) + i % BLOCK;
        float s = 0;
        for (int c = 0; c < D; c++)
            s += one.q[row * D + c] * one.kt[at + c * BLOCK];
        const float new_max = fmaxf(row_max, one.scale2 * s);
        row_sum = row_sum * exp2f(row_max - new_max) + exp_score(one.scale2, s, new_max);
        row_max = new_max;
    }
    g_stats[row] = row_stats{row_max, 1 / row_sum};
}

/* The statistics for q and k as they are, or rounded to bfloat16. */
static const row_stats *make_stats(bool is_rounded) {
    const int64_t rows = (int64_t)pb.T * G, keys = pb.padded;
    row_stats *stats = (row_stats *)allocate(rows, sizeof *stats);
    problem one = pb;
    one.q = (float *)copy_to_device(floats(q, rows * D, is_rounded), rows * D, sizeof *q);
    one.kt = transposed_blocks(floats(k, keys * D, is_rounded), keys);
    stats = (row_stats *)copy_to_device(stats, rows, sizeof *stats);
    NSA_LAUNCH(forward_kernel, (unsigned)((rows + 63) / 64), 64, 0, 0, one, stats);
    return stats;
}

/* The paper's shape from T = 2048 on; a shorter problem has a compressed key for every token, so
 * that there are several blocks. Keys come again after a third of them, for equal sums. */
static void make(int T) {
    uint64_t random = random_seed(SEED);
    const int64_t rows = (int64_t)T * G;
    pb = {};
    pb.T = T;
    pb.stride = T < 2048 ? 1 : 16;
    pb.N = cmp_visible(&pb, T - 1);
    pb.padded = max((int)BLOCK, (pb.N + BLOCK - 1) / BLOCK * BLOCK);
    pb.scale2 = (float)(1.4426950408889634 / sqrt((double)D));
    period = pb.N / 3 + 1;
    q = draw(rows * D, &random);
    k = draw((int64_t)pb.padded * D, &random);
    for (int64_t i = (int64_t)period * D; i < (int64_t)pb.N * D; i++)
        k[i] = k[i - (int64_t)period * D];
    for (int64_t i = (int64_t)pb.N * D; i < (int64_t)pb.padded * D; i++)
        k[i] = NAN; /* nothing may come of keys that are not there */
    pb.q = (float *)copy_to_device(q, rows * D, sizeof *q);
    pb.kt = transposed_blocks(k, pb.padded);
    pb.q_mem = rounded(q, rows, MEM_TILES);
    pb.k_mem = rounded(k, pb.padded, MEM_TILES);
    pb.stats32 = make_stats(false);
    pb.stats = make_stats(true);
    pb.p_group = (float *)device_output((int64_t)T * pb.padded, sizeof(float));
}

static nsa_status run(int step) {
    return steps[step](&pb);
}

static void *result(int64_t *bytes) {
    *bytes = (int64_t)pb.T * pb.padded * (int64_t)sizeof(float);
    return pb.p_group;
}

/* ------------------------------------------------------------------- checks */

/* Sums of query t in float64, [N]; p [N] is scratch. */
static void sums_float64(int t, double *p, double *sums) {
    const int n_visible = cmp_visible(&pb, t);
    for (int i = 0; i < n_visible; i++)
        sums[i] = 0;
    for (int g = 0; g < G; g++) {
        double row_sum = 0;
        for (int i = 0; i < n_visible; i++) {
            const double s = dot_float64(q + ((int64_t)t * G + g) * D, k + (int64_t)i * D);
            row_sum += p[i] = exp(s / sqrt((double)D)); /* scores are small here */
        }
        for (int i = 0; i < n_visible; i++)
            sums[i] += p[i] / row_sum;
    }
}

static double error(const void *first) {
    double *p = (double *)allocate(pb.padded, sizeof *p), worst = 0;
    double *sums = (double *)allocate(pb.padded, sizeof *sums);
    for (int i = 0; i < 12; i++) {
        const int t = (int)((int64_t)(pb.T - 1) * i / 11), n_visible = cmp_visible(&pb, t);
        sums_float64(t, p, sums);
        if (n_visible > 0)
            worst = larger(worst, relative_rms((const float *)first + (int64_t)t * pb.padded, sums,
                                               n_visible));
    }
    return worst;
}

/* Of the keys that each query sees; and equal keys must have equal sums. */
static double difference(const void *out, const void *first) {
    const int64_t size = (int64_t)pb.T * pb.padded;
    float *a = (float *)allocate(size, sizeof *a), *b = (float *)allocate(size, sizeof *b);
    for (int t = 0; t < pb.T; t++) {
        const float *from = (const float *)out + (int64_t)t * pb.padded;
        for (int i = 0; i < cmp_visible(&pb, t); i++) {
            a[(int64_t)t * pb.padded + i] = from[i];
            b[(int64_t)t * pb.padded + i] = ((const float *)first)[(int64_t)t * pb.padded + i];
            if (i >= period && from[i] != from[i - period])
                return INFINITY;
        }
    }
    return pb.N > 0 ? rounding_error(a, b, pb.T, pb.padded) : 0;
}

extern const chain chain_select = {
    "select", what,       sizeof steps / sizeof *steps, 16384, {1e-5, ROUNDED}, make, run, result,
    error,    difference,
};
