/** @file
 *  @brief Step 1, saved: forward keeps o, row_max and inv_sum, and p of a key needs that key alone.
 *
 *  p = e^(scale (s - row_max)) inv_sum: no pass over the keys for the sum, none for o. One product
 *  of six goes, but the two dot products stay, so it is hardly faster. The price: D + 2 floats a
 *  head and query are kept from forward to backward.
 *
 *  With it stage 02's equations take the place of stage 01's. There the gate goes into a row first,
 *  d_o = gate dout, and delta = d_o.o. Here dout stays as it is, and the gate is a factor of p, of
 *  dp and of delta = gate dgate, for dgate = dout.o is a result anyway. And ds has its scale in it.
 */
#include "problem.h"

typedef struct work {
    int32_t key_list[SLC_COUNT * BLOCK]; /* the tokens that a query sees */
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

/* The tokens s <= t of the query's blocks (Eq. 12), into w->key_list; returns how many. */
static int64_t visible_slc(const problem *pb, work *w, int64_t t) {
    const int32_t *idx = pb->block_idx + t * SLC_COUNT;
    int64_t n = 0;
    for (int64_t i = 0; i < SLC_COUNT && idx[i] >= 0; i++) {
        const int64_t first = (int64_t)idx[i] * BLOCK, end = first + BLOCK;
        for (int64_t s = first; s < end && s <= t; s++)
            w->key_list[n++] = (int32_t)s;
    }
    return n;
}

/* Softmax attention's gradient, for head number `head` of all; the n tokens that its query sees are
 * listed.
 *   dp_s = dout.v_s,  ds_s = scale p_s (gate dp_s - delta),  delta = gate dgate,
 *   dv_s += gate p_s dout,  dq += ds_s k_s,  dk_s += ds_s q;   and delta = sum_u p_u gate dp_u. */
static void attend_backward(const problem *pb, const work *w, int64_t head, int64_t n) {
    const real *q = pb->q + head * D, *dout = pb->dout + head * D;
    const real gate = pb->gate[head], delta = gate * pb->dgate[head];
    const real row_max = pb->stats[2 * head], inv_sum = pb->stats[2 * head + 1];
    for (int64_t i = 0; i < n; i++) {
        const int64_t s = w->key_list[i];
        const real p = expf(pb->scale * (dot(q, pb->k + s * D, D) - row_max)) * inv_sum;
        const real ds = pb->scale * p * (gate * dot(dout, pb->v + s * D, D) - delta);
        add_scaled(pb->gradient[VALUES] + s * D, gate * p, dout, D);
        add_scaled(pb->dq + head * D, ds, pb->k + s * D, D);
        add_scaled(pb->gradient[KEYS] + s * D, ds, q, D);
    }
}

/* The same head: dgate = <dout,o>, then the rest. */
static void branch_backward(const problem *pb, const work *w, int64_t head, int64_t n) {
    pb->dgate[head] = dot(pb->dout + head * D, pb->out_x + head * D, D);
    attend_backward(pb, w, head, n);
}

/* Gradients are sums over rows; they start from zero. */
static void zero_gradients(const problem *pb) {
    memset(pb->dq, 0, (size_t)(pb->T * G * D) * sizeof(real));
    for (int pair = 0; pair < PAIR; pair++)
        memset(pb->gradient[pair], 0, (size_t)(pb->blocks * BLOCK * D) * sizeof(real));
}

/* Query after query, head after head. */
void backward_1_saved(const problem *pb) {
    work w;
    zero_gradients(pb);
    for (int64_t t = 0; t < pb->T; t++) {
        for (int64_t g = 0; g < G; g++)
            branch_backward(pb, &w, t * G + g, visible_slc(pb, &w, t));
    }
}
