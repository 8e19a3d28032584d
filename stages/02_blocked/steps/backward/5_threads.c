/** @file
 *  @brief Step 5, threads: tiles go to threads, each with dk and dv of its own, which are added up.
 *
 *  Two tiles may add to the same key. Atomic additions would come in another order each run; here
 *  the order is fixed, but sums over queries are split, and round differently. Nearly as many times
 *  faster as there are cores; the price is a dk and a dv a thread, to zero and to add up.
 */
#include "problem.h"

#include <omp.h>

enum { QUERY_TILE = 32 };

/* The keys 0..hi-1 of one block. */
typedef struct span {
    int32_t block, hi;
} span;

/* The blocks first..end-1. */
typedef struct block_range {
    int64_t first, end;
} block_range;

typedef struct work {
    span spans[QUERY_TILE * SLC_COUNT]; /* what each query of the tile sees, in turn */
    int64_t next_span[QUERY_TILE], end_span[QUERY_TILE]; /* of each query's spans */
    real s[G * BLOCK], dp[G * BLOCK]; /* [G,BLOCK] scores, then gate p; their gradients */
} work;

/* <a,b> over n elements, in LANES sums of their own; n is whole vectors */
static inline real dot(const real *a, const real *b, int64_t n) {
    real sums[LANES] = {0}, sum = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            sums[j] += a[i + j] * b[i + j];
    }
    for (int j = 0; j < LANES; j++)
        sum += sums[j];
    return sum;
}

/* The tokens s <= t of the query's blocks (Eq. 12), a span a block; returns how many. */
static int64_t visible_slc(const problem *pb, int64_t t, span *spans) {
    const int32_t *idx = pb->block_idx + t * SLC_COUNT;
    int64_t n = 0;
    for (int64_t i = 0; i < SLC_COUNT && idx[i] >= 0; i++) {
        const int64_t left = t + 1 - (int64_t)idx[i] * BLOCK;
        spans[n++] = (span){idx[i], (int32_t)(left < BLOCK ? left : BLOCK)};
    }
    return n;
}

/* What each of the tile's queries t..t+count-1 sees; returns the blocks that this lies in. */
static block_range list_spans(const problem *pb, work *w, int64_t t, int64_t count) {
    block_range range = {INT64_MAX, 0};
    for (int64_t i = 0, n = 0; i < count; i++) {
        w->next_span[i] = n;
        n += visible_slc(pb, t + i, w->spans + n);
        w->end_span[i] = n;
        const int64_t first = w->spans[w->next_span[i]].block, last = w->spans[n - 1].block;
        range.first = first < range.first ? first : range.first;
        range.end = last >= range.end ? last + 1 : range.end;
    }
    return range;
}

/* Whether query i's next span lies in this block. */
static int in_block(const work *w, int64_t i, int64_t block) {
    return w->next_span[i] < w->end_span[i] && w->spans[w->next_span[i]].block == block;
}

/* From scores to probabilities and their gradients, for head number `row` of all: s becomes gate p,
 * and dp becomes ds = scale p (gate dp - delta), delta = gate dgate. n is whole vectors. */
static void softmax_backward(const problem *pb, int64_t row, int64_t n, real *s, real *dp) {
    const real scale = pb->scale, gate = pb->gate[row], delta = gate * pb->dgate[row];
    const real row_max = pb->stats[2 * row], inv_sum = pb->stats[2 * row + 1];
    n = n / LANES * LANES; /* tells the compiler that there is no tail */
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        const real p = exp_bounded(scale * (s[j] - row_max)) * inv_sum;
        dp[j] = scale * p * (gate * dp[j] - delta);
        s[j] = gate * p;
    }
}

/* Softmax attention's gradient over one span of the group of the query at t, with d_o = gate dout:
 *   dv_s += p_s d_o,  dp_s = d_o.v_s,  ds_s = p_s (dp_s - sum_u p_u dp_u),
 *   dq += scale ds_s k_s,  dk_s += scale ds_s q;   and sum_u p_u dp_u = d_o.o = gate dgate.
 * Scores and dp are whole vectors; what adds to gradients takes the span's keys alone. */
static void backward_span(const problem *pb, work *w, int64_t t, span sp) {
    const int64_t n = (sp.hi + LANES - 1) / LANES * LANES, row = t * G, key = sp.block * BLOCK;
    const int64_t own = key + omp_get_thread_num() * PAIR * pb->blocks * BLOCK;
    const matrix q = rows_of(pb->q + row * D, D), dout = rows_of(pb->dout + row * D, D);
    matmul(G, n, D, q, rows_of(pb->transposed[KEYS] + key * D, BLOCK), rows_of(w->s, BLOCK));
    matmul(G, n, D, dout, rows_of(pb->transposed[VALUES] + key * D, BLOCK), rows_of(w->dp, BLOCK));
    for (int64_t g = 0; g < G; g++)
        softmax_backward(pb, row + g, n, w->s + g * BLOCK, w->dp + g * BLOCK);
    matmul_add(G, D, sp.hi, rows_of(w->dp, BLOCK), rows_of(pb->natural[KEYS] + key * D, D),
               rows_of(pb->dq + row * D, D));
    matmul_add(sp.hi, D, G, columns_of(w->dp, BLOCK), q, rows_of(pb->gradient[KEYS] + own * D, D));
    matmul_add(sp.hi, D, G, columns_of(w->s, BLOCK), dout,
               rows_of(pb->gradient[VALUES] + own * D, D));
}

/* dgate = <dout,o>, for the groups of the queries t..t+count-1. */
static void gate_backward(const problem *pb, int64_t t, int64_t count) {
    for (int64_t row = t * G; row < (t + count) * G; row++)
        pb->dgate[row] = dot(pb->dout + row * D, pb->out_x + row * D, D);
}

/* A tile: block after block in the outer loop, so that a block is fetched once for all the queries
 * that see it. */
static void backward_tile(const problem *pb, work *w, int64_t t, int64_t count) {
    gate_backward(pb, t, count);
    const block_range range = list_spans(pb, w, t, count);
    for (int64_t block = range.first; block < range.end; block++) {
        for (int64_t i = 0; i < count; i++) {
            for (; in_block(w, i, block); w->next_span[i]++)
                backward_span(pb, w, t + i, w->spans[w->next_span[i]]);
        }
    }
}

/* Which tiles a thread takes is fixed, and so is the order of this sum: the same bits in every run,
 * for the same number of threads. */
static void sum_threads(const problem *pb, real *d, int64_t count) {
#pragma omp parallel for num_threads(pb->threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        for (int thread = 1; thread < pb->threads; thread++)
            d[i] += d[thread * count + i];
    }
}

/* Tile after tile; gradients are sums over rows, and each thread's start from zero. */
void backward_5_threads(const problem *pb) {
    const int64_t count = PAIR * pb->blocks * BLOCK * D; /* dk and dv of one thread */
    memset(pb->dq, 0, (size_t)(pb->T * G * D) * sizeof(real));
#pragma omp parallel num_threads(pb->threads)
    {
        work w;
        memset(pb->gradient[KEYS] + omp_get_thread_num() * count, 0, (size_t)count * sizeof(real));
#pragma omp for schedule(static, 1)
        for (int64_t t = 0; t < pb->T; t += QUERY_TILE)
            backward_tile(pb, &w, t, pb->T - t < QUERY_TILE ? pb->T - t : QUERY_TILE);
    }
    sum_threads(pb, pb->gradient[KEYS], count);
}
