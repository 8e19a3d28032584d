/** @file
 *  @brief Step 4: vector lanes over keys. The group's G rows make both products matrix products.
 */
#include "../steps.h"

/* The tokens s <= t of the blocks in idx (Eq. 12), into w->spans, a span a block; returns how many.
 * 16 spans say what took 1024 tokens. */
static int64_t keep_slc(const problem *pb, work *w, int64_t t) {
    const int32_t *idx = pb->idx + t * pb->n;
    int64_t n = 0;
    for (int64_t i = 0; i < pb->n && idx[i] >= 0; i++) {
        const int64_t left = t + 1 - (int64_t)idx[i] * BLOCK;
        w->spans[n++] = (span){idx[i], (int32_t)(left < BLOCK ? left : BLOCK)};
    }
    return n;
}

/* max(most, row[0..n)), n a whole number of vectors: a maximum a lane, then theirs. */
static inline real largest(const real *row, int64_t n, real most) {
    real lanes[LANES], top = row[0];
    memcpy(lanes, row, sizeof lanes);
    for (int64_t j = LANES; j < n; j += LANES) {
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] = row[j + lane] > lanes[lane] ? row[j + lane] : lanes[lane];
    }
    for (int lane = 1; lane < LANES; lane++)
        top = lanes[lane] > top ? lanes[lane] : top;
    return top > most ? top : most;
}

/* row = 2^(scale (row - most)), in place; sum += its LANES partial sums. */
static inline void exponentiate(real *row, int64_t n, real scale, real most, real *sum) {
    real part[LANES] = {0};
    for (int64_t j = 0; j < n; j += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            const real e = exp2_bounded(scale * (row[j + lane] - most));
            row[j + lane] = e;
            part[lane] += e;
        }
    }
    for (int lane = 0; lane < LANES; lane++)
        sum[lane] += part[lane];
}

/* One span of a group (Milakov and Gimelshein 2018). With the largest score so far m and m' after
 * the span: o = o 2^(m-m') + sum_j 2^(s_j-m') v_j, and the same for the sum. `scale` makes
 * log2 of it: e^x = 2^(x log2 e). Here the transposed K pays: S [G,64] = Q [G,D] Kt [D,64] is a sum
 * of contiguous rows, 16 keys to a vector, as O [G,D] += P [G,64] V [64,D] is. */
static void attend_span(const problem *pb, work *w, const real *q, span sp, real *o) {
    const int64_t G = pb->G, D = pb->D, whole = (sp.hi + LANES - 1) / LANES * LANES;
    const real *kt = pb->kt + sp.block * D * BLOCK, *v = pb->vb + sp.block * BLOCK * D;
    const real scale = (real)(pb->scale * 1.4426950408889634);
    matmul(G, whole, D, (operand){q, D, 1}, kt, BLOCK, w->s, BLOCK, 0);
    for (int64_t g = 0; g < G; g++) {
        real *s = w->s + g * BLOCK, *most = w->most + g, *sum = w->row_sum + g * LANES;
        for (int64_t j = sp.hi; j < whole; j++)
            s[j] = -INFINITY; /* whole vectors, then a mask: there is no other code for a tail */
        const real now = largest(s, whole, *most);
        if (now != *most) { /* seldom, after the first few blocks */
            const real shrink = exp2_bounded(scale * (*most - now));
            for (int lane = 0; lane < LANES; lane++)
                sum[lane] *= shrink;
            for (int64_t c = 0; c < D; c++)
                o[g * D + c] *= shrink;
            *most = now;
        }
        exponentiate(s, whole, scale, now, sum);
    }
    matmul(G, D, sp.hi, (operand){w->s, BLOCK, 1}, v, D, o, D, 1);
}

/* A group: q [G,D] and o [G,D] over n spans. o is divided by the sum once, when that is known. */
static void attend(const problem *pb, work *w, const real *q, int64_t n, real *o) {
    const int64_t G = pb->G, D = pb->D;
    for (int64_t g = 0; g < G; g++)
        w->most[g] = -INFINITY;
    memset(w->row_sum, 0, (size_t)(G * LANES) * sizeof *w->row_sum);
    memset(o, 0, (size_t)(G * D) * sizeof *o);
    for (int64_t i = 0; i < n; i++)
        attend_span(pb, w, q, w->spans[i], o);
    for (int64_t g = 0; g < G; g++) {
        real sum = 0;
        for (int lane = 0; lane < LANES; lane++)
            sum += w->row_sum[g * LANES + lane];
        for (int64_t c = 0; c < D; c++)
            o[g * D + c] *= 1 / sum;
    }
}

/* Query after query: a query's keys are fetched once for its whole group. */
void step_4_lanes(const problem *pb) {
    const int64_t G = pb->G, D = pb->D;
    for (int64_t t = 0; t < pb->T; t++) {
        const int64_t n = keep_slc(pb, pb->work, t);
        attend(pb, pb->work, pb->q + t * G * D, n, pb->out + t * G * D);
    }
}
