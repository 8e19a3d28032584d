/** @file
 *  @brief The chain `backward`: makes its problem, with what forward saves and the inverse list,
 *  runs its steps, and computes gradients in float64. */
#include "problem.cuh"

#include "harness/random.h"

#include <string.h>

enum { SAMPLED = 8, MAX_PARTS = 64 };

static problem pb;

/* On the host: q, dout [T,G,D], k, v [T,D], gate [T,G] as the z of terms. */
static float *q, *dout, *k, *v;
static float4 *terms;
static int32_t *idx, *start, *list;

static const char *const what[] = {
    "stage 02's products; dk, dv by atomics",
    "dq in a kernel of its own: 7 products for 5",
    "dk, dv by key blocks, through the inverse list",
    "long lists cut into parts, added in order",
};

static nsa_status (*const steps[])(const problem *) = {
    backward_0_atomics,
    backward_1_dq,
    backward_2_keys,
    backward_3_parts,
};

/* What forward saves: row_max, inv_sum and dgate = sum_s p_s (dout.v_s). A thread a row; `terms`
 * has the gates. */
static __global__ void __launch_bounds__(64) forward_kernel(problem one, float4 *g_terms) {
    const int64_t row = (int64_t)blockIdx.x * 64 + threadIdx.x;
    const int t = (int)(row / G);
    if (t >= one.T)
        return;
    float row_max = -INFINITY, row_sum = 0, dgate = 0;
    for (int i = 0; i < one.n && one.idx[t * one.n + i] >= 0; i++) {
        const int block = one.idx[t * one.n + i];
        for (int j = 0; j < min(BLOCK, t + 1 - block * BLOCK); j++) {
            const float *kt = one.kt + (int64_t)block * D * BLOCK + j;
            const float *vt = one.vt + (int64_t)block * D * BLOCK + j;
            float s = 0, dp = 0;
            for (int c = 0; c < D; c++) {
                s += one.q[row * D + c] * kt[c * BLOCK];
                dp += one.dout[row * D + c] * vt[c * BLOCK];
            }
            const float new_max = fmaxf(row_max, s);
            const float rescale = exp2f(one.scale2 * (row_max - new_max)),
                        p = exp2f(one.scale2 * (s - new_max));
            row_max = new_max;
            row_sum = row_sum * rescale + p;
            dgate = dgate * rescale + p * dp;
        }
    }
    g_terms[row] = make_float4(row_max, 1 / row_sum, g_terms[row].z, dgate / row_sum);
}

/* start and list, row after row. */
static void invert(void) {
    int32_t *next = (int32_t *)allocate(pb.blocks, sizeof *next);
    start = (int32_t *)allocate(pb.blocks + 1, sizeof *start);
    list = (int32_t *)allocate((int64_t)pb.T * pb.n, sizeof *list);
    for (int64_t i = 0; i < (int64_t)pb.T * pb.n; i++) {
        if (idx[i] >= 0)
            start[idx[i] + 1]++;
    }
    for (int block = 0; block < pb.blocks; block++) {
        start[block + 1] += start[block];
        next[block] = start[block];
    }
    for (int64_t i = 0; i < (int64_t)pb.T * pb.n; i++) {
        if (idx[i] >= 0)
            list[next[idx[i]]++] = (int32_t)(i / pb.n);
    }
}

static void make(int T) {
    uint64_t random = random_seed(SEED);
    const int64_t rows = (int64_t)T * G;
    pb = {};
    pb.T = T;
    pb.n = max(1, min(16, T / 100));
    pb.blocks = (T + BLOCK - 1) / BLOCK;
    pb.scale = (float)(1 / sqrt((double)D));
    pb.scale2 = (float)(1.4426950408889634 / sqrt((double)D));
    pb.part_rows = max(T < 2048 ? 32 : 512, (T + MAX_PARTS - 1) / MAX_PARTS);
    pb.parts = (T + pb.part_rows - 1) / pb.part_rows;
    idx = (int32_t *)allocate((int64_t)T * pb.n, sizeof *idx);
    for (int t = 0; t < T; t++)
        draw_blocks(idx + (int64_t)t * pb.n, pb.n, t, &random);
    invert();
    q = draw(rows * D, &random);
    dout = draw(rows * D, &random);
    k = draw((int64_t)T * D, &random);
    v = draw((int64_t)T * D, &random);
    terms = (float4 *)allocate(rows, sizeof *terms);
    for (int64_t i = 0; i < rows; i++) /* between 0 and 1, exclusive */
        terms[i].z = (random_uniform(&random) + 1) / 3;
    pb.idx = (int32_t *)copy_to_device(idx, (int64_t)T * pb.n, sizeof *idx);
    pb.start = (int32_t *)copy_to_device(start, pb.blocks + 1, sizeof *start);
    pb.list = (int32_t *)copy_to_device(list, (int64_t)T * pb.n, sizeof *list);
    pb.q = (float *)copy_to_device(q, rows * D, sizeof *q);
    pb.dout = (float *)copy_to_device(dout, rows * D, sizeof *dout);
    pb.kt = transposed_blocks(k, T);
    pb.vt = transposed_blocks(v, T);
    pb.k = natural_blocks(k, T);
    float4 *g_terms = (float4 *)copy_to_device(terms, rows, sizeof *terms);
    NSA_LAUNCH(forward_kernel, (unsigned)((rows + 63) / 64), 64, 0, 0, pb, g_terms);
    pb.terms = g_terms;
    pb.dq = (float *)device_output(rows * D + 2 * (int64_t)pb.blocks * BLOCK * D, sizeof(float));
    pb.dk = pb.dq + rows * D;
    pb.dv = pb.dk + (int64_t)pb.blocks * BLOCK * D;
    pb.partial =
        (float *)device_output((int64_t)pb.blocks * pb.parts * 2 * BLOCK * D, sizeof(float));
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
    double worst = relative_rms_float(a + rows + keys, b + rows + keys, keys);
    if (pb.T > 1) {
        worst = larger(worst, relative_rms_float(a, b, rows));
        worst = larger(worst, relative_rms_float(a + rows, b + rows, keys));
    }
    return worst;
}

/* ------------------------------------------------------------------ float64 */

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

/* One head of a query, row = t*G + g: dq [D] is set; its share of dk and dv of one block, [BLOCK,D]
 * each, is added. */
static void backward_float64(int64_t row, int block, double *dq, double *dk, double *dv) {
    static double p[16 * BLOCK], dp[16 * BLOCK];
    const int t = (int)(row / G);
    const int32_t *blocks = idx + (int64_t)t * pb.n;
    const double gate = (double)terms[row].z, scale = 1 / sqrt((double)D);
    double row_sum = 0, dgate = 0;
    int keys = 0;
    for (int i = 0; i < pb.n && blocks[i] >= 0; i++) {
        for (int64_t s = (int64_t)blocks[i] * BLOCK, end = s + BLOCK; s < end && s <= t; s++) {
            p[keys] = exp(scale * dot_float64(q + row * D, k + s * D)); /* scores are small here */
            dp[keys] = dot_float64(dout + row * D, v + s * D);
            row_sum += p[keys++];
        }
    }
    for (int j = 0; j < keys; j++)
        dgate += (p[j] /= row_sum) * dp[j];
    memset(dq, 0, D * sizeof *dq);
    for (int j = 0; j < keys; j++) {
        const int own = j % BLOCK * D;
        const double ds = scale * p[j] * gate * (dp[j] - dgate);
        add_scaled_float64(dq, ds, k + ((int64_t)blocks[j / BLOCK] * BLOCK + j % BLOCK) * D);
        if (blocks[j / BLOCK] != block)
            continue;
        add_scaled_float64(dk + own, ds, q + row * D);
        add_scaled_float64(dv + own, gate * p[j], dout + row * D);
    }
}

/* dk and dv of a block at three quarters of the text, and dq of queries from the first to the
 * last. */
static double error(const void *first) {
    const float *x = (const float *)first, *x_dk = x + (int64_t)pb.T * G * D;
    const int block = (pb.T - 1) * 3 / 4 / BLOCK;
    const int64_t at = (int64_t)block * BLOCK * D, keys = (int64_t)pb.blocks * BLOCK * D;
    double *dk = (double *)allocate(BLOCK * D, sizeof *dk), worst;
    double *dv = (double *)allocate(BLOCK * D, sizeof *dv), dq[D];
    for (int i = start[block]; i < start[block + 1]; i++) {
        for (int64_t row = (int64_t)list[i] * G; row < (int64_t)(list[i] + 1) * G; row++)
            backward_float64(row, block, dq, dk, dv);
    }
    worst = relative_rms(x_dk + keys + at, dv, BLOCK * D);
    if (pb.T > 1)
        worst = larger(worst, relative_rms(x_dk + at, dk, BLOCK * D));
    for (int i = 0; i < SAMPLED * G; i++) {
        const int64_t t = (int64_t)(pb.T - 1) * (i / G) / (SAMPLED - 1);
        backward_float64(t * G + i % G, -1, dq, NULL, NULL);
        if (t > 0)
            worst = larger(worst, relative_rms(x + (t * G + i % G) * D, dq, D));
    }
    return worst;
}

extern const chain chain_backward = {
    "backward", what,       sizeof steps / sizeof *steps, 16384, 1e-5, make, run, result,
    error,      difference,
};
