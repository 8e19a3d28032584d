/** @file
 *  @brief Step 4, rows: both products are sums of contiguous rows.
 *
 *  Expected: twice as fast or more. S = Q Kt and O += P V are the same loop now, a row of B times a
 *  number added to a row of C, and its elements do not wait for each other: compilers make vectors
 *  of it. For this keys were transposed in step 1. What remains: a vector of C is loaded and stored
 *  again for each multiply-add.
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

/* y += a x over n elements: independent of each other, so compilers make vectors of them. */
static void add_scaled(real *y, real a, const real *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* A matrix whose rows lie `row` apart. */
typedef struct matrix {
    real *at;
    int64_t row;
} matrix;

/* C [M,N] += A [M,K] B [K,N]: row i of C is the sum over k of A[i,k] times row k of B. */
static void matmul_add(int64_t M, int64_t N, int64_t K, matrix a, matrix b, matrix c) {
    for (int64_t i = 0; i < M; i++) {
        for (int64_t k = 0; k < K; k++)
            add_scaled(c.at + i * c.row, a.at[i * a.row + k], b.at + k * b.row, N);
    }
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

/* Scores q_g.k_j of the G heads against a span, s [G,BLOCK] */
static void score(const problem *pb, real *q, span sp, real *s) {
    real *kt = pb->transposed + sp.block * D * BLOCK;
    memset(s, 0, sizeof(real) * G * BLOCK);
    matmul_add(G, sp.hi, D, (matrix){q, D}, (matrix){kt, BLOCK}, (matrix){s, BLOCK});
}

/* max(row_max, s[0..n)) */
static real update_row_max(const real *s, int64_t n, real row_max) {
    for (int64_t j = 0; j < n; j++)
        row_max = s[j] > row_max ? s[j] : row_max;
    return row_max;
}

/* s = e^(scale (s - row_max)), in place; row_sum += their sum */
static void exp_scores(real *s, int64_t n, real scale, real row_max, real *row_sum) {
    for (int64_t j = 0; j < n; j++) {
        s[j] = expf(scale * (s[j] - row_max));
        *row_sum += s[j];
    }
}

/* Online softmax (Milakov and Gimelshein 2018), one span. With the largest score so far m and m'
 * after the span: o = o e^(m-m') + sum_j e^(s_j-m') v_j, and the same for the sum; differences are
 * scaled after they are taken. At the first span m = -inf: zeros are multiplied by expf(-inf) = 0.
 */
static void softmax_step(const problem *pb, work *w, real *q, span sp, real *o) {
    real *v = pb->natural + sp.block * BLOCK * D;
    score(pb, q, sp, w->s);
    for (int64_t g = 0; g < G; g++) {
        real *s = w->s + g * BLOCK, *row_max = w->row_max + g, *row_sum = w->row_sum + g;
        const real new_max = update_row_max(s, sp.hi, *row_max);
        if (new_max > *row_max) { /* seldom, after the first few blocks */
            const real rescale = expf(pb->scale * (*row_max - new_max));
            *row_sum *= rescale;
            for (int64_t c = 0; c < D; c++)
                o[g * D + c] *= rescale;
            *row_max = new_max;
        }
        exp_scores(s, sp.hi, pb->scale, *row_max, row_sum);
    }
    matmul_add(G, D, sp.hi, (matrix){w->s, BLOCK}, (matrix){v, D}, (matrix){o, D});
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
void attend_4_rows(const problem *pb) {
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
