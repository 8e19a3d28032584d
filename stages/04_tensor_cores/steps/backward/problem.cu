/** @file
 *  @brief The chain `backward`: makes its problem, with what forward saves, runs its steps, and
 *  computes gradients in float64. */
#include "problem.cuh"

#include "harness/random.h"

#include <string.h>

enum { SAMPLED = 8 }; /* queries whose dq is compared with float64 */

static problem pb;

/* The inputs as the host keeps them. */
static float *q, *dout, *k, *v, *gate; /* [T,G,D] [T,D] [T,G] */

static const char *const what[] = {
    "stage 03's products: P and dS by queries",
    "keys as rows: P^T and dS^T are A at once",
    "half of the warps for dv, half for dk",
    "dS kept in memory: dq is one product for three",
    "the next row tiles come while these are used",
};

static nsa_status (*const steps[])(const problem *) = {
    backward_0_float32, backward_1_keys, backward_2_halves, backward_3_ds, backward_4_async,
};

/* What forward saves: row_max, 1 / sum and dgate = sum_s p_s (dout.v_s). A thread a row; `weight`
 * has the gates. */
static __global__ void __launch_bounds__(64) forward_kernel(problem one, row_terms *g_terms) {
    const int64_t row = (int64_t)blockIdx.x * 64 + threadIdx.x;
    const int t = (int)(row / G);
    float row_max = -INFINITY, row_sum = 0, dgate = 0;
    if (t >= one.T)
        return;
    for (int key = max(t - one.w + 1, 0); key <= t; key++) {
        const int64_t at = block_offset(key / BLOCK) + key % BLOCK;
        float s = 0, dp = 0;
        for (int c = 0; c < D; c++) {
            s += one.q[row * D + c] * one.kt[at + c * BLOCK];
            dp += one.dout[row * D + c] * one.vt[at + c * BLOCK];
        }
        const float new_max = fmaxf(row_max, one.scale2 * s);
        const float rescale = exp2f(row_max - new_max), p = exp_score(one.scale2, s, new_max);
        row_max = new_max;
        row_sum = row_sum * rescale + p;
        dgate = dgate * rescale + p * dp;
    }
    g_terms[row] = row_terms{row_max, g_terms[row].weight / row_sum, dgate / row_sum, t};
}

/* x, as it is or rounded to bfloat16. */
static const float *maybe_rounded(const float *x, int64_t n, bool is_rounded) {
    float *y = (float *)allocate(n, sizeof *y);
    for (int64_t i = 0; i < n; i++)
        y[i] = is_rounded ? __bfloat162float(__float2bfloat16_rn(x[i])) : x[i];
    return y;
}

/* The terms of all rows. Forward multiplies what backward does: as it is or rounded. */
static const row_terms *make_terms(bool is_rounded) {
    const int64_t rows = (int64_t)pb.T * G, n = (int64_t)pb.T * D;
    row_terms *terms = (row_terms *)allocate(rows, sizeof *terms);
    problem one = pb;
    one.q = (float *)copy_to_device(maybe_rounded(q, rows * D, is_rounded), rows * D, sizeof *q);
    one.dout =
        (float *)copy_to_device(maybe_rounded(dout, rows * D, is_rounded), rows * D, sizeof *q);
    one.kt = transposed_blocks(maybe_rounded(k, n, is_rounded), pb.T);
    one.vt = transposed_blocks(maybe_rounded(v, n, is_rounded), pb.T);
    for (int64_t i = 0; i < rows; i++)
        terms[i].weight = gate[i];
    terms = (row_terms *)copy_to_device(terms, rows, sizeof *terms);
    NSA_LAUNCH(forward_kernel, (unsigned)((rows + 63) / 64), 64, 0, 0, one, terms);
    return terms;
}

static void make_inputs(int T) {
    uint64_t random = random_seed(SEED);
    const int64_t rows = (int64_t)T * G;
    gate = (float *)allocate(rows, sizeof *gate);
    q = draw(rows * D, &random);
    dout = draw(rows * D, &random);
    k = draw((int64_t)T * D, &random);
    v = draw((int64_t)T * D, &random);
    for (int64_t i = 0; i < rows; i++) /* between 0 and 1, exclusive */
        gate[i] = (random_uniform(&random) + 1) / 3;
    pb.q = (float *)copy_to_device(q, rows * D, sizeof *q);
    pb.dout = (float *)copy_to_device(dout, rows * D, sizeof *dout);
    pb.kt = transposed_blocks(k, T);
    pb.vt = transposed_blocks(v, T);
    pb.k = natural_blocks(k, T);
    pb.q_mem = rounded(q, rows, MEM_TILES);
    pb.dout_mem = rounded(dout, rows, MEM_TILES);
    pb.k_mem = rounded(k, T, MEM_TILES);
    pb.v_mem = rounded(v, T, MEM_TILES);
    pb.terms32 = make_terms(false);
    pb.terms = make_terms(true);
}

/* The window is the paper's from T = 2048 on, shorter in a shorter problem, so that there are
 * tokens before it. */
static void make(int T) {
    pb = {};
    pb.T = T;
    pb.w = max(1, min(512, T / 3));
    pb.blocks = (T + BLOCK - 1) / BLOCK;
    pb.width = (pb.w + BLOCK - 2) / BLOCK + 1;
    pb.scale = (float)(1 / sqrt((double)D));
    pb.scale2 = (float)(1.4426950408889634 / sqrt((double)D));
    make_inputs(T);
    pb.ds = (uint4 *)device_output((int64_t)T * pb.width * DS_TILE, sizeof *pb.ds);
    pb.dq = (float *)device_output(((int64_t)T * G + 2 * pb.blocks * BLOCK) * D, sizeof(float));
    pb.dk = pb.dq + (int64_t)T * G * D;
    pb.dv = pb.dk + (int64_t)pb.blocks * BLOCK * D;
}

static nsa_status run(int step) {
    return steps[step](&pb);
}

/* dq, dk, dv */
static void *result(int64_t *bytes) {
    *bytes = ((int64_t)pb.T * G + 2 * pb.blocks * BLOCK) * D * (int64_t)sizeof(float);
    return pb.dq;
}

/* Each of dq, dk, dv alone: the worst. With one key p = 1 and dS is 0 but for rounding, so dq and
 * dk cannot be compared. */
static double difference(const void *out, const void *first) {
    const float *a = (const float *)out, *b = (const float *)first;
    const int64_t rows = (int64_t)pb.T * G * D, keys = (int64_t)pb.blocks * BLOCK * D;
    double worst = rounding_error(a + rows + keys, b + rows + keys, pb.T, D);
    if (pb.w > 1) {
        worst = larger(worst, rounding_error(a, b, (int64_t)pb.T * G, D));
        worst = larger(worst, rounding_error(a + rows, b + rows, pb.T, D));
    }
    return worst;
}

/* ------------------------------------------------------------------ float64 */

/* dq [D] of a row; dk and dv [BLOCK,D] of a block. */
typedef struct gradients {
    double dq[D], dk[BLOCK * D], dv[BLOCK * D];
} gradients;

static double dot_float64(const float *a, const float *b) {
    double sum = 0;
    for (int c = 0; c < D; c++)
        sum += (double)a[c] * (double)b[c];
    return sum;
}

static void add_scaled_float64(double *y, double a, const float *x) {
    for (int c = 0; c < D; c++)
        y[c] += a * (double)x[c];
}

/* One head of a query, row = t*G + g: dq is set; its share of dk and dv of one block is added. */
static void backward_float64(int64_t row, int block, gradients *to) {
    static double p[512], dp[512];
    const int t = (int)(row / G), from = max(t - pb.w + 1, 0);
    const float *q_tg = q + row * D, *dout_tg = dout + row * D;
    double row_sum = 0, dgate = 0;
    for (int s = from; s <= t; s++) {
        p[s - from] = exp(dot_float64(q_tg, k + (int64_t)s * D) / sqrt((double)D)); /* small */
        dp[s - from] = dot_float64(dout_tg, v + (int64_t)s * D);
        row_sum += p[s - from];
    }
    for (int s = from; s <= t; s++)
        dgate += (p[s - from] /= row_sum) * dp[s - from];
    for (int c = 0; c < D; c++)
        to->dq[c] = 0;
    for (int s = from; s <= t; s++) {
        const double weight = (double)gate[row] * p[s - from];
        const double ds = weight * (dp[s - from] - dgate) / sqrt((double)D);
        add_scaled_float64(to->dq, ds, k + (int64_t)s * D);
        if (s / BLOCK != block)
            continue;
        add_scaled_float64(to->dk + s % BLOCK * D, ds, q_tg);
        add_scaled_float64(to->dv + s % BLOCK * D, weight, dout_tg);
    }
}

/* dk and dv of a block at three quarters of the text, and dq of queries from the first to the last,
 * all together: with few keys dS is a small difference. */
static double error(const void *first) {
    const float *x = (const float *)first, *x_dk = x + (int64_t)pb.T * G * D;
    const int block = (pb.T - 1) * 3 / 4 / BLOCK;
    const int64_t at = block_offset(block), keys = (int64_t)pb.blocks * BLOCK * D;
    gradients *y = (gradients *)allocate(1, sizeof *y);
    float *dq = (float *)allocate(SAMPLED * G * D, sizeof *dq);
    double *dq64 = (double *)allocate(SAMPLED * G * D, sizeof *dq64), worst;
    for (int64_t row = (int64_t)block * BLOCK * G; row < (int64_t)end_query(&pb, block) * G; row++)
        backward_float64(row, block, y);
    worst = relative_rms(x_dk + keys + at, y->dv, BLOCK * D);
    if (pb.w == 1)
        return worst;
    for (int i = 0; i < SAMPLED * G; i++) {
        const int64_t t = (int64_t)(pb.T - 1) * (i / G) / (SAMPLED - 1), row = t * G + i % G;
        backward_float64(row, -1, y);
        memcpy(dq + i * D, x + row * D, D * sizeof *dq);
        memcpy(dq64 + i * D, y->dq, D * sizeof *dq64);
    }
    return larger(larger(worst, relative_rms(x_dk + at, y->dk, BLOCK * D)),
                  relative_rms(dq, dq64, SAMPLED * G * D));
}

/* dS is made of twice as many rounded operands as an output. */
extern const chain chain_backward = {
    "backward",
    what,
    sizeof steps / sizeof *steps,
    16384,
    {1e-5, 2 * ROUNDED},
    make,
    run,
    result,
    error,
    difference,
};
