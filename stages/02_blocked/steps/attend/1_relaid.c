/** @file
 *  @brief Step 1, relaid: K and V lie in blocks of 64 keys, K transposed; spans replace the list.
 *
 *  Expected: no faster, or a little slower. A score is still one chain of D additions, which is
 *  most of the time, and the elements of a key now lie BLOCK places apart. But 16 spans say what
 *  took 1024 list entries, and step 4 needs this layout.
 */
#include "problem.h"

/* The keys 0..hi-1 of one block. The stage has a lo too: a window may begin inside a block. */
typedef struct span {
    int32_t block, hi;
} span;

typedef struct work {
    span spans[SLC_COUNT];     /* what the query sees */
    real p[SLC_COUNT * BLOCK]; /* scores, then probabilities: key j of span i at [i * BLOCK + j] */
} work;

/* <a,b> over n elements, those of b `stride` places apart. One sum, in order: without fast-math no
 * compiler may split it over vector lanes, so each addition waits for the one before. */
static real dot(const real *a, const real *b, int64_t stride, int64_t n) {
    real sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i * stride];
    return sum;
}

/* y += a x over n elements: independent of each other, so compilers make vectors of them. */
static void add_scaled(real *y, real a, const real *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* The tokens s <= t of the blocks in idx (Eq. 12), into spans, a span a block; returns how many. */
static int64_t visible_slc(span *spans, int64_t t, const int32_t *idx) {
    int64_t n = 0;
    for (; n < SLC_COUNT && idx[n] >= 0; n++) {
        const int64_t left = t + 1 - (int64_t)idx[n] * BLOCK;
        spans[n] = (span){idx[n], (int32_t)(left < BLOCK ? left : BLOCK)};
    }
    return n;
}

/* One head: o [D] = sum_s p_s v_s, p = softmax_s(scale q.k_s) over n spans. Three passes over them:
 * scores and their maximum, exponentials and their sum, the weighted values. Element c of key j is
 * at kt[c * BLOCK + j], so a dot product walks down a column. */
static void attend(const problem *pb, work *w, const real *q, int64_t n, real *o) {
    real row_max = -INFINITY, row_sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const real *kt = pb->transposed + w->spans[i].block * D * BLOCK;
        real *p = w->p + i * BLOCK;
        for (int64_t j = 0; j < w->spans[i].hi; j++) {
            p[j] = dot(q, kt + j, BLOCK, D);
            row_max = p[j] > row_max ? p[j] : row_max;
        }
    }
    for (int64_t i = 0; i < n; i++) {
        real *p = w->p + i * BLOCK;
        for (int64_t j = 0; j < w->spans[i].hi; j++) {
            p[j] = expf(pb->scale * (p[j] - row_max));
            row_sum += p[j];
        }
    }
    memset(o, 0, D * sizeof *o);
    for (int64_t i = 0; i < n; i++) {
        const real *v = pb->natural + w->spans[i].block * BLOCK * D;
        real *p = w->p + i * BLOCK;
        for (int64_t j = 0; j < w->spans[i].hi; j++) {
            p[j] /= row_sum;
            add_scaled(o, p[j], v + j * D, D);
        }
    }
}

/* Query after query, head after head: a query's keys and values are fetched G times. */
void attend_1_relaid(const problem *pb) {
    work w;
    for (int64_t t = 0; t < pb->T; t++) {
        for (int64_t head = t * G; head < (t + 1) * G; head++) {
            const int64_t n = visible_slc(w.spans, t, pb->block_idx + t * SLC_COUNT);
            attend(pb, &w, pb->q + head * D, n, pb->out + head * D);
        }
    }
}
