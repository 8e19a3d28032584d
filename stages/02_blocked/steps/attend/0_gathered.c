/** @file
 *  @brief Step 0: stage 01's loops. Each head gathers a list of tokens and fetches K and V alone.
 */
#include "../steps.h"

/* The tokens s <= t of the blocks in idx (Eq. 12), into w->list; returns how many. */
static int64_t keep_slc(const problem *pb, work *w, int64_t t) {
    const int32_t *idx = pb->idx + t * pb->n;
    int64_t n = 0;
    for (int64_t i = 0; i < pb->n && idx[i] >= 0; i++) {
        const int64_t first = (int64_t)idx[i] * BLOCK, end = first + BLOCK;
        for (int64_t s = first; s < end && s <= t; s++)
            w->list[n++] = (int32_t)s;
    }
    return n;
}

/* One head: q [D] and o [D] over the n tokens listed. Three passes over the list: scores and
 * their maximum, exponentials and their sum, then o = sum_s p_s v_s. */
static void attend(const problem *pb, work *w, const real *q, int64_t n, real *o) {
    const int64_t D = pb->D;
    real *p = w->p, most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        p[i] = dot(q, pb->k + w->list[i] * D, 1, D);
        most = p[i] > most ? p[i] : most;
    }
    for (int64_t i = 0; i < n; i++) {
        p[i] = expf(pb->scale * (p[i] - most));
        sum += p[i];
    }
    memset(o, 0, (size_t)D * sizeof *o);
    for (int64_t i = 0; i < n; i++)
        add_scaled(o, p[i] / sum, pb->v + w->list[i] * D, D);
}

/* Query after query, head after head: all of a query's keys are fetched G times. */
void step_0_gathered(const problem *pb) {
    const int64_t G = pb->G, D = pb->D;
    for (int64_t t = 0; t < pb->T; t++) {
        for (int64_t g = 0; g < G; g++) {
            const int64_t n = keep_slc(pb, pb->work, t);
            attend(pb, pb->work, pb->q + (t * G + g) * D, n, pb->out + (t * G + g) * D);
        }
    }
}
