/** @file
 *  @brief Step 7, tiles: the stage's own product, tile.c. A tile of C stays in registers.
 *
 *  Read tile() in tile.c beside this file. Step 6 loads and stores a row of C for each k. A tile,
 *  MR rows of C and NV vectors wide, is loaded and stored once:
 *
 *      for each k:  load NV vectors of B's row k;  for each of MR rows:  acc += A[m,k] times them
 *
 *  One load of B serves MR multiply-adds, and none of the MR * NV waits for another. Expected: the
 *  products twice as fast. matmul() is matmul_add() to zeros, so s needs no memset(). From tile.h
 *  come also LANES, matrix and exp_bounded(), which step 6 had of its own, rows_of(), a matrix of
 *  contiguous rows, and vec, a register of VEC floats, which tiles are made of.
 */
#include "problem.h"
#include "tile.h"

/* The keys 0..hi-1 of one block. The stage has a lo too: a window may begin inside a block. */
typedef struct span {
    int32_t block, hi;
} span;

typedef struct work {
    span spans[SLC_COUNT];               /* what the query sees */
    _Alignas(64) real s[G * BLOCK];      /* [G,BLOCK] scores of one span, then exponentials */
    real row_max[G], row_sum[G * LANES]; /* of the spans so far; sums in LANES parts */
} work;

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

/* Scores q_g.k_j of the G heads against a span, s [G,BLOCK]; -inf in the lanes after it, up to n1.
 * Whole vectors are computed always: there is no other code for a tail. */
static void score(const problem *pb, real *q, span sp, int64_t n1, real *s) {
    real *kt = pb->transposed + sp.block * D * BLOCK;
    matmul(G, n1, D, rows_of(q, D), rows_of(kt, BLOCK), rows_of(s, BLOCK));
    for (int64_t g = 0; g < G; g++) {
        for (int64_t j = sp.hi; j < n1; j++)
            s[g * BLOCK + j] = -INFINITY;
    }
}

/* max(row_max, s[0..n)), n a multiple of LANES */
static real update_row_max(const real *s, int64_t n, real row_max) {
#pragma omp simd reduction(max : row_max)
    for (int64_t j = 0; j < n; j++)
        row_max = s[j] > row_max ? s[j] : row_max;
    return row_max;
}

/* s = e^(scale (s - row_max)), in place; row_sum [LANES] += their sums, a lane each */
static void exp_scores(real *s, int64_t n, real scale, real row_max, real *row_sum) {
    real sums[LANES] = {0};
    for (int64_t j = 0; j < n; j += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            s[j + lane] = exp_bounded(scale * (s[j + lane] - row_max));
            sums[lane] += s[j + lane];
        }
    }
    add_scaled(row_sum, 1, sums, LANES);
}

/* Online softmax (Milakov and Gimelshein 2018), one span. With the largest score so far m and m'
 * after the span: o = o e^(m-m') + sum_j e^(s_j-m') v_j, and the same for the sum; differences are
 * scaled after they are taken. At the first span m = -inf: zeros are multiplied by 2^-125. */
static void softmax_step(const problem *pb, work *w, real *q, span sp, real *o) {
    real *v = pb->natural + sp.block * BLOCK * D;
    const int64_t n1 = (sp.hi + LANES - 1) / LANES * LANES;
    score(pb, q, sp, n1, w->s);
    for (int64_t g = 0; g < G; g++) {
        real *s = w->s + g * BLOCK, *row_max = w->row_max + g, *row_sum = w->row_sum + g * LANES;
        const real new_max = update_row_max(s, n1, *row_max);
        if (new_max > *row_max) { /* seldom, after the first few blocks */
            const real rescale = exp_bounded(pb->scale * (*row_max - new_max));
            for (int lane = 0; lane < LANES; lane++)
                row_sum[lane] *= rescale;
            for (int64_t c = 0; c < D; c++)
                o[g * D + c] *= rescale;
            *row_max = new_max;
        }
        exp_scores(s, n1, pb->scale, *row_max, row_sum);
    }
    matmul_add(G, D, sp.hi, rows_of(w->s, BLOCK), rows_of(v, D), rows_of(o, D));
}

static void softmax_init(work *w, real *o) {
    memset(o, 0, sizeof(real) * G * D);
    memset(w->row_sum, 0, sizeof w->row_sum);
    for (int64_t g = 0; g < G; g++)
        w->row_max[g] = -INFINITY;
}

/* o is divided by the sum once, when that is known. */
static void softmax_finalize(const work *w, real *o) {
    for (int64_t g = 0; g < G; g++) {
        real sum = 0;
        for (int lane = 0; lane < LANES; lane++)
            sum += w->row_sum[g * LANES + lane];
        for (int64_t c = 0; c < D; c++)
            o[g * D + c] *= 1 / sum;
    }
}

/* Query after query: a query's keys and values are fetched once for its whole group. */
void attend_7_tiles(const problem *pb) {
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
