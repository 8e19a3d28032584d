/** @file
 *  @brief Step 9, threads: tiles of queries go to threads.
 *
 *  Expected: as many times faster as there are cores. No two tiles write the same row, so threads
 *  need no lock, and no sum depends on their number. */
#include "problem.h"
#include "tile.h"

enum { QUERY_TILE = 64 };

/* The keys 0..hi-1 of one block. The stage has a lo too: a window may begin inside a block. */
typedef struct span {
    int32_t block, hi;
} span;

typedef struct work {
    span spans[QUERY_TILE * SLC_COUNT];                  /* what each query sees, in turn */
    int64_t next_span[QUERY_TILE], end_span[QUERY_TILE]; /* of each query's spans */
    _Alignas(64) real s[G * BLOCK]; /* [G,BLOCK] scores of one span, then exponentials */
    real row_max[QUERY_TILE * G], row_sum[QUERY_TILE * G * LANES]; /* as before, of each query */
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
static void softmax_step(const problem *pb, work *w, int64_t i, real *q, span sp, real *o) {
    real *v = pb->natural + sp.block * BLOCK * D;
    const int64_t n1 = (sp.hi + LANES - 1) / LANES * LANES;
    score(pb, q, sp, n1, w->s);
    for (int64_t g = 0; g < G; g++) {
        real *s = w->s + g * BLOCK, *row_max = w->row_max + i * G + g;
        real *row_sum = w->row_sum + (i * G + g) * LANES;
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

static void softmax_init(work *w, int64_t count, real *o) {
    memset(o, 0, (size_t)(count * G * D) * sizeof *o);
    memset(w->row_sum, 0, sizeof w->row_sum);
    for (int64_t g = 0; g < count * G; g++)
        w->row_max[g] = -INFINITY;
}

/* o is divided by the sum once, when that is known. */
static void softmax_finalize(const work *w, int64_t count, real *o) {
    for (int64_t g = 0; g < count * G; g++) {
        real sum = 0;
        for (int lane = 0; lane < LANES; lane++)
            sum += w->row_sum[g * LANES + lane];
        for (int64_t c = 0; c < D; c++)
            o[g * D + c] *= 1 / sum;
    }
}

/* Whether query i's next span lies in this block. */
static int in_block(const work *w, int64_t i, int64_t block) {
    return w->next_span[i] < w->end_span[i] && w->spans[w->next_span[i]].block == block;
}

/* What each of the queries row..row+count-1 sees, into w->spans. */
static void list_spans(const problem *pb, work *w, int64_t row, int64_t count) {
    for (int64_t i = 0, n = 0; i < count; i++) {
        w->next_span[i] = n;
        n += visible_slc(w->spans + n, row + i, pb->block_idx + (row + i) * SLC_COUNT);
        w->end_span[i] = n;
    }
}

/* The queries from `row` on, QUERY_TILE of them or as many as there are: block after block in the
 * outer loop, as far as any can see. */
static void attend_tile(const problem *pb, work *w, int64_t row) {
    const int64_t left = pb->T - row, count = left < QUERY_TILE ? left : QUERY_TILE;
    real *q = pb->q + row * G * D, *o = pb->out + row * G * D;
    list_spans(pb, w, row, count);
    softmax_init(w, count, o);
    for (int64_t block = 0; block <= (row + count - 1) / BLOCK; block++) {
        for (int64_t i = 0; i < count; i++) {
            for (; in_block(w, i, block); w->next_span[i]++)
                softmax_step(pb, w, i, q + i * G * D, w->spans[w->next_span[i]], o + i * G * D);
        }
    }
    softmax_finalize(w, count, o);
}

/* A thread takes the next tile when it is done with one. The last tiles see most keys: they go
 * first. The scratch is the thread's own. */
void attend_9_threads(const problem *pb) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = (pb->T - 1) / QUERY_TILE * QUERY_TILE; row >= 0; row -= QUERY_TILE) {
        work w;
        attend_tile(pb, &w, row);
    }
}
