/** @file
 *  @brief Step 3, online: an online softmax makes one pass over the spans in place of three.
 *
 *  Expected: no faster. Scores of one block are kept instead of SLC_COUNT, 4 KiB and not 64, and
 *  all that is done with a block is done at once; but the additions of dot() are still the time.
 */
#include "problem.h"

/* The keys 0..hi-1 of one block. The stage has a lo too: a window may begin inside a block. */
typedef struct span {
    int32_t block, hi;
} span;

typedef struct work {
    span spans[SLC_COUNT];       /* what the query sees */
    real s[G * BLOCK];           /* [G,BLOCK] scores of one span, then exponentials */
    real row_max[G], row_sum[G]; /* of the spans so far */
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

/* Online softmax (Milakov and Gimelshein 2018), one span. With the largest score so far m and m'
 * after the span: o = o e^(m-m') + sum_j e^(s_j-m') v_j, and the same for the sum; differences are
 * scaled after they are taken. At the first span m = -inf: zeros are multiplied by expf(-inf) = 0.
 * Element c of key j is at kt[c * BLOCK + j], so a dot product walks down a column. */
static void softmax_step(const problem *pb, work *w, const real *q, span sp, real *o) {
    const real *kt = pb->transposed + sp.block * D * BLOCK, *v = pb->natural + sp.block * BLOCK * D;
    for (int64_t g = 0; g < G; g++) {
        real *s = w->s + g * BLOCK, *row_max = w->row_max + g, *row_sum = w->row_sum + g;
        real new_max = *row_max;
        for (int64_t j = 0; j < sp.hi; j++) {
            s[j] = dot(q + g * D, kt + j, BLOCK, D);
            new_max = s[j] > new_max ? s[j] : new_max;
        }
        if (new_max > *row_max) { /* seldom, after the first few blocks */
            const real rescale = expf(pb->scale * (*row_max - new_max));
            *row_sum *= rescale;
            for (int64_t c = 0; c < D; c++)
                o[g * D + c] *= rescale;
            *row_max = new_max;
        }
        for (int64_t j = 0; j < sp.hi; j++) {
            s[j] = expf(pb->scale * (s[j] - *row_max));
            *row_sum += s[j];
        }
        for (int64_t j = 0; j < sp.hi; j++)
            add_scaled(o + g * D, s[j], v + j * D, D);
    }
}

static void softmax_init(work *w, real *o) {
    memset(o, 0, sizeof(real) * G * D);
    for (int64_t g = 0; g < G; g++) {
        w->row_max[g] = -INFINITY;
        w->row_sum[g] = 0;
    }
}

/* o is divided by the sum once, when that is known. */
static void softmax_finalize(const work *w, real *o) {
    for (int64_t g = 0; g < G; g++) {
        const real inv_sum = 1 / w->row_sum[g];
        for (int64_t c = 0; c < D; c++)
            o[g * D + c] *= inv_sum;
    }
}

/* Query after query: a query's keys and values are fetched once for its whole group. */
void attend_3_online(const problem *pb) {
    work w;
    for (int64_t t = 0; t < pb->T; t++) {
        const int64_t n = visible_slc(w.spans, t, pb->block_idx + t * SLC_COUNT);
        real *q = pb->q + t * G * D, *o = pb->out + t * G * D;
        softmax_init(&w, o);
        for (int64_t i = 0; i < n; i++)
            softmax_step(pb, &w, q, w.spans[i], o);
        softmax_finalize(&w, o);
    }
}
