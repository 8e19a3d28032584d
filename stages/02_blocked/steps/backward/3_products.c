/** @file
 *  @brief Step 3, products: keys and values in blocks, five matrix products of the group with each.
 *
 *  Vector lanes and register tiles in place of dot products of single rows: many times faster. In a
 *  product C = A B rows of B and C are contiguous: scores and dp want K and V transposed, dq wants
 *  K as it is, and dk and dv take ds and p by columns.
 *
 *  This repeats attend/1, the layout, and attend/4 to attend/7 in one move: products of rows, whole
 *  vectors and `omp simd`, exp_bounded(), and the tiles of tile.c. dot() is left for dgate alone.
 */
#include "problem.h"

/* The keys 0..hi-1 of one block. */
typedef struct span {
    int32_t block, hi;
} span;

typedef struct work {
    span spans[SLC_COUNT];            /* what a query sees */
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
 * The last three take the span's keys alone. Lanes after those hold what came of keys that the
 * query does not see, and nothing reads them: so they are not masked here. The stage does mask
 * them, for its score() is forward's as well. */
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

/* dgate = <dout,o>, for the group of the query at t. */
static void gate_backward(const problem *pb, int64_t t) {
    for (int64_t head = t * G; head < (t + 1) * G; head++)
        pb->dgate[head] = dot(pb->dout + head * D, pb->out_x + head * D, D);
}

/* Gradients are sums over rows; they start from zero. */
static void zero_gradients(const problem *pb) {
    memset(pb->dq, 0, (size_t)(pb->T * G * D) * sizeof(real));
    for (int pair = 0; pair < PAIR; pair++)
        memset(pb->gradient[pair], 0, (size_t)(pb->blocks * BLOCK * D) * sizeof(real));
}

/* Query after query: a block is fetched once for the whole group. */
void backward_3_products(const problem *pb) {
    work w;
    zero_gradients(pb);
    for (int64_t t = 0; t < pb->T; t++) {
        const int64_t n = visible_slc(pb, t, w.spans);
        gate_backward(pb, t);
        for (int64_t i = 0; i < n; i++)
            backward_span(pb, &w, t, w.spans[i]);
    }
}
