/** @file
 *  @brief Step 0, rows: stage 01's loops. Each head lists the keys it sees and fetches K and V for
 *  itself.
 *
 *  The first head's rows come from memory. The 512 KiB of K and V that a query sees, 1024 keys, may
 *  or may not be in the L2 cache for the next head. It hardly matters: a dot product is one sum in
 *  order, and waiting for its additions takes longer than fetching.
 */
#include "problem.h"

typedef struct work {
    int32_t key_list[SLC_COUNT * BLOCK]; /* the keys that the query sees, ascending */
    real p[SLC_COUNT * BLOCK];           /* their scores, then probabilities */
} work;

/* <a,b> over n elements. One sum, in order: no compiler may split it over vector lanes. */
static real dot(const real *a, const real *b, int64_t n) {
    real sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y += a x over n elements */
static void add_scaled(real *y, real a, const real *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* The tokens s <= t of the blocks in idx (Eq. 12), into w->key_list; returns how many. */
static int64_t visible_slc(work *w, int64_t t, const int32_t *idx) {
    int64_t n = 0;
    for (int64_t i = 0; i < SLC_COUNT && idx[i] >= 0; i++) {
        int64_t first = (int64_t)idx[i] * BLOCK, end = first + BLOCK;
        for (int64_t s = first; s < end && s <= t; s++)
            w->key_list[n++] = (int32_t)s;
    }
    return n;
}

/* One head: o [D] over the n keys listed, rows of k and v. Three passes over the list: scores and
 * their maximum, exponentials and their sum, the weighted values. */
static void attend(const problem *pb, work *w, int64_t a, const real *q, int64_t n, real *o) {
    const real *k = pb->cache_k + a * pb->max_seq_len * D;
    const real *v = pb->cache_v + a * pb->max_seq_len * D;
    real *p = w->p, row_max = -INFINITY, row_sum = 0;
    for (int64_t i = 0; i < n; i++) {
        p[i] = dot(q, k + w->key_list[i] * D, D);
        row_max = p[i] > row_max ? p[i] : row_max;
    }
    for (int64_t i = 0; i < n; i++) {
        p[i] = expf(pb->scale * (p[i] - row_max));
        row_sum += p[i];
    }
    memset(o, 0, D * sizeof *o);
    for (int64_t i = 0; i < n; i++) {
        p[i] /= row_sum;
        add_scaled(o, p[i], v + w->key_list[i] * D, D);
    }
}

/* One new token of each slot, slot after slot, head after head. */
void decode_0_rows(const problem *pb) {
    work w;
    for (int64_t a = 0; a < SLOTS; a++) {
        for (int64_t head = a * G; head < (a + 1) * G; head++) {
            const int64_t n = visible_slc(&w, pb->t, pb->block_idx + a * SLC_COUNT);
            attend(pb, &w, a, pb->q + head * D, n, pb->out + head * D);
        }
    }
}
