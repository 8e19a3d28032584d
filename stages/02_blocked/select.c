/** @file
 *  @brief Importance (Eq. 9, 10) and the choice of blocks (Eq. 11). */
#include "stage.h"

#include <string.h>

/* Add one head's share to its group's importance (Eq. 9, and 10 by being called for each head):
 * p_slc[j] = sum_{m < l'/d} sum_{r < l/d} p_cmp[(l'/d) j + m - r], terms outside being 0.
 * For l=32, d=16, l'=64 the weights of i = 4j-1..4j+3 are 1,2,2,2,1. Here r counts strides.
 * Around p's n_cmp elements lie zeros, ZERO_PAD before and as many as the blocks want behind: every
 * block is the same sum of as many terms, and no loop asks where it is. strides [blocks*l'/d] takes
 * the sums over r, which are contiguous; those over m are then sums of every (l'/d)th. */
void add_importance(const nsa_config *c, const real *p, real *strides, int64_t blocks, real *imp) {
    const int64_t per_block = c->slc_block / c->cmp_stride, overlap = c->cmp_block / c->cmp_stride;
    memcpy(strides, p, (size_t)(blocks * per_block) * sizeof *p);
    for (int64_t r = 1; r < overlap; r++)
        add_scaled(strides, 1, p - r, blocks * per_block);
    for (int64_t m = 0; m < per_block; m++) {
        for (int64_t j = 0; j < blocks; j++)
            imp[j] += strides[per_block * j + m];
    }
}

/* The order of choice: importance descending, index ascending; NaN sorts below every number. The
 * importance is never negative, so rest [whole] says NaN as -1 and what has been taken as -2, as
 * the elements are that fill up the last vector. Two loops without a branch find the first of the
 * largest, where a sorted list would be guessed wrong. */
enum { NAN_RANK = -1, SELECTED = -2 };

static int32_t topk_next(real *candidates, int32_t whole) {
    const int32_t n = whole / LANES * LANES; /* tells the compiler that there is no tail */
    real max = SELECTED;
    int32_t first = n;
#pragma omp simd reduction(max : max)
    for (int32_t j = 0; j < n; j++)
        max = candidates[j] > max ? candidates[j] : max;
#pragma omp simd reduction(min : first)
    for (int32_t j = 0; j < n; j++) {
        const int32_t pos = candidates[j] == max ? j : n;
        first = pos < first ? pos : first;
    }
    candidates[first] = SELECTED;
    return first;
}

/* Insert block j into an ascending list; returns the length. */
static int64_t insert_ascending(int32_t *list, int64_t length, int32_t j) {
    int64_t pos = length;
    for (; pos > 0 && list[pos - 1] > j; pos--)
        list[pos] = list[pos - 1];
    list[pos] = j;
    return length + 1;
}

/* idx [n]: the blocks of query position t, ascending, padded with -1. Forced are the first slc_init
 * and the slc_local that end with the query's own block b; the rest of the n go to the best others,
 * which lie in between. */
void select_blocks(const nsa_config *c, const real *imp, int64_t t, real *candidates,
                   int32_t *idx) {
    const int64_t own_block = t / c->slc_block,
                  init = c->slc_init < own_block + 1 ? c->slc_init : own_block + 1;
    const int64_t local = own_block - c->slc_local + 1 > init ? own_block - c->slc_local + 1 : init;
    const int64_t left = c->slc_count - init - (own_block + 1 - local);
    const int64_t n_topk = left < local - init ? left : local - init;
    const int64_t whole = round_up(local - init, LANES);
    int64_t used = 0;
    for (int64_t j = init; j < local; j++)
        candidates[j - init] = isnan(imp[j]) ? NAN_RANK : imp[j];
    for (int64_t j = local - init; j < whole; j++)
        candidates[j] = SELECTED;
    for (int64_t j = 0; j < init; j++)
        idx[used++] = (int32_t)j;
    for (int64_t i = 0; i < n_topk; i++)
        used = insert_ascending(idx, used, (int32_t)init + topk_next(candidates, (int32_t)whole));
    for (int64_t j = local; j <= own_block; j++)
        idx[used++] = (int32_t)j;
    for (; used < c->slc_count; used++)
        idx[used] = -1;
}
