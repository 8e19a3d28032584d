/** @file
 *  @brief Step 2, group: spans for the list, each block to all G heads, scores before sums.
 *
 *  As in attend/1 and attend/2 spans of blocks replace the list of keys, and a block is given to
 *  all G heads before the next: what is fetched for the first head is in the L1 or L2 cache for the
 *  others. And for each head the scores of the block and their dp come first, [G,BLOCK] each, then
 *  what they add to the three gradients: five products of matrices, still written as loops. A
 *  little faster: the dot products are what they were.
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

/* y += a x over n elements */
static inline void add_scaled(real *y, real a, const real *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
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
 * p, and dp becomes ds = scale p (gate dp - delta), delta = gate dgate. */
static void softmax_backward(const problem *pb, int64_t head, int64_t n, real *s, real *dp) {
    const real scale = pb->scale, gate = pb->gate[head], delta = gate * pb->dgate[head];
    const real row_max = pb->stats[2 * head], inv_sum = pb->stats[2 * head + 1];
    for (int64_t j = 0; j < n; j++) {
        const real p = expf(scale * (s[j] - row_max)) * inv_sum;
        dp[j] = scale * p * (gate * dp[j] - delta);
        s[j] = gate * p;
    }
}

/* Softmax attention's gradient over one span of the group of the query at t:
 *   dp_s = dout.v_s,  ds_s = scale p_s (gate dp_s - delta),  delta = gate dgate,
 *   dv_s += gate p_s dout,  dq += ds_s k_s,  dk_s += ds_s q;   and delta = sum_u p_u gate dp_u. */
static void backward_span(const problem *pb, work *w, int64_t t, span sp) {
    const int64_t head = t * G, key = sp.block * BLOCK;
    real *dk = pb->gradient[KEYS] + key * D, *dv = pb->gradient[VALUES] + key * D;
    for (int64_t g = 0; g < G; g++) {
        const real *q = pb->q + (head + g) * D, *dout = pb->dout + (head + g) * D;
        real *s = w->s + g * BLOCK, *dp = w->dp + g * BLOCK, *dq = pb->dq + (head + g) * D;
        for (int64_t j = 0; j < sp.hi; j++) {
            s[j] = dot(q, pb->k + (key + j) * D, D);
            dp[j] = dot(dout, pb->v + (key + j) * D, D);
        }
        softmax_backward(pb, head + g, sp.hi, s, dp);
        for (int64_t j = 0; j < sp.hi; j++) {
            add_scaled(dq, dp[j], pb->k + (key + j) * D, D);
            add_scaled(dk + j * D, dp[j], q, D);
            add_scaled(dv + j * D, s[j], dout, D);
        }
    }
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
void backward_2_group(const problem *pb) {
    work w;
    zero_gradients(pb);
    for (int64_t t = 0; t < pb->T; t++) {
        const int64_t n = visible_slc(pb, t, w.spans);
        gate_backward(pb, t);
        for (int64_t i = 0; i < n; i++)
            backward_span(pb, &w, t, w.spans[i]);
    }
}
