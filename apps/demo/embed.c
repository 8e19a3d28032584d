/** @file embed.c
 *  @brief Hand-made inputs: hashed n-grams for content, RoPE on a few dims for distance. */
#include "demo/embed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CONTENT = DEMO_DIM - DEMO_ROTARY, PAIRS = DEMO_ROTARY / 2 };

/* ---------------------------------------------------------------- randomness */

/* splitmix64: one 64-bit number to another, well mixed; the same on every machine. */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* The i-th number of a seed's sequence, in [0,1). */
static double uniform(uint64_t seed, int64_t i) {
    return (double)(mix(mix(seed) ^ (uint64_t)i) >> 11) * 0x1p-53;
}

/* ------------------------------------------------------------------- content */

/* One bit for each content dim: its sign for the n-gram that ends at t. Equal n-grams get equal
 * rows of +1 and -1; different ones are nearly orthogonal. */
static uint64_t gram(const demo_text *text, int64_t t) {
    uint64_t hash = 0;
    for (int64_t i = t - DEMO_GRAM + 1; i <= t; i++)
        hash = mix(hash ^ (i < 0 ? 256u : text->byte[i]));
    return hash;
}

static double sign(uint64_t bits, int c) {
    return bits >> c & 1 ? 1.0 : -1.0;
}

int64_t demo_reach(int64_t head) {
    /* About one compression block, l = 32: the mean of a query's last 32 n-grams then looks like
     * the mean of a compressed block. Heads use different lengths. */
    static const int64_t reach[DEMO_HEADS] = {16, 24, 32, 48};
    return reach[head];
}

/* q_th [dk]: the sum of the last n-grams, scaled to length 4 sqrt(CONTENT), so that the softmax is
 * peaked but not one-hot. */
static void content_query(const uint64_t *bits, int64_t t, int64_t reach, float *q_th) {
    double sum[CONTENT] = {0}, square = 0;
    for (int64_t s = t < reach ? 0 : t - reach + 1; s <= t; s++) {
        for (int c = 0; c < CONTENT; c++)
            sum[c] += sign(bits[s], c);
    }
    for (int c = 0; c < CONTENT; c++)
        square += sum[c] * sum[c];
    double length = 4 * sqrt((double)CONTENT / (square > 0 ? square : 1));
    for (int c = 0; c < CONTENT; c++)
        q_th[c] = (float)(sum[c] * length);
}

/* RoPE: pair i of the last dims is a unit vector rotated by t / 10000^(i/PAIRS). The product of two
 * such rows depends only on their distance. Only a quarter of the dims are rotated: a compressed
 * key is a mean over 32 positions, in which rotated dims partly cancel. */
static void rotate(double strength, int64_t t, float *x) {
    for (int i = 0; i < PAIRS; i++) {
        double angle = (double)t * pow(10000, -(double)i / PAIRS);
        x[CONTENT + 2 * i] = (float)(strength * cos(angle));
        x[CONTENT + 2 * i + 1] = (float)(strength * sin(angle));
    }
}

/* ------------------------------------------------------------------- tensors */

/* q [T,Hq,dk] and the three keys [T,Hkv,dk]. The branches weigh distance differently: least in the
 * compressed branch, which searches the whole text, most in the window. */
static void fill_rows(const demo_text *text, const uint64_t *bits, demo_model *m) {
    static const double strength[3] = {0.125, 1, 2};
    static const nsa_id key[3] = {NSA_K_CMP, NSA_K_SLC, NSA_K_WIN};
    for (int64_t t = 0; t < text->T; t++) {
        for (int64_t h = 0; h < DEMO_HEADS; h++) {
            float *q_th = m->memory[NSA_Q] + (t * DEMO_HEADS + h) * DEMO_DIM;
            content_query(bits, t, demo_reach(h), q_th);
            rotate(2, t, q_th);
        }
        for (int pair = 0; pair < 3; pair++) {
            for (int64_t h = 0; h < DEMO_KV_HEADS; h++) {
                float *k_th = m->memory[key[pair]] + (t * DEMO_KV_HEADS + h) * DEMO_DIM;
                for (int c = 0; c < CONTENT; c++)
                    k_th[c] = (float)sign(bits[t], c);
                rotate(strength[pair], t, k_th);
            }
        }
    }
}

/* Values encode the byte: a random row for each of the 256 bytes, with a different table for each
 * branch. */
static void fill_values(const demo_text *text, demo_model *m) {
    static const nsa_id value[3] = {NSA_V_CMP, NSA_V_SLC, NSA_V_WIN};
    for (int64_t i = 0; i < text->T * DEMO_KV_HEADS * DEMO_DIM; i++) {
        int64_t t = i / (DEMO_KV_HEADS * DEMO_DIM), c = i % (DEMO_KV_HEADS * DEMO_DIM);
        for (int pair = 0; pair < 3; pair++)
            m->memory[value[pair]][i] =
                (float)(2 * uniform(100 + (uint64_t)pair, text->byte[t] * 4096 + c) - 1);
    }
}

/* Allocate a tensor of the model. */
static int alloc_tensor(demo_model *m, nsa_id id, int32_t ndim, int64_t a, int64_t b, int64_t c) {
    nsa_tensor t = {.dtype = NSA_F32, .ndim = ndim, .shape = {a, b, c}};
    t.data = m->memory[id] = calloc((size_t)nsa_count(&t), sizeof(float));
    m->in.at[id] = t;
    return t.data != NULL;
}

static int alloc_inputs(demo_model *m, int64_t T) {
    int64_t l = m->cfg.cmp_block;
    int ok = alloc_tensor(m, NSA_Q, 3, T, DEMO_HEADS, DEMO_DIM);
    for (int id = NSA_K_CMP; id <= NSA_V_WIN; id++)
        ok = alloc_tensor(m, (nsa_id)id, 3, T, DEMO_KV_HEADS, DEMO_DIM) && ok;
    ok = alloc_tensor(m, NSA_GATE, 3, T, DEMO_HEADS, 3) && ok;
    ok = alloc_tensor(m, NSA_PHI_K_PE, 2, l, DEMO_DIM, 0) &&
         alloc_tensor(m, NSA_PHI_K_W, 1, DEMO_DIM, 0, 0) && ok;
    ok = alloc_tensor(m, NSA_PHI_V_PE, 2, l, DEMO_DIM, 0) &&
         alloc_tensor(m, NSA_PHI_V_W, 1, DEMO_DIM, 0, 0) && ok;
    return alloc_tensor(m, NSA_PHI_K_B, 1, l, 0, 0) && alloc_tensor(m, NSA_PHI_V_B, 1, l, 0, 0) &&
           ok;
}

nsa_status demo_embed(const demo_text *text, demo_model *m) {
    *m = (demo_model){.cfg = nsa_config_defaults()};
    m->cfg.seq_len = text->T;
    m->cfg.q_heads = DEMO_HEADS;
    m->cfg.kv_heads = DEMO_KV_HEADS;
    m->cfg.qk_dim = m->cfg.v_dim = DEMO_DIM;
    m->cfg.phi = NSA_PHI_GATED;
    nsa_status status = nsa_config_resolve(&m->cfg);
    if (status)
        return status;
    uint64_t *bits = malloc((size_t)text->T * sizeof *bits);
    if (!bits || !alloc_inputs(m, text->T)) {
        free(bits);
        demo_model_free(m);
        return nsa_fail(NSA_ERR_MEMORY, "no memory for the inputs of %lld tokens",
                        (long long)text->T);
    }
    for (int64_t t = 0; t < text->T; t++)
        bits[t] = gram(text, t);
    fill_rows(text, bits, m);
    fill_values(text, m);
    for (int64_t i = 0; i < text->T * DEMO_HEADS * 3; i++)
        m->memory[NSA_GATE][i] = (float)(uniform(7, i) * 0.999);
    /* Small weights keep the compressor close to the mean; large ones would lose content. */
    for (int id = NSA_PHI_FIRST; id <= NSA_PHI_LAST; id++) {
        for (int64_t i = 0; m->memory[id] && i < nsa_count(&m->in.at[id]); i++)
            m->memory[id][i] = (float)(0.04 * uniform(200 + (uint64_t)id, i) - 0.02);
    }
    free(bits);
    return NSA_OK;
}

/* --------------------------------------------------------------- other copies */

/* bfloat16 is the upper half of a float; ties go to the even half. Inputs here are finite. */
static float bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

nsa_status demo_round(const demo_model *from, demo_model *to) {
    *to = *from;
    memset(to->memory, 0, sizeof to->memory);
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        if (!from->memory[id])
            continue;
        size_t count = (size_t)nsa_count(&from->in.at[id]);
        float *copy = malloc(count * sizeof *copy);
        if (!copy) {
            demo_model_free(to);
            return nsa_fail(NSA_ERR_MEMORY, "no memory for a rounded copy of %s",
                            nsa_name((nsa_id)id));
        }
        for (size_t i = 0; i < count; i++)
            copy[i] = id == NSA_GATE ? from->memory[id][i] : bfloat16(from->memory[id][i]);
        to->in.at[id].data = to->memory[id] = copy;
    }
    return NSA_OK;
}

void demo_model_free(demo_model *m) {
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        free(m->memory[id]);
        m->memory[id] = NULL;
    }
}
