/** @file
 *  @brief Step 3: online softmax. One pass over the blocks; no more scores kept than of one block.
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

/* One span of a group (Milakov and Gimelshein 2018). With the largest score so far m and m' after
 * the span: o = o e^(m-m') + sum_j e^(s_j-m') v_j, and the same for the sum; differences are scaled
 * after they are taken. At the first span m = -inf, and e^-inf = 0 times o = 0. */
static void attend_span(const problem *pb, work *w, const real *q, span sp, real *o) {
    const int64_t G = pb->G, D = pb->D;
    const real *kt = pb->kt + sp.block * D * BLOCK, *v = pb->vb + sp.block * BLOCK * D;
    for (int64_t g = 0; g < G; g++) {
        real *s = w->s + g * BLOCK, *most = w->most + g, *sum = w->row_sum + g;
        real now = *most, part = 0;
        for (int64_t j = 0; j < sp.hi; j++) {
            s[j] = dot(q + g * D, kt + j, BLOCK, D);
            now = s[j] > now ? s[j] : now;
        }
        if (now != *most) { /* seldom, after the first few blocks */
            const real shrink = expf(pb->scale * (*most - now));
            *sum *= shrink;
            for (int64_t c = 0; c < D; c++)
                o[g * D + c] *= shrink;
            *most = now;
        }
        for (int64_t j = 0; j < sp.hi; j++) {
            s[j] = expf(pb->scale * (s[j] - now));
            part += s[j];
        }
        *sum += part;
        for (int64_t j = 0; j < sp.hi; j++)
            add_scaled(o + g * D, s[j], v + j * D, D);
    }
}

/* A group: q [G,D] and o [G,D] over n spans. o is divided by the sum once, when that is known. */
static void attend(const problem *pb, work *w, const real *q, int64_t n, real *o) {
    const int64_t G = pb->G, D = pb->D;
    for (int64_t g = 0; g < G; g++)
        w->most[g] = -INFINITY;
    memset(w->row_sum, 0, (size_t)G * sizeof *w->row_sum);
    memset(o, 0, (size_t)(G * D) * sizeof *o);
    for (int64_t i = 0; i < n; i++)
        attend_span(pb, w, q, w->spans[i], o);
    for (int64_t g = 0; g < G; g++) {
        const real over = 1 / w->row_sum[g];
        for (int64_t c = 0; c < D; c++)
            o[g * D + c] *= over;
    }
}

/* Query after query: a query's keys are fetched once for its whole group. */
void step_3_online(const problem *pb) {
    const int64_t G = pb->G, D = pb->D;
    for (int64_t t = 0; t < pb->T; t++) {
        const int64_t n = keep_slc(pb, pb->work, t);
        attend(pb, pb->work, pb->q + t * G * D, n, pb->out + t * G * D);
    }
}
