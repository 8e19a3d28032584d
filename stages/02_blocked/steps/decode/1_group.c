/** @file
 *  @brief Step 1, group: attend/1 to attend/3 in one move, all but the layout.
 *
 *  Spans of blocks replace the list of keys (attend/1), each block is given to all G heads before
 *  the next (attend/2), and an online softmax makes one pass over them (attend/3). It keeps the
 *  scores of one block only, so a block's values follow its keys, and the caches are read once in
 *  place of G times. Hardly faster: the dot products are what they were.
 */
#include "problem.h"

/* The keys 0..hi-1 of one block. */
typedef struct span {
    int32_t block, hi;
} span;

typedef struct work {
    span spans[SLC_COUNT]; /* what the query sees */
    real s[G * BLOCK];     /* [G,BLOCK] scores of one block, then exponentials */
    real row_max[G];       /* so far */
    real row_sum[G];       /* so far */
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

/* The tokens s <= t of the blocks in idx (Eq. 12), a span a block; returns how many. */
static int64_t visible_slc(span *spans, int64_t t, const int32_t *idx) {
    int64_t n = 0;
    for (int64_t i = 0; i < SLC_COUNT && idx[i] >= 0; i++) {
        const int64_t left = t + 1 - (int64_t)idx[i] * BLOCK;
        spans[n++] = (span){idx[i], (int32_t)(left < BLOCK ? left : BLOCK)};
    }
    return n;
}

/* Online softmax (Milakov and Gimelshein 2018), one span of slot a's group, o [G,D]. With the
 * largest score so far m and m' after the span: o = o e^(m-m') + sum_j e^(s_j-m') v_j, and the same
 * for the sum; differences are scaled after they are taken. At the first span m = -inf: zeros are
 * multiplied by expf(-inf) = 0. */
static void softmax_step(const problem *pb, work *w, int64_t a, span sp, real *o) {
    const int64_t first = (a * pb->max_seq_len + (int64_t)sp.block * BLOCK) * D;
    const real *k = pb->cache_k + first, *v = pb->cache_v + first;
    for (int64_t g = 0; g < G; g++) {
        real *s = w->s + g * BLOCK, new_max = w->row_max[g];
        for (int64_t j = 0; j < sp.hi; j++) {
            s[j] = dot(pb->q + (a * G + g) * D, k + j * D, D);
            new_max = s[j] > new_max ? s[j] : new_max;
        }
        if (new_max > w->row_max[g]) {
            const real rescale = expf(pb->scale * (w->row_max[g] - new_max));
            w->row_sum[g] *= rescale;
            for (int64_t c = 0; c < D; c++)
                o[g * D + c] *= rescale;
            w->row_max[g] = new_max;
        }
        for (int64_t j = 0; j < sp.hi; j++) {
            s[j] = expf(pb->scale * (s[j] - new_max));
            w->row_sum[g] += s[j];
            add_scaled(o + g * D, s[j], v + j * D, D);
        }
    }
}

/* Slot a's group, over n spans, o [G,D]; o is divided by row_sum once, when that is known. */
static void attend_blocks(const problem *pb, work *w, int64_t a, int64_t n, real *o) {
    memset(o, 0, G * D * sizeof *o);
    memset(w->row_sum, 0, sizeof w->row_sum);
    for (int64_t g = 0; g < G; g++)
        w->row_max[g] = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        softmax_step(pb, w, a, w->spans[i], o);
    for (int64_t g = 0; g < G; g++) {
        for (int64_t c = 0; c < D; c++)
            o[g * D + c] *= 1 / w->row_sum[g];
    }
}

/* One new token of each slot, slot after slot. */
void decode_1_group(const problem *pb) {
    work w;
    for (int64_t a = 0; a < SLOTS; a++) {
        const int64_t n = visible_slc(w.spans, pb->t, pb->block_idx + a * SLC_COUNT);
        attend_blocks(pb, &w, a, n, pb->out + a * G * D);
    }
}
