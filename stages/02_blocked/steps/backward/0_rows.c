/** @file
 *  @brief Step 0, rows: stage 01's loops. Each head of each query attends again, for p and o, then
 *  adds its share of every gradient.
 *
 *  Each head fetches K and V for itself, a row at a time. Six products a key; most of the time goes
 *  into the two that are dot products, q.k and d_o.v: each is one sum in order.
 */
#include "problem.h"

typedef struct work {
    int32_t key_list[SLC_COUNT * BLOCK]; /* the tokens that a query sees */
    real p[SLC_COUNT * BLOCK];           /* their probabilities, in the list's order */
    real o[D], d_o[D];
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

/* The forward of one head: p and o over the n tokens listed. */
static void attend(const problem *pb, work *w, const real *q, int64_t n) {
    real *p = w->p, row_max = -INFINITY, row_sum = 0;
    for (int64_t i = 0; i < n; i++) {
        p[i] = dot(q, pb->k + w->key_list[i] * D, D);
        row_max = p[i] > row_max ? p[i] : row_max;
    }
    for (int64_t i = 0; i < n; i++) {
        p[i] = expf(pb->scale * (p[i] - row_max));
        row_sum += p[i];
    }
    memset(w->o, 0, sizeof w->o);
    for (int64_t i = 0; i < n; i++) {
        p[i] /= row_sum;
        add_scaled(w->o, p[i], pb->v + w->key_list[i] * D, D);
    }
}

/* Softmax attention's gradient, with d_o = gate dout:
 *   dv_s += p_s d_o,  dp_s = d_o.v_s,  ds_s = p_s (dp_s - sum_u p_u dp_u),
 *   dq += scale ds_s k_s,  dk_s += scale ds_s q;   and sum_u p_u dp_u = d_o.o. */
static void attend_backward(const problem *pb, const work *w, const real *q, int64_t n, real *dq) {
    const real delta = dot(w->d_o, w->o, D);
    for (int64_t i = 0; i < n; i++) {
        const int64_t s = w->key_list[i];
        const real p = w->p[i], ds = p * (dot(w->d_o, pb->v + s * D, D) - delta);
        add_scaled(pb->gradient[VALUES] + s * D, p, w->d_o, D);
        add_scaled(dq, pb->scale * ds, pb->k + s * D, D);
        add_scaled(pb->gradient[KEYS] + s * D, pb->scale * ds, q, D);
    }
}

/* One head, number `head` of all; the n tokens that its query sees are listed. */
static void branch_backward(const problem *pb, work *w, int64_t head, int64_t n) {
    const real *q = pb->q + head * D, *dout = pb->dout + head * D;
    attend(pb, w, q, n);
    pb->dgate[head] = dot(dout, w->o, D);
    for (int64_t c = 0; c < D; c++)
        w->d_o[c] = pb->gate[head] * dout[c];
    attend_backward(pb, w, q, n, pb->dq + head * D);
}

/* Gradients are sums over rows; they start from zero. */
static void zero_gradients(const problem *pb) {
    memset(pb->dq, 0, (size_t)(pb->T * G * D) * sizeof(real));
    for (int pair = 0; pair < PAIR; pair++)
        memset(pb->gradient[pair], 0, (size_t)(pb->blocks * BLOCK * D) * sizeof(real));
}

/* Query after query, head after head. */
void backward_0_rows(const problem *pb) {
    work w;
    zero_gradients(pb);
    for (int64_t t = 0; t < pb->T; t++) {
        for (int64_t g = 0; g < G; g++)
            branch_backward(pb, &w, t * G + g, visible_slc(pb, &w, t));
    }
}
