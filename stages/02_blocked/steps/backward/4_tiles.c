/** @file
 *  @brief Step 4, tiles: QUERY_TILE neighbouring queries visit the blocks together, block by block.
 *
 *  A block's keys, values and gradients, 80 KiB, stay in the L2 cache for the queries of the tile
 *  that see it. No flop is saved, so little is gained while all blocks fit in the L3 cache; expect
 *  more in a longer text: run it with T=16384. Here queries choose their blocks at random; it is
 *  more where neighbours see the same, as they do in a window.
 */
#include "problem.h"

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
    const matrix q = rows_of(pb->q + head * D, D), dout = rows_of(pb->dout + head * D, D);
    matmul(G, n, D, q, rows_of(pb->transposed[KEYS] + key * D, BLOCK), rows_of(w->s, BLOCK));
    matmul(G, n, D, dout, rows_of(pb->transposed[VALUES] + key * D, BLOCK), rows_of(w->dp, BLOCK));
    for (int64_t g = 0; g < G; g++)
        softmax_backward(pb, head + g, n, w->s + g * BLOCK, w->dp + g * BLOCK);
    matmul_add(G, D, sp.hi, rows_of(w->dp, BLOCK), rows_of(pb->natural[KEYS] + key * D, D),
               rows_of(pb->dq + head * D, D));
    matmul_add(sp.hi, D, G, columns_of(w->dp, BLOCK), q, rows_of(pb->gradient[KEYS] + key * D, D));
    matmul_add(sp.hi, D, G, columns_of(w->s, BLOCK), dout,
               rows_of(pb->gradient[VALUES] + key * D, D));
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

/* Gradients are sums over rows; they start from zero. */
static void zero_gradients(const problem *pb) {
    memset(pb->dq, 0, (size_t)(pb->T * G * D) * sizeof(real));
    for (int pair = 0; pair < PAIR; pair++)
        memset(pb->gradient[pair], 0, (size_t)(pb->blocks * BLOCK * D) * sizeof(real));
}

/* Tile after tile. */
void backward_4_tiles(const problem *pb) {
    work w;
    zero_gradients(pb);
    for (int64_t row = 0; row < pb->T; row += QUERY_TILE)
        backward_tile(pb, &w, row, pb->T - row < QUERY_TILE ? pb->T - row : QUERY_TILE);
}
