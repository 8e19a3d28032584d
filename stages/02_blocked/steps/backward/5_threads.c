/** @file
 *  @brief Step 5, threads: tiles go to threads, each with dk and dv of its own, which are added up.
 *
 *  Two tiles may add to the same key. Atomic additions would come in another order each run; here
 *  the order is fixed, but sums over queries are split, and round differently. Nearly as many times
 *  faster as there are cores; the price is a dk and a dv a thread, to zero and to add up.
 */
#include "problem.h"

#include <omp.h>

enum { QUERY_TILE = 64 };

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

static inline real dot(const real *a, const real *b, int64_t n) {
    real sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
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

/* What each of the tile's queries row..row+count-1 sees; returns the blocks that this lies in. */
static block_range list_spans(const problem *pb, work *w, int64_t row, int64_t count) {
    block_range range = {INT64_MAX, 0};
    for (int64_t i = 0, n = 0; i < count; i++) {
        w->next_span[i] = n;
        n += visible_slc(pb, row + i, w->spans + n);
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

/* From scores to probabilities and their gradients, for head number `head` of all: s becomes gate
 * p, and dp becomes ds = scale p (gate dp - delta), delta = gate dgate. n is whole vectors. */
static void softmax_backward(const problem *pb, int64_t head, int64_t n, real *s, real *dp) {
    const real scale = pb->scale, gate = pb->gate[head], delta = gate * pb->dgate[head];
    const real row_max = pb->stats[2 * head], inv_sum = pb->stats[2 * head + 1];
    n = n / LANES * LANES; /* tells the compiler that there is no tail */
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        const real p = exp_bounded(scale * (s[j] - row_max)) * inv_sum;
        dp[j] = scale * p * (gate * dp[j] - delta);
        s[j] = gate * p;
    }
}

/* Softmax attention's gradient over one span of the group of the query at t:
 *   S  = Q K^T                 dP = dOut V^T                       columns: keys, whole vectors
 *   dS = scale P (gate dP - delta),  delta = gate dgate = sum over keys of P gate dP
 *   dQ += dS K                 dK += dS^T Q                 dV += (gate P)^T dOut
 * The last three take the span's keys alone; nothing reads the lanes after those. */
static void backward_span(const problem *pb, work *w, int64_t t, span sp) {
    const int64_t n = (sp.hi + LANES - 1) / LANES * LANES, head = t * G, key = sp.block * BLOCK;
    const int64_t own = key + omp_get_thread_num() * PAIR * pb->blocks * BLOCK;
    const matrix q = rows_of(pb->q + head * D, D), dout = rows_of(pb->dout + head * D, D);
    matmul(G, n, D, q, rows_of(pb->transposed[KEYS] + key * D, BLOCK), rows_of(w->s, BLOCK));
    matmul(G, n, D, dout, rows_of(pb->transposed[VALUES] + key * D, BLOCK), rows_of(w->dp, BLOCK));
    for (int64_t g = 0; g < G; g++)
        softmax_backward(pb, head + g, n, w->s + g * BLOCK, w->dp + g * BLOCK);
    matmul_add(G, D, sp.hi, rows_of(w->dp, BLOCK), rows_of(pb->natural[KEYS] + key * D, D),
               rows_of(pb->dq + head * D, D));
    matmul_add(sp.hi, D, G, columns_of(w->dp, BLOCK), q, rows_of(pb->gradient[KEYS] + own * D, D));
    matmul_add(sp.hi, D, G, columns_of(w->s, BLOCK), dout,
               rows_of(pb->gradient[VALUES] + own * D, D));
}

/* dgate = <dout,o>, for the groups of the queries row..row+count-1. */
static void gate_backward(const problem *pb, int64_t row, int64_t count) {
    for (int64_t head = row * G; head < (row + count) * G; head++)
        pb->dgate[head] = dot(pb->dout + head * D, pb->out_x + head * D, D);
}

/* A tile: block after block in the outer loop, so that a block is fetched once for all the queries
 * that see it. */
static void backward_tile(const problem *pb, work *w, int64_t row, int64_t count) {
    gate_backward(pb, row, count);
    const block_range range = list_spans(pb, w, row, count);
    for (int64_t block = range.first; block < range.end; block++) {
        for (int64_t i = 0; i < count; i++) {
            for (; in_block(w, i, block); w->next_span[i]++)
                backward_span(pb, w, row + i, w->spans[w->next_span[i]]);
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

/* Gradients are sums over rows; they start from zero, in all copies: there may be fewer threads
 * than were asked for, and sum_threads() adds the copies of those that never came, too. */
static void zero_gradients(const problem *pb) {
    const int64_t count = PAIR * pb->blocks * BLOCK * D; /* dk and dv of one thread */
    memset(pb->dq, 0, (size_t)(pb->T * G * D) * sizeof(real));
#pragma omp parallel for num_threads(pb->threads) schedule(static, 1)
    for (int thread = 0; thread < pb->threads; thread++)
        memset(pb->gradient[KEYS] + thread * count, 0, (size_t)count * sizeof(real));
}

/* Tile after tile, each thread its own. */
void backward_5_threads(const problem *pb) {
    zero_gradients(pb);
#pragma omp parallel for num_threads(pb->threads) schedule(static, 1)
    for (int64_t row = 0; row < pb->T; row += QUERY_TILE) {
        work w;
        backward_tile(pb, &w, row, pb->T - row < QUERY_TILE ? pb->T - row : QUERY_TILE);
    }
    sum_threads(pb, pb->gradient[KEYS], PAIR * pb->blocks * BLOCK * D);
}
