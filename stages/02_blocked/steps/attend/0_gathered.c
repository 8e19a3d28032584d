/** @file
 *  @brief Step 0, gathered: stage 01's loops. Each head lists the keys it sees and fetches K and V
 *  for itself.
 *
 *  Stage 01 adds in parts of 2048 keys; here a query sees at most SLC_COUNT * BLOCK = 1024, which
 *  is one part.
 */
#include "problem.h"

typedef struct work {
    int32_t key_list[SLC_COUNT * BLOCK]; /* the keys that the query sees, ascending */
    real p[SLC_COUNT * BLOCK];           /* their scores, then probabilities */
} work;

/* <a,b> over n elements. One sum, in order: without fast-math no compiler may split it over vector
 * lanes, so each addition waits for the one before. */
static real dot(const real *a, const real *b, int64_t n) {
    real sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y += a x over n elements: independent of each other, so compilers make vectors of them. */
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

/* One head: o [D] = sum_s p_s v_s, p = softmax_s(scale q.k_s) over the n keys listed. Three passes
 * over the list: scores and their maximum, exponentials and their sum, the weighted values. */
static void attend(const problem *pb, work *w, const real *q, int64_t n, real *o) {
    real *p = w->p, row_max = -INFINITY, row_sum = 0;
    for (int64_t i = 0; i < n; i++) {
        p[i] = dot(q, pb->k + w->key_list[i] * D, D);
        row_max = p[i] > row_max ? p[i] : row_max;
    }
    for (int64_t i = 0; i < n; i++) {
        p[i] = expf(pb->scale * (p[i] - row_max));
        row_sum += p[i];
    }
    memset(o, 0, D * sizeof *o);
    for (int64_t i = 0; i < n; i++) {
        p[i] /= row_sum;
        add_scaled(o, p[i], pb->v + w->key_list[i] * D, D);
    }
}

/* Query after query, head after head: a query's keys and values are fetched G times. */
void attend_0_gathered(const problem *pb) {
    work w;
    for (int64_t t = 0; t < pb->T; t++) {
        for (int64_t head = t * G; head < (t + 1) * G; head++) {
            const int64_t n = visible_slc(&w, t, pb->block_idx + t * SLC_COUNT);
            attend(pb, &w, pb->q + head * D, n, pb->out + head * D);
        }
    }
}
