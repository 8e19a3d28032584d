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
    static double p[16 * BLOCK], dp[16 * BLOCK];
    const int t = (int)(row / G);
    const int32_t *blocks = host->idx + (int64_t)t * pb->n;
    const double gate = (double)host->terms[row].gate, scale = 1 / sqrt((double)D);
    double row_sum = 0, dgate = 0;
    int keys = 0;
    for (int i = 0; i < pb->n && blocks[i] >= 0; i++) {
        for (int64_t s = (int64_t)blocks[i] * BLOCK, end = s + BLOCK; s < end && s <= t; s++) {
            p[keys] = exp(scale * dot_float64(host->q + row * D,
                                              host->k + s * D)); /* scores are small here */
            dp[keys] = dot_float64(host->dout + row * D, host->v + s * D);
            row_sum += p[keys++];
        }
    }
    for (int j = 0; j < keys; j++)
        dgate += (p[j] /= row_sum) * dp[j];
    memset(to.dq, 0, D * sizeof *to.dq);
    for (int j = 0; j < keys; j++) {
        const int own = j % BLOCK * D;
        const double ds = scale * p[j] * gate * (dp[j] - dgate);
        add_scaled_float64(to.dq, ds,
                           host->k + ((int64_t)blocks[j / BLOCK] * BLOCK + j % BLOCK) * D);
        if (blocks[j / BLOCK] != block)
            continue;
        add_scaled_float64(to.dk + own, ds, host->q + row * D);
        add_scaled_float64(to.dv + own, gate * p[j], host->dout + row * D);
    }
}

/* dk and dv of a block at three quarters of the text, and dq of queries from the first to the
 * last. */
double backward_error(const problem *pb, const host_arrays *host, const float *x) {
    const float *x_dk = x + (int64_t)pb->T * G * D;
    const int block = (pb->T - 1) * 3 / 4 / BLOCK;
    const int64_t at = (int64_t)block * BLOCK * D, keys = (int64_t)pb->blocks * BLOCK * D;
    double *dk = (double *)allocate(BLOCK * D, sizeof *dk), worst;
    double *dv = (double *)allocate(BLOCK * D, sizeof *dv), dq[D];
    const gradients all = {dq, dk, dv}, dq_alone = {dq, NULL, NULL};
    for (int i = host->start[block]; i < host->start[block + 1]; i++) {
        for (int64_t row = (int64_t)host->list[i] * G; row < (int64_t)(host->list[i] + 1) * G;
             row++)
            backward_float64(pb, host, row, block, all);
    }
    worst = relative_rms(x_dk + keys + at, dv, BLOCK * D);
    if (pb->T > 1)
        worst = larger(worst, relative_rms(x_dk + at, dk, BLOCK * D));
    for (int i = 0; i < SAMPLED * G; i++) {
        const int64_t t = (int64_t)(pb->T - 1) * (i / G) / (SAMPLED - 1);
        backward_float64(pb, host, t * G + i % G, -1, dq_alone);
        if (t % BLOCK > 0 || (t > 0 && pb->n > 1)) /* else perhaps one key: dq = 0 */
            worst = larger(worst, relative_rms(x + (t * G + i % G) * D, dq, D));
    }
    return worst;
}
