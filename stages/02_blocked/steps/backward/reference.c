/** @file
 *  @brief The chain `backward`: the same gradients in float64, from their equations.
 */
#include "problem.h"

static double dot_float64(const real *a, const real *b) {
    double sum = 0;
    for (int c = 0; c < D; c++)
        sum += (double)a[c] * (double)b[c];
    return sum;
}

static void add_scaled_float64(double *y, double a, const real *x) {
    for (int c = 0; c < D; c++)
        y[c] += a * (double)x[c];
}

void backward_float64(const problem *pb, int64_t head, int64_t block, double *dq, double *dgate,
                      double *dk_dv) {
    static double p[SLC_COUNT * BLOCK], dp[SLC_COUNT * BLOCK];
    const int64_t t = head / G;
    const int32_t *idx = pb->block_idx + t * SLC_COUNT;
    const real *q = pb->q + head * D, *dout = pb->dout + head * D;
    const double gate = (double)pb->gate[head], scale = (double)pb->scale;
    double row_sum = 0;
    int64_t keys = 0;
    for (int i = 0; i < SLC_COUNT && idx[i] >= 0; i++) {
        for (int64_t s = (int64_t)idx[i] * BLOCK, end = s + BLOCK; s < end && s <= t; s++) {
            p[keys] = exp(scale * dot_float64(q, pb->k + s * D)); /* scores are small here */
            dp[keys] = dot_float64(dout, pb->v + s * D);
            row_sum += p[keys++];
        }
    }
    memset(dq, 0, D * sizeof *dq);
    *dgate = 0;
    for (int64_t j = 0; j < keys; j++)
        *dgate += (p[j] /= row_sum) * dp[j];
    for (int64_t j = 0; j < keys; j++) {
        const int64_t own = j % BLOCK * D, s = (int64_t)idx[j / BLOCK] * BLOCK + j % BLOCK;
        const double ds = scale * p[j] * gate * (dp[j] - *dgate);
        add_scaled_float64(dq, ds, pb->k + s * D);
        if (idx[j / BLOCK] != block)
            continue;
        add_scaled_float64(dk_dv + own, ds, q);
        add_scaled_float64(dk_dv + BLOCK * D + own, gate * p[j], dout);
    }
}
