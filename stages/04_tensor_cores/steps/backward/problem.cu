/** @file
 *  @brief The chain `backward`: makes its problem, with what forward saves, and runs its steps. */
#include "problem.cuh"

#include "harness/random.h"

static problem pb;
static host_arrays host;

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

/* The terms of all rows. Forward multiplies what backward does: as it is or rounded. */
static const row_terms *make_terms(bool is_rounded) {
    const int64_t rows = (int64_t)pb.T * G, n = (int64_t)pb.T * D;
    row_terms *terms = (row_terms *)allocate(rows, sizeof *terms);
    problem one = pb;
    one.q = (float *)copy_to_device(floats(host.q, rows * D, is_rounded), rows * D, sizeof *host.q);
    one.dout =
        (float *)copy_to_device(floats(host.dout, rows * D, is_rounded), rows * D, sizeof *host.q);
    one.kt = transposed_blocks(floats(host.k, n, is_rounded), pb.T);
    one.vt = transposed_blocks(floats(host.v, n, is_rounded), pb.T);
    for (int64_t i = 0; i < rows; i++)
        terms[i].weight = host.gate[i];
    terms = (row_terms *)copy_to_device(terms, rows, sizeof *terms);
    NSA_LAUNCH(forward_kernel, (unsigned)((rows + 63) / 64), 64, 0, 0, one, terms);
    return terms;
}

static void make_inputs(int T) {
    uint64_t random = random_seed(SEED);
    const int64_t rows = (int64_t)T * G;
    host.gate = (float *)allocate(rows, sizeof *host.gate);
    host.q = draw(rows * D, &random);
    host.dout = draw(rows * D, &random);
    host.k = draw((int64_t)T * D, &random);
    host.v = draw((int64_t)T * D, &random);
    for (int64_t i = 0; i < rows; i++) /* between 0 and 1, exclusive */
        host.gate[i] = (random_uniform(&random) + 1) / 3;
    pb.q = (float *)copy_to_device(host.q, rows * D, sizeof *host.q);
    pb.dout = (float *)copy_to_device(host.dout, rows * D, sizeof *host.dout);
    pb.kt = transposed_blocks(host.k, T);
    pb.vt = transposed_blocks(host.v, T);
    pb.k = natural_blocks(host.k, T);
    pb.q_mem = rounded(host.q, rows, MEM_TILES);
    pb.dout_mem = rounded(host.dout, rows, MEM_TILES);
    pb.k_mem = rounded(host.k, T, MEM_TILES);
    pb.v_mem = rounded(host.v, T, MEM_TILES);
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

static double error(const void *first) {
    return backward_error(&pb, &host, (const float *)first);
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
