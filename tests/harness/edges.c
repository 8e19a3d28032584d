/** @file edges.c
 *  @brief Inputs at the edges of the range. Where scores are large, keys and queries are small
 * integers times powers of two, so that every dot product, also with a mean of keys, is exact in
 * float32: any error is the stage's own. Inputs and means are bfloat16 numbers too, so that a
 * bfloat16 stage rounds nothing either. */
#include "harness/edges.h"
#include "harness/random.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Queries and keys with the dot product q0 k0 + q1 k1(t) + a few small integers times q_unit. q0 is
 * large and k0 small: in dq the keys' common part k0 cancels, so it must not be large. */
typedef struct exact_scores {
    float q0, k0;
    float q1;     /* 0: component 1 is like the others */
    float q_unit; /* the other components of q are -1, 0 or 1 times this */
    int whole;    /* keys of k_cmp are multiples of l, so that their means are integers */
} exact_scores;

static const exact_scores *scores_of(case_data data) {
    static const exact_scores low = {88064, -2, 0, 1, 0}, high = {655360, 2, 0, 0.125f, 1},
                              rising = {15360, -2, 64, 1, 0};
    return data == DATA_LOW      ? &low
           : data == DATA_HIGH   ? &high
           : data == DATA_RISING ? &rising
                                 : NULL;
}

nsa_status edge_check(const test_case *c) {
    const int64_t l = c->cfg.cmp_block;
    if (scores_of(c->data) && (c->cfg.phi != NSA_PHI_MEAN || (l & (l - 1)) || l > 16))
        return nsa_fail(NSA_ERR_CONFIG,
                        "exact scores need phi=mean and l a power of two up to 16, not phi=%s and "
                        "l=%" PRId64,
                        nsa_phi_name(c->cfg.phi), l);
    if (c->data == DATA_RISING && c->cfg.seq_len > 500)
        return nsa_fail(NSA_ERR_CONFIG, "data=rising is exact up to T=500, not T=%" PRId64,
                        c->cfg.seq_len);
    return NSA_OK;
}

/* -1, 0 or 1 */
static float draw_sign(uint64_t *state) {
    return (float)((int)(random_next(state) % 3) - 1);
}

static void exact_values(const test_case *c, const exact_scores *e, nsa_id id, uint64_t *state,
                         nsa_tensor *t) {
    const int64_t dk = c->cfg.qk_dim, row = tensor_row(t), d = c->cfg.cmp_stride;
    const float unit = e->whole && id == NSA_K_CMP ? (float)c->cfg.cmp_block : 1;
    for (int64_t i = 0; i < nsa_count(t); i++) {
        const int64_t stride = i / row / d;
        float x = draw_sign(state) * (id == NSA_Q ? e->q_unit : unit);
        if (i % dk == 0)
            x = id == NSA_Q ? e->q0 : e->k0;
        else if (i % dk == 1 && e->q1 != 0) /* the same for d tokens, so that means are exact */
            x = id == NSA_Q ? e->q1 : 2 * (float)stride / 64;
        ((float *)t->data)[i] = x;
    }
}

/* The first selection block gets all of the probability. Each key of the others gets e^-71 to e^-77
 * of it, the same within a stride. */
static void tiny_values(const test_case *c, nsa_id id, uint64_t *state, nsa_tensor *t) {
    const int64_t dk = c->cfg.qk_dim, rows = nsa_count(t) / dk, heads = tensor_row(t) / dk;
    float *data = t->data;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t s = r / heads, offset = s % c->cfg.cmp_stride;
        const float score = -(float)(71 + 2 * (int)(random_next(state) % 4));
        for (int64_t i = 1; i < dk && id == NSA_Q; i++)
            data[r * dk + i] *= 0.05f;
        if (id == NSA_Q)
            data[r * dk] = 1 / (float)c->cfg.scale;
        else if (s < c->cfg.slc_block)
            data[r * dk] = 0;
        else
            data[r * dk] = offset ? data[(r - heads) * dk] : score;
    }
}

static void scale_values(nsa_tensor *t, float factor) {
    for (int64_t i = 0; i < nsa_count(t); i++)
        ((float *)t->data)[i] *= factor;
}

/* Half of `max_abs` to all of it, of either sign. */
static void large_values(nsa_tensor *t, float max_abs, uint64_t *state) {
    for (int64_t i = 0; i < nsa_count(t); i++) {
        const float size = max_abs * (0.5f + 0.5f * random_uniform(state));
        ((float *)t->data)[i] = random_next(state) & 1 ? size : -size;
    }
}

void edge_values(const test_case *c, nsa_id id, uint64_t *state, nsa_tensor *t) {
    const int is_key = id == NSA_K_CMP || id == NSA_K_SLC || id == NSA_K_WIN;
    const int is_value = id == NSA_V_CMP || id == NSA_V_SLC || id == NSA_V_WIN;
    const exact_scores *exact = scores_of(c->data);
    if (exact && (id == NSA_Q || is_key))
        exact_values(c, exact, id, state, t);
    if ((c->data == DATA_HUGE || c->data == DATA_RISING) && is_value)
        large_values(t, 1e30f, state);
    if (c->data == DATA_TINY && (id == NSA_Q || id == NSA_K_CMP))
        tiny_values(c, id, state, t);
    if (c->data == DATA_BIG && (id == NSA_Q || is_key || is_value || id == NSA_DOUT))
        large_values(t, 1e6f, state);
    if (c->data == DATA_FAINT && id == NSA_Q)
        scale_values(t, (float)(1 / (c->cfg.scale * sqrt((double)c->cfg.qk_dim))));
    for (int64_t i = 0; c->data == DATA_SHUT && id == NSA_GATE && i < nsa_count(t); i++) {
        if (i % 7 == 3 || i % 11 == 5)
            ((float *)t->data)[i] = (float)(i % 7 != 3);
    }
    if (c->data == DATA_SHIFTED && (id == NSA_PHI_K_B || id == NSA_PHI_V_B)) {
        for (int64_t i = 0; i < nsa_count(t); i++)
            ((float *)t->data)[i] += 128;
    }
}

/* Multiples of 1/2: with l a power of two, means of l of them are bfloat16 numbers, for each sum is
 * a whole number of halves, and 8 bits hold it up to 128. */
static void coarsen_keys(nsa_tensor *k) {
    for (int64_t i = 0; i < nsa_count(k); i++)
        ((float *)k->data)[i] = roundf(2 * ((float *)k->data)[i]) / 2;
}

/* Scores above 200 need dot products that are exact in float32, k_phi's included (the
 * specification, "How close is equal"). A bfloat16 stage rounds k_phi to 8 bits, which moves a
 * score of 200 by up to 0.4, and its probability by as much of itself. So with queries 40 times
 * larger
 *   - means of keys are bfloat16 numbers as they are: the scores stay as large;
 *   - what the other compressors give is divided by 32: the scores of compressed keys are at most
 *     10, those of the other two branches stay as large. The gates of a gated block do not change:
 *     (32 w).((x + pe) / 32) = w.(x + pe). */
void edge_values_bf16(const test_case *c, nsa_tensors *in) {
    if (c->data != DATA_LARGE)
        return;
    if (c->cfg.phi == NSA_PHI_MEAN)
        coarsen_keys(&in->at[NSA_K_CMP]);
    if (c->cfg.phi == NSA_PHI_GATED) {
        scale_values(&in->at[NSA_K_CMP], 1.0f / 32);
        scale_values(&in->at[NSA_PHI_K_PE], 1.0f / 32);
        scale_values(&in->at[NSA_PHI_K_W], 32);
    }
    if (c->cfg.phi == NSA_PHI_MLP) {
        scale_values(&in->at[NSA_PHI_K_W2], 1.0f / 32);
        scale_values(&in->at[NSA_PHI_K_B2], 1.0f / 32);
    }
}
