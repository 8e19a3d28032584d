/** @file
 *  @brief Step 1, saved: forward keeps o, row_max and inv_sum, and p of a key needs that key alone.
 *
 *  p = e^(scale (s - row_max)) inv_sum: no pass over the keys for the sum, none for o. One product
 *  of six goes, but the two dot products stay, so it is hardly faster. The price: D + 2 floats a
 *  head and query are kept from forward to backward.
 */
#include "problem.h"

typedef struct work {
    int32_t key_list[SLC_COUNT * BLOCK]; /* the tokens that a query sees */
    real d_o[D];
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

/* Softmax attention's gradient for head number `row` of all, with d_o = gate dout:
 *   dv_s += p_s d_o,  dp_s = d_o.v_s,  ds_s = p_s (dp_s - sum_u p_u dp_u),
 *   dq += scale ds_s k_s,  dk_s += scale ds_s q;   and sum_u p_u dp_u = d_o.o = gate dgate. */
static void attend_backward(const problem *pb, const work *w, int64_t row, int64_t n, real *dq) {
    const real *q = pb->q + row * D, delta = pb->gate[row] * pb->dgate[row];
    const real row_max = pb->stats[2 * row], inv_sum = pb->stats[2 * row + 1];
    for (int64_t i = 0; i < n; i++) {
        const int64_t s = w->key_list[i];
        const real p = expf(pb->scale * (dot(q, pb->k + s * D, D) - row_max)) * inv_sum;
        const real ds = p * (dot(w->d_o, pb->v + s * D, D) - delta);
        add_scaled(pb->gradient[VALUES] + s * D, p, w->d_o, D);
        add_scaled(dq, pb->scale * ds, pb->k + s * D, D);
        add_scaled(pb->gradient[KEYS] + s * D, pb->scale * ds, q, D);
    }
}

/* One head, number `row` of all; the n tokens that its query sees are listed. */
static void branch_backward(const problem *pb, work *w, int64_t row, int64_t n) {
    const real *dout = pb->dout + row * D;
    pb->dgate[row] = dot(dout, pb->out_x + row * D, D);
    for (int64_t c = 0; c < D; c++)
        w->d_o[c] = pb->gate[row] * dout[c];
    attend_backward(pb, w, row, n, pb->dq + row * D);
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
