/** @file
 *  @brief Step 2, group: each block is given to all G heads before the next block is fetched.
 *
 *  Expected: no faster yet. K and V are fetched once a query, not G times, so bytes fall by G = 16;
 *  but nothing here waits for memory while every score waits for its own additions.
 */
#include "problem.h"

/* The keys 0..hi-1 of one block. The stage has a lo too: a window may begin inside a block. */
typedef struct span {
    int32_t block, hi;
} span;

typedef struct work {
    span spans[SLC_COUNT];         /* what the query sees */
    real p[SLC_COUNT * G * BLOCK]; /* [spans][G,BLOCK] scores, then probabilities */
    real row_max[G], row_sum[G];
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

/* A group: q [G,D] and o [G,D] over n spans. In each of the three passes spans are the outer loop
 * and heads the inner one: heads 2 to G find the block in a cache. The price: G rows of scores.
 * Element c of key j is at kt[c * BLOCK + j], so a dot product walks down a column. */
static void attend(const problem *pb, work *w, const real *q, int64_t n, real *o) {
    for (int64_t g = 0; g < G; g++) {
        w->row_max[g] = -INFINITY;
        w->row_sum[g] = 0;
    }
    for (int64_t i = 0; i < n; i++) {
        const real *kt = pb->transposed + w->spans[i].block * D * BLOCK;
        for (int64_t g = 0; g < G; g++) {
            real *p = w->p + (i * G + g) * BLOCK, *row_max = w->row_max + g;
            for (int64_t j = 0; j < w->spans[i].hi; j++) {
                p[j] = dot(q + g * D, kt + j, BLOCK, D);
                *row_max = p[j] > *row_max ? p[j] : *row_max;
            }
        }
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t g = 0; g < G; g++) {
            real *p = w->p + (i * G + g) * BLOCK;
            for (int64_t j = 0; j < w->spans[i].hi; j++) {
                p[j] = expf(pb->scale * (p[j] - w->row_max[g]));
                w->row_sum[g] += p[j];
            }
        }
    }
    memset(o, 0, sizeof(real) * G * D);
    for (int64_t i = 0; i < n; i++) {
        const real *v = pb->natural + w->spans[i].block * BLOCK * D;
        for (int64_t g = 0; g < G; g++) {
            real *p = w->p + (i * G + g) * BLOCK;
            for (int64_t j = 0; j < w->spans[i].hi; j++) {
                p[j] /= w->row_sum[g];
                add_scaled(o + g * D, p[j], v + j * D, D);
            }
        }
    }
}

/* Query after query: a query's keys and values are fetched once for its whole group. */
void attend_2_group(const problem *pb) {
    work w;
    for (int64_t t = 0; t < pb->T; t++) {
        const int64_t n = visible_slc(w.spans, t, pb->block_idx + t * SLC_COUNT);
        attend(pb, &w, pb->q + t * G * D, n, pb->out + t * G * D);
    }
}
