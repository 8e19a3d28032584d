/** @file
 *  @brief The chain `backward`: gradients in float64, for some rows and one block of keys. */
#include "problem.cuh"

#include <string.h>

enum { SAMPLED = 8 }; /* queries whose dq is compared */

/* dq [D] of a row; dk and dv [BLOCK,D] of a block. */
typedef struct gradients {
    double *dq, *dk, *dv;
} gradients;

/* One head of a query, row = t*G + g: dq [D] is set; its share of dk and dv of one block, [BLOCK,D]
 * each, is added. */
static void backward_float64(const problem *pb, const host_arrays *host, int64_t row, int block,
                             gradients to) {
    static double p[512], dp[512];
    const int t = (int)(row / G), from = max(t - pb->w + 1, 0);
    const double gate = (double)host->gate[row], scale = 1 / sqrt((double)D);
    double row_sum = 0, dgate = 0;
    for (int s = from; s <= t; s++) {
        p[s - from] = exp(scale * dot_float64(host->q + row * D,
                                              host->k + (int64_t)s * D)); /* scores are small */
        dp[s - from] = dot_float64(host->dout + row * D, host->v + (int64_t)s * D);
        row_sum += p[s - from];
    }
    for (int j = 0; j <= t - from; j++)
        dgate += (p[j] /= row_sum) * dp[j];
    memset(to.dq, 0, D * sizeof *to.dq);
    for (int s = from; s <= t; s++) {
        const double ds = scale * p[s - from] * gate * (dp[s - from] - dgate);
        add_scaled_float64(to.dq, ds, host->k + (int64_t)s * D);
        if (s / BLOCK != block)
            continue;
        add_scaled_float64(to.dk + s % BLOCK * D, ds, host->q + row * D);
        add_scaled_float64(to.dv + s % BLOCK * D, gate * p[s - from], host->dout + row * D);
    }
}

/* dk and dv of a block at three quarters of the text, and dq of queries from the first to the last,
 * all together: with few keys dS is a small difference. */
double backward_error(const problem *pb, const host_arrays *host, const float *x) {
    const float *x_dk = x + (int64_t)pb->T * G * D;
    const int block = (pb->T - 1) * 3 / 4 / BLOCK;
    const int64_t at = block_offset(block), keys = (int64_t)pb->blocks * BLOCK * D;
    double *dk = (double *)allocate(BLOCK * D, sizeof *dk), worst;
    double *dv = (double *)allocate(BLOCK * D, sizeof *dv), row_dq[D];
    double *dq = (double *)allocate(SAMPLED * G * D, sizeof *dq);
    float *sampled = (float *)allocate(SAMPLED * G * D, sizeof *sampled);
    for (int64_t row = (int64_t)block * BLOCK * G; row < (int64_t)end_query(pb, block) * G; row++)
        backward_float64(pb, host, row, block, {row_dq, dk, dv});
    worst = relative_rms(x_dk + keys + at, dv, BLOCK * D);
    if (pb->w == 1) /* p = 1 and dS = 0 */
        return worst;
    for (int i = 0; i < SAMPLED * G; i++) {
        const int64_t row = (int64_t)(pb->T - 1) * (i / G) / (SAMPLED - 1) * G + i % G;
        backward_float64(pb, host, row, -1, {dq + i * D, NULL, NULL});
        memcpy(sampled + i * D, x + row * D, D * sizeof *sampled);
    }
    worst = larger(worst, relative_rms(x_dk + at, dk, BLOCK * D));
    return larger(worst, relative_rms(sampled, dq, SAMPLED * G * D));
}
