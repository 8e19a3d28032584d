/** @file
 *  @brief The chain `attend`: makes its problem, runs its steps, and computes rows in float64. */
#include "problem.cuh"

#include "harness/random.h"

static problem pb;

/* The inputs as the host keeps them: keys and values natural, [T,D]. */
static float *q, *gate, *k[BRANCHES], *v[BRANCHES];
static int32_t *idx;

static const char *const what[] = {
    "stage 02's sums: a thread a row",
    "a CUDA block a row: a thread a key, a column",
    "blocks of keys and values in shared memory",
    "a block to all 16 heads of the group",
    "a warp's tile: 8 rows and 4 columns a lane",
    "4 warps a CUDA block, a query each",
    "a window's block to 4 neighbouring queries",
    "both branches and the gate in one launch",
};

static nsa_status (*const steps[])(const problem *) = {
    attend_0_thread_row, attend_1_block_row, attend_2_shared_block, attend_3_group,
    attend_4_tile,       attend_5_warps,     attend_6_neighbours,   attend_7_fused,
};

/* n and w are the paper's from T = 2048 on; a shorter problem has less of both, so that there are
 * always blocks that are not selected, and tokens before a window. */
static void make(int T) {
    uint64_t random = random_seed(SEED);
    const int64_t rows = (int64_t)T * G;
    pb = {};
    pb.T = T;
    pb.n = max(1, min(16, T / 100));
    pb.w = max(1, min(512, T / 3));
    pb.scale2 = (float)(1.4426950408889634 / sqrt((double)D));
    q = draw(rows * D, &random);
    gate = (float *)allocate(rows * BRANCHES, sizeof *gate);
    for (int64_t i = 0; i < rows * BRANCHES; i++) /* between 0 and 1, exclusive */
        gate[i] = i % BRANCHES == CMP ? NAN : (random_uniform(&random) + 1) / 3;
    idx = (int32_t *)allocate((int64_t)T * pb.n, sizeof *idx);
    for (int t = 0; t < T; t++)
        draw_blocks(idx + (int64_t)t * pb.n, pb.n, t, &random);
    pb.q = (float *)copy_to_device(q, rows * D, sizeof *q);
    pb.gate = (float *)copy_to_device(gate, rows * BRANCHES, sizeof *gate);
    pb.idx = (int32_t *)copy_to_device(idx, (int64_t)T * pb.n, sizeof *idx);
    for (int branch = SLC; branch <= WIN; branch++) {
        k[branch] = draw((int64_t)T * D, &random);
        v[branch] = draw((int64_t)T * D, &random);
        pb.kt[branch] = transposed_blocks(k[branch], T);
        pb.v[branch] = natural_blocks(v[branch], T);
        pb.o[branch] = (float *)device_output(rows * D, sizeof(float));
    }
    pb.out = (float *)device_output(rows * D, sizeof(float));
}

static nsa_status run(int step) {
    return steps[step](&pb);
}

static void *result(int64_t *bytes) {
    *bytes = (int64_t)pb.T * G * D * (int64_t)sizeof(float);
    return pb.out;
}

/* ------------------------------------------------------------------ float64 */

/* Does query t see token s? */
static bool sees(int branch, int t, int s) {
    bool found = branch == WIN && s > t - pb.w;
    for (int i = 0; branch == SLC && i < pb.n; i++)
        found |= idx[(int64_t)t * pb.n + i] == s / BLOCK;
    return found && s <= t;
}

/* out [D] += gate times one branch's attention of one row, in float64. p [t+1] is scratch. */
static void accumulate_gated(int branch, int t, int g, double *p, double *out) {
    const float *q_tg = q + row_of(t, g) * D;
    double row_max = -INFINITY, row_sum = 0;
    for (int64_t s = 0; s <= t; s++) {
        p[s] = sees(branch, t, (int)s) ? 0 : -INFINITY;
        for (int c = 0; c < D && p[s] != -INFINITY; c++)
            p[s] += (double)q_tg[c] * (double)k[branch][s * D + c] / sqrt((double)D);
        row_max = p[s] > row_max ? p[s] : row_max;
    }
    for (int64_t s = 0; s <= t; s++) {
        p[s] = exp(p[s] - row_max);
        row_sum += p[s];
    }
    for (int64_t s = 0; s <= t; s++) {
        const double weight = (double)gate[row_of(t, g) * BRANCHES + branch] * p[s] / row_sum;
        for (int c = 0; c < D && p[s] != 0; c++)
            out[c] += weight * (double)v[branch][s * D + c];
    }
}

/* Rows of queries at the edges of blocks and windows, all heads. */
static double error(const void *first) {
    const int T = pb.T, queries[] = {0,     1,     BLOCK - 1, BLOCK,         pb.w - 1, pb.w,
                                     T / 3, T / 2, T - BLOCK, T - BLOCK + 1, T - 2,    T - 1};
    const int n = sizeof queries / sizeof *queries;
    double *p = (double *)allocate(T, sizeof *p), *reference, worst = 0;
    reference = (double *)allocate(G * D, sizeof *reference);
    for (int i = 0; i < n; i++) {
        const int t = max(0, min(T - 1, queries[i]));
        for (int c = 0; c < G * D; c++)
            reference[c] = 0;
        for (int g = 0; g < G; g++) {
            accumulate_gated(SLC, t, g, p, reference + g * D);
            accumulate_gated(WIN, t, g, p, reference + g * D);
        }
        worst =
            larger(worst, relative_rms((const float *)first + row_of(t, 0) * D, reference, G * D));
    }
    return worst;
}

static double difference(const void *out, const void *first) {
    return relative_rms_float((const float *)out, (const float *)first, (int64_t)pb.T * G * D);
}

extern const chain chain_attend = {
    "attend", what,       sizeof steps / sizeof *steps, 16384, {1e-5, 1e-5}, make, run, result,
    error,    difference,
};
