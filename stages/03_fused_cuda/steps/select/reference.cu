/** @file
 *  @brief The chain `select`: importance in float64, and which selections follow from it. */
#include "problem.cuh"

#include <string.h>

/* Importance of all blocks of query t, in float64. */
static void importance_float64(const problem *pb, const host_arrays *host, int t, double *imp) {
    const int n_visible = cmp_visible(pb, t);
    double *p = (double *)allocate(max(n_visible, 1), sizeof *p);
    for (int j = 0; j < pb->J; j++)
        imp[j] = 0;
    for (int64_t row = (int64_t)t * G; row < (int64_t)(t + 1) * G; row++) {
        double row_sum = 0;
        for (int i = 0; i < n_visible; i++) {
            const double s = dot_float64(host->q + row * D, host->k + (int64_t)i * D);
            row_sum += p[i] = exp(s / sqrt((double)D)); /* scores are small here */
        }
        for (int j = 0; j <= own_block_of(pb, t); j++) {
            for (int x = 1 - OVERLAP; x < PER_BLOCK; x++) {
                const int i = PER_BLOCK * j + x;
                imp[j] += i >= 0 && i < n_visible ? (double)weight(x) * p[i] / row_sum : 0;
            }
        }
    }
}

/* Are the blocks idx [n] of query t allowed: ascending, the forced ones among them, as many as
 * there can be, and -1 after them? */
static bool legal(const problem *pb, const int32_t *idx, int t) {
    const int own_block = own_block_of(pb, t), length = min(pb->n, own_block + 1);
    int n_forced = 0;
    for (int i = 0; i < pb->n; i++) {
        if (i >= length ? idx[i] != -1 : idx[i] <= (i ? idx[i - 1] : -1) || idx[i] > own_block)
            return false;
        n_forced += i < length && forced(idx[i], own_block);
    }
    return n_forced == min(INIT + LOCAL, own_block + 1);
}

/* Importance, by step 0, of all blocks that query t has selected. */
static double selected_importance(const problem *pb, const host_arrays *host, const int32_t *idx,
                                  int t) {
    double sum = 0;
    for (int i = 0; i < pb->n && idx[i] >= 0; i++)
        sum += (double)host->importance[(int64_t)t * pb->J + idx[i]];
    return sum;
}

/* How much less importance than step 0 a step has selected, of the worst query: float32 sums in
 * another order may exchange two blocks that are equal but for their last digit. Blocks that are
 * exactly equal may not be exchanged. */
double select_difference(const problem *pb, const host_arrays *host, const int32_t *out,
                         const int32_t *first) {
    double worst = 0;
    for (int t = 0; t < pb->T; t++) {
        const int32_t *a = out + (int64_t)t * pb->n;
        const int32_t *b = first + (int64_t)t * pb->n;
        const double best = selected_importance(pb, host, b, t),
                     lost = best - selected_importance(pb, host, a, t);
        const bool same = memcmp(a, b, (size_t)pb->n * sizeof *a) == 0;
        if (!legal(pb, a, t) || (!same && lost == 0))
            return INFINITY;
        if (!same)
            worst = larger(worst, fabs(lost) / best);
    }
    return worst;
}

/* Does step 0's selection follow from its importance: no other block is better than a selected one
 * that is not forced? */
static bool best_selected(const problem *pb, const host_arrays *host, const int32_t *idx, int t) {
    const float *imp = host->importance + (int64_t)t * pb->J;
    const int own_block = own_block_of(pb, t);
    for (int j = 0; j <= own_block; j++) {
        bool selected = false, better = false;
        for (int i = 0; i < pb->n && idx[i] >= 0; i++) {
            selected |= idx[i] == j;
            better |= !forced(idx[i], own_block) &&
                      (imp[j] > imp[idx[i]] || (imp[j] == imp[idx[i]] && j < idx[i]));
        }
        if (!selected && better)
            return false;
    }
    return true;
}

/* Importance of some queries from float64, and the selection of all. */
double select_error(const problem *pb, const host_arrays *host, const int32_t *first) {
    const size_t bytes = (size_t)pb->T * (size_t)pb->J * sizeof *host->importance;
    double *imp = (double *)allocate(pb->J, sizeof *imp), worst = 0;
    if (cudaMemcpy(host->importance, pb->importance, bytes, cudaMemcpyDeviceToHost) != cudaSuccess)
        return NAN;
    for (int t = 0; t < pb->T; t++) {
        const int32_t *idx = first + (int64_t)t * pb->n;
        if (!legal(pb, idx, t) || !best_selected(pb, host, idx, t))
            return INFINITY;
    }
    for (int i = 0; i < 12; i++) {
        const int t = (int)((int64_t)(pb->T - 1) * i / 11);
        importance_float64(pb, host, t, imp);
        if (cmp_visible(pb, t) > 0)
            worst = larger(worst, relative_rms(host->importance + (int64_t)t * pb->J, imp,
                                               own_block_of(pb, t) + 1));
    }
    return worst;
}
