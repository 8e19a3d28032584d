/** @file
 *  @brief Step 1: K and V lie in blocks, K transposed, and the list of tokens becomes spans.
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

/* One head: q [D] and o [D] over n spans; the score of key j of span i is p[i * BLOCK + j].
 * Element c of key j is at kt[c * BLOCK + j]: nothing gains by it yet, for dot walks down a column.
 */
static void attend(const problem *pb, work *w, const real *q, int64_t n, real *o) {
    const int64_t D = pb->D;
    real *p = w->p, most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const real *kt = pb->kt + w->spans[i].block * D * BLOCK;
        real *s = p + i * BLOCK;
        for (int64_t j = 0; j < w->spans[i].hi; j++) {
            s[j] = dot(q, kt + j, BLOCK, D);
            most = s[j] > most ? s[j] : most;
        }
    }
    for (int64_t i = 0; i < n; i++) {
        real *s = p + i * BLOCK;
        for (int64_t j = 0; j < w->spans[i].hi; j++) {
            s[j] = expf(pb->scale * (s[j] - most));
            sum += s[j];
        }
    }
    memset(o, 0, (size_t)D * sizeof *o);
    for (int64_t i = 0; i < n; i++) {
        const real *v = pb->vb + w->spans[i].block * BLOCK * D, *s = p + i * BLOCK;
        for (int64_t j = 0; j < w->spans[i].hi; j++)
            add_scaled(o, s[j] / sum, v + j * D, D);
    }
}

/* Query after query, head after head: all of a query's keys are fetched G times. */
void step_1_relaid(const problem *pb) {
    const int64_t G = pb->G, D = pb->D;
    for (int64_t t = 0; t < pb->T; t++) {
        for (int64_t g = 0; g < G; g++) {
            const int64_t n = keep_slc(pb, pb->work, t);
            attend(pb, pb->work, pb->q + (t * G + g) * D, n, pb->out + (t * G + g) * D);
        }
    }
}
