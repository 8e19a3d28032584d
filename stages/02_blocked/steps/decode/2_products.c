/** @file
 *  @brief Step 2, products: the layout of attend/1 and attend/4 to attend/7 in one move.
 *
 *  The caches lie in blocks, keys transposed, and the group's two products with a block are sums of
 *  rows (attend/4); the softmax takes whole vectors (attend/5) with a polynomial for e^x
 *  (attend/6); tiles of C stay in registers (attend/7). The tile stands here, small, in place of
 *  tile.c's, so that step 3 can show the prefetch in it.
 *
 *  Many times faster. Now arithmetic no longer hides the fetching: each product waits for its
 *  block.
 */
#include "problem.h"
#include "tile.h"

/* The keys 0..hi-1 of one block. */
typedef struct span {
    int32_t block, hi;
} span;

typedef struct work {
    span spans[SLC_COUNT];   /* what the query sees */
    real s[G * BLOCK];       /* [G,BLOCK] scores of one block, then exponentials */
    real row_max[G];         /* so far */
    real row_sum[G * LANES]; /* so far, in LANES parts */
} work;

/* The tokens s <= t of the blocks in idx (Eq. 12), a span a block; returns how many. */
static int64_t visible_slc(span *spans, int64_t t, const int32_t *idx) {
    int64_t n = 0;
    for (int64_t i = 0; i < SLC_COUNT && idx[i] >= 0; i++) {
        const int64_t left = t + 1 - (int64_t)idx[i] * BLOCK;
        spans[n++] = (span){idx[i], (int32_t)(left < BLOCK ? left : BLOCK)};
    }
    return n;
}

enum { MR = 4, NV = TILE_COLS / VEC }; /* a register tile: MR rows, NV vectors; MR divides G */

/* C += A B for one tile of C, K rows of B. Rows of all three are D = BLOCK apart. */
static inline void tile(int64_t K, const real *a, const real *b, real *c) {
    vec acc[MR][NV] = {0};
    for (int64_t k = 0; k < K; k++) {
        for (int i = 0; i < MR; i++) {
            for (int n = 0; n < NV; n++)
                acc[i][n] += a[i * D + k] * *(const vec *)(b + k * D + n * VEC);
        }
    }
    for (int i = 0; i < MR; i++) {
        for (int n = 0; n < NV; n++)
            *(vec *)(c + i * D + n * VEC) += acc[i][n];
    }
}

/* C [G,64] += A [G,K] B [K,64]; the columns of B that a tile reads stay in the L1 cache for all G
 * rows of A. */
static void matmul_64(int64_t K, const real *a, const real *b, real *c) {
    for (int64_t n = 0; n < D; n += TILE_COLS) {
        for (int64_t m = 0; m < G * D; m += MR * D)
            tile(K, a + m, b + n, c + m + n);
    }
}

/* Online softmax (Milakov and Gimelshein 2018), one span of slot a's group, o [G,D]. With the
 * largest score so far m and m' after the span: o = o e^(m-m') + sum_j e^(s_j-m') v_j, and the same
 * for the sum; differences are scaled after they are taken. exp_bounded(-inf) is 2^-125, not 0: it
 * multiplies zeros, or stands in row_sum beside the 1 of the largest score. */
static void softmax_step(const problem *pb, work *w, int64_t a, span sp, real *o) {
    const int64_t first = (a * pb->max_seq_len + (int64_t)sp.block * BLOCK) * D;
    const real *kt = pb->transposed + first, *v = pb->natural + first;
    memset(w->s, 0, sizeof w->s);
    matmul_64(D, pb->q + a * G * D, kt, w->s);
    for (int64_t g = 0; g < G; g++) {
        real *s = w->s + g * BLOCK, new_max = w->row_max[g];
        for (int64_t j = sp.hi; j < BLOCK; j++)
            s[j] = -INFINITY; /* whole vectors, then a mask: there is no other code for a tail */
#pragma omp simd reduction(max : new_max)
        for (int64_t j = 0; j < BLOCK; j++)
            new_max = s[j] > new_max ? s[j] : new_max;
        if (new_max > w->row_max[g]) {
            const real rescale = exp_bounded(pb->scale * (w->row_max[g] - new_max));
            for (int lane = 0; lane < LANES; lane++)
                w->row_sum[g * LANES + lane] *= rescale;
            for (int64_t c = 0; c < D; c++)
                o[g * D + c] *= rescale;
            w->row_max[g] = new_max;
        }
        for (int64_t j = 0; j < BLOCK; j += LANES) {
            for (int lane = 0; lane < LANES; lane++) {
                s[j + lane] = exp_bounded(pb->scale * (s[j + lane] - new_max));
                w->row_sum[g * LANES + lane] += s[j + lane];
            }
        }
    }
    matmul_64(sp.hi, w->s, v, o);
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
        real sum = 0;
        for (int lane = 0; lane < LANES; lane++)
            sum += w->row_sum[g * LANES + lane];
        for (int64_t c = 0; c < D; c++)
            o[g * D + c] *= 1 / sum;
    }
}

/* One new token of each slot, slot after slot. */
void decode_2_products(const problem *pb) {
    work w;
    for (int64_t a = 0; a < SLOTS; a++) {
        const int64_t n = visible_slc(w.spans, pb->t, pb->block_idx + a * SLC_COUNT);
        attend_blocks(pb, &w, a, n, pb->out + a * G * D);
    }
}
