/** @file
 *  @brief Step 2: each block goes to all G heads of its group before the next block is fetched.
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

/* A group: q [G,D] and o [G,D] over n spans; head g's score of key j of span i is
 * p[g * apart + i * BLOCK + j]. Blocks outside, heads inside: a block is fetched once, and heads
 * 2 to G find its 2 * 64 * D floats in the L1 or L2 cache. The price: G rows of scores are kept. */
static void attend(const problem *pb, work *w, const real *q, int64_t n, real *o) {
    const int64_t G = pb->G, D = pb->D, apart = pb->n * BLOCK;
    real *p = w->p, *most = w->most, *sum = w->row_sum;
    for (int64_t g = 0; g < G; g++)
        most[g] = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        const real *kt = pb->kt + w->spans[i].block * D * BLOCK;
        for (int64_t g = 0; g < G; g++) {
            real *s = p + g * apart + i * BLOCK, now = most[g];
            for (int64_t j = 0; j < w->spans[i].hi; j++) {
                s[j] = dot(q + g * D, kt + j, BLOCK, D);
                now = s[j] > now ? s[j] : now;
            }
            most[g] = now;
        }
    }
    memset(sum, 0, (size_t)G * sizeof *sum);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t g = 0; g < G; g++) {
            real *s = p + g * apart + i * BLOCK, part = 0;
            for (int64_t j = 0; j < w->spans[i].hi; j++) {
                s[j] = expf(pb->scale * (s[j] - most[g]));
                part += s[j];
            }
            sum[g] += part;
        }
    }
    memset(o, 0, (size_t)(G * D) * sizeof *o);
    for (int64_t i = 0; i < n; i++) {
        const real *v = pb->vb + w->spans[i].block * BLOCK * D;
        for (int64_t g = 0; g < G; g++) {
            const real *s = p + g * apart + i * BLOCK;
            for (int64_t j = 0; j < w->spans[i].hi; j++)
                add_scaled(o + g * D, s[j] / sum[g], v + j * D, D);
        }
    }
}

/* Query after query: a query's keys are fetched once for its whole group. */
void step_2_group(const problem *pb) {
    const int64_t G = pb->G, D = pb->D;
    for (int64_t t = 0; t < pb->T; t++) {
        const int64_t n = keep_slc(pb, pb->work, t);
        attend(pb, pb->work, pb->q + t * G * D, n, pb->out + t * G * D);
    }
}
