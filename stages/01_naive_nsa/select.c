/** @file
 *  @brief Importance (Eq. 9, 10) and the selection of blocks (Eq. 11). */
#include "stage.h"

#include <stdbool.h>

/* Add to a group's importance what p gives: the probabilities of one head, called for each (Eq.
 * 10), or their sum over the group, called once. Eq. 9: p_slc[j] = sum_{m < l'/d} sum_{r < l/d}
 * p_cmp[(l'/d) j + m - r], terms outside being 0. For l=32, d=16, l'=64 the weights of i =
 * 4j-1..4j+3 are 1,2,2,2,1. Here r counts strides. */
void add_importance(const nsa_config *c, const real *p, int64_t n_cmp, int64_t blocks, real *imp) {
    int64_t per_block = c->slc_block / c->cmp_stride, overlap = c->cmp_block / c->cmp_stride;
    for (int64_t j = 0; j < blocks; j++) {
        real sum = 0;
        for (int64_t m = 0; m < per_block; m++) {
            for (int64_t r = 0; r < overlap; r++) {
                int64_t i = per_block * j + m - r;
                sum += i >= 0 && i < n_cmp ? p[i] : 0;
            }
        }
        imp[j] += sum;
    }
}

/* The order of selection: importance descending, index ascending; NaN sorts below every number. */
static bool ranks_before(real imp_a, int64_t a, real imp_b, int64_t b) {
    if (isnan(imp_a) || isnan(imp_b))
        return isnan(imp_a) && isnan(imp_b) ? a < b : isnan(imp_b);
    return imp_a > imp_b || (imp_a == imp_b && a < b);
}

/* Insert block j where it belongs in topk, if it is among the best k; returns the length. */
static int64_t topk_insert(const real *imp, int32_t *topk, int64_t length, int64_t k, int64_t j) {
    int64_t pos = length;
    while (pos > 0 && ranks_before(imp[j], j, imp[topk[pos - 1]], topk[pos - 1]))
        pos--;
    if (pos == k)
        return length;
    length = length < k ? length + 1 : k;
    for (int64_t i = length - 1; i > pos; i--)
        topk[i] = topk[i - 1];
    topk[pos] = (int32_t)j;
    return length;
}

/* idx [n]: the blocks of query position t, ascending, padded with -1. The first slc_init blocks are
 * forced, and the slc_local that end with the query's own block; the best others fill the rest. */
void select_blocks(const nsa_config *c, const real *imp, int64_t t, int32_t *idx) {
    int64_t own_block = t / c->slc_block, n_forced = 0, n_topk = 0, used = 0;
    int32_t topk[128]; /* n <= 128: a bound of the specification */
    for (int64_t j = 0; j <= own_block; j++)
        n_forced += j < c->slc_init || j > own_block - c->slc_local;
    for (int64_t j = 0; j <= own_block; j++) {
        if (!(j < c->slc_init || j > own_block - c->slc_local))
            n_topk = topk_insert(imp, topk, n_topk, c->slc_count - n_forced, j);
    }
    for (int64_t j = 0; j <= own_block; j++) {
        bool selected = j < c->slc_init || j > own_block - c->slc_local;
        for (int64_t i = 0; i < n_topk && !selected; i++)
            selected = topk[i] == j;
        if (selected)
            idx[used++] = (int32_t)j;
    }
    for (; used < c->slc_count; used++)
        idx[used] = -1;
}
