/** @file
 *  @brief The chain `backward`: makes its problem, with what forward saves and the inverse list,
 * and runs its steps. */
#include "problem.cuh"

#include "harness/random.h"

enum { MAX_UNITS = 64 };

static problem pb;
static host_arrays host;

static const char *const what[] = {
    "stage 02's products; dk, dv by atomics",
    "dq in a kernel of its own: 7 products for 5",
    "dk, dv by key blocks, through the inverse list",
    "long lists cut into work units, added in order",
};

static nsa_status (*const steps[])(const problem *) = {
    backward_0_atomics,
    backward_1_dq,
    backward_2_keys,
    backward_3_units,
};

/* What forward saves: row_max, inv_sum and dgate = sum_s p_s (dout.v_s). A thread a row; `terms`
 * has the gates. */
static __global__ void __launch_bounds__(64) forward_kernel(problem one, row_terms *g_terms) {
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
    g_terms[row] = row_terms{row_max, 1 / row_sum, g_terms[row].gate, dgate / row_sum};
}

/* start and list, row after row. */
static void invert(void) {
    int32_t *next = (int32_t *)allocate(pb.blocks, sizeof *next);
    host.start = (int32_t *)allocate(pb.blocks + 1, sizeof *host.start);
    host.list = (int32_t *)allocate((int64_t)pb.T * pb.n, sizeof *host.list);
    for (int64_t i = 0; i < (int64_t)pb.T * pb.n; i++) {
        if (host.idx[i] >= 0)
            host.start[host.idx[i] + 1]++;
    }
    for (int block = 0; block < pb.blocks; block++) {
        host.start[block + 1] += host.start[block];
        next[block] = host.start[block];
    }
    for (int64_t i = 0; i < (int64_t)pb.T * pb.n; i++) {
        if (host.idx[i] >= 0)
            host.list[next[host.idx[i]]++] = (int32_t)(i / pb.n);
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
    pb.unit_rows = max(T < 2048 ? 32 : 512, (T + MAX_UNITS - 1) / MAX_UNITS);
    pb.max_units = (T + pb.unit_rows - 1) / pb.unit_rows;
    host.idx = (int32_t *)allocate((int64_t)T * pb.n, sizeof *host.idx);
    for (int t = 0; t < T; t++)
        draw_blocks(host.idx + (int64_t)t * pb.n, pb.n, t, &random);
    invert();
    host.q = draw(rows * D, &random);
    host.dout = draw(rows * D, &random);
    host.k = draw((int64_t)T * D, &random);
    host.v = draw((int64_t)T * D, &random);
    host.terms = (row_terms *)allocate(rows, sizeof *host.terms);
    for (int64_t i = 0; i < rows; i++) /* between 0 and 1, exclusive */
        host.terms[i].gate = (random_uniform(&random) + 1) / 3;
    pb.idx = (int32_t *)copy_to_device(host.idx, (int64_t)T * pb.n, sizeof *host.idx);
    pb.start = (int32_t *)copy_to_device(host.start, pb.blocks + 1, sizeof *host.start);
    pb.list = (int32_t *)copy_to_device(host.list, (int64_t)T * pb.n, sizeof *host.list);
    pb.q = (float *)copy_to_device(host.q, rows * D, sizeof *host.q);
    pb.dout = (float *)copy_to_device(host.dout, rows * D, sizeof *host.dout);
    pb.kt = transposed_blocks(host.k, T);
    pb.vt = transposed_blocks(host.v, T);
    pb.k = natural_blocks(host.k, T);
    row_terms *g_terms = (row_terms *)copy_to_device(host.terms, rows, sizeof *host.terms);
    NSA_LAUNCH(forward_kernel, (unsigned)((rows + 63) / 64), 64, 0, 0, pb, g_terms);
    pb.terms = g_terms;
    pb.dq = (float *)device_output(rows * D + 2 * (int64_t)pb.blocks * BLOCK * D, sizeof(float));
    pb.dk = pb.dq + rows * D;
    pb.dv = pb.dk + (int64_t)pb.blocks * BLOCK * D;
    pb.partial =
        (float *)device_output((int64_t)pb.blocks * pb.max_units * 2 * BLOCK * D, sizeof(float));
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

static double error(const void *first) {
    return backward_error(&pb, &host, (const float *)first);
}

extern const chain chain_backward = {
    "backward", what,       sizeof steps / sizeof *steps, 16384, {1e-5, 1e-5}, make, run, result,
    error,      difference,
};
