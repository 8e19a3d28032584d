/** @file dense.c
 *  @brief Causal attention by tiles on OpenBLAS. This file alone is compiled with -O3 -march=native
 * -fno-math-errno -fno-trapping-math -fopenmp-simd: without them the softmax would take longer than
 * the products, and the baseline would be too slow. No fast-math. */
#include "bench/contender.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

/* A tile has about ROWS rows (tokens times heads of a group) against KEYS keys: its scores stay in
 * the second-level cache, and sgemm runs within a tenth of its best at this size. */
enum { ROWS = 256, KEYS = 512 };

static const float LOG2E = 1.44269504f;

/* Memory of one thread. */
typedef struct scratch {
    float *q;     /* [rows,dk] times scale * log2(e), so that exp is exp2 */
    float *o;     /* [rows,dv] */
    float *s;     /* [rows,KEYS] scores, then probabilities */
    float *m, *l; /* [rows] running maximum and sum */
} scratch;

struct dense {
    int64_t T, B, Hq, Hkv, G, dk, dv;
    int64_t tile; /* query tokens of a tile */
    float scale;
    int threads;
    size_t outputs, each;     /* floats of the outputs, and of one thread */
    const dense_inputs *in;   /* of one call */
    atomic_long next;         /* the next tile to compute */
    int64_t len;              /* keys of a decode step; 0 for whole sequences */
    _Alignas(16) float out[]; /* the outputs, then the threads' memory */
};

dense *dense_open(const nsa_config *c, int64_t T, int64_t B, int threads, int64_t *bytes) {
    const int64_t G = c->q_heads / c->kv_heads, tile = ROWS / G > 0 ? ROWS / G : 1;
    const size_t outputs = (size_t)(B * T * c->q_heads * c->v_dim);
    const size_t each = (size_t)(tile * G * (c->qk_dim + c->v_dim + KEYS + 2));
    const size_t memory = (outputs + each * (size_t)threads) * sizeof(float);
    dense *d = calloc(1, sizeof *d + memory);
    if (!d)
        return NULL;
    *bytes = (int64_t)memory;
    d->T = T, d->B = B, d->G = G, d->tile = tile, d->threads = threads;
    d->Hq = c->q_heads, d->Hkv = c->kv_heads, d->dk = c->qk_dim, d->dv = c->v_dim;
    d->scale = (float)c->scale, d->outputs = outputs, d->each = each;
    return d;
}

/* 2^x for x <= 0: the integer part goes to the exponent, the rest through a polynomial of degree 6,
 * within 2e-7. Unlike a call of expf(), a loop over it is vectorised. */
static inline float exp2_nonpositive(float x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds, in the low bits */
    float clamped = x < -126 ? -126 : x, whole = clamped + round, f = clamped - (whole - round), p;
    int32_t bits, e;
    memcpy(&e, &whole, 4);
    p = (1.540353e-4f * f + 1.3333558e-3f) * f + 9.6181291e-3f;
    p = ((p * f + 5.5504109e-2f) * f + 2.4022651e-1f) * f + 6.9314718e-1f;
    p = p * f + 1;
    memcpy(&bits, &p, 4);
    bits += (int32_t)((uint32_t)e << 23);
    memcpy(&p, &bits, 4);
    return x < -126 ? 0 : p; /* masked scores give 0, not 2^-126, which would lead to denormals */
}

/* Online softmax of one row of scores: p = 2^(s - m), updating the running maximum m and sum l.
 * Returns the factor that rescales what was accumulated so far. */
static float softmax_row(float *s, int64_t n, float *m, float *l) {
    float row_max = *m, row_sum = 0;
#pragma omp simd reduction(max : row_max)
    for (int64_t i = 0; i < n; i++)
        row_max = s[i] > row_max ? s[i] : row_max;
#pragma omp simd reduction(+ : row_sum)
    for (int64_t i = 0; i < n; i++) {
        s[i] = exp2_nonpositive(s[i] - row_max);
        row_sum += s[i];
    }
    float rescale = exp2_nonpositive(*m - row_max);
    *l = *l * rescale + row_sum;
    *m = row_max;
    return rescale;
}

/* Set the scores of keys s0.. after a row's own token to minus infinity. */
static void mask(float *s, int64_t tokens, int64_t G, int64_t t0, int64_t s0, int64_t n) {
    for (int64_t i = 0; i < tokens * G; i++) {
        int64_t visible = t0 + i / G + 1 - s0;
        for (int64_t j = visible > 0 ? visible : 0; j < n; j++)
            s[i * KEYS + j] = -INFINITY;
    }
}

/* A tile: query tokens [t0,t0+tokens) of one sequence and the G heads of one kv head. */
typedef struct tile_coord {
    int64_t t0, tokens, rows;
    int64_t q_row; /* of q, out, lse: (token, head) of the tile's first row */
    int64_t k_row; /* of k, v: the sequence's first key of this kv head */
} tile_coord;

static int64_t tiles_of(const dense *d) {
    return d->len ? 1 : (d->T + d->tile - 1) / d->tile;
}

static tile_coord tile_coord_of(const dense *d, int64_t number) {
    const int64_t tiles = tiles_of(d), kvh = number / tiles % d->Hkv, b = number / tiles / d->Hkv;
    /* a step has one query a sequence, at its last key */
    const int64_t queries = d->len ? 1 : d->T, first = d->len ? d->len - 1 : 0;
    /* the longest first, to balance threads */
    const int64_t t = (tiles - 1 - number % tiles) * d->tile;
    tile_coord p = {.t0 = first + t, .tokens = queries - t < d->tile ? queries - t : d->tile};
    p.q_row = (b * queries + t) * d->Hq + kvh * d->G;
    p.rows = p.tokens * d->G;
    p.k_row = b * d->T * d->Hkv + kvh;
    return p;
}

/* The row of q that is row i of a tile. */
static int64_t q_row(const dense *d, const tile_coord *p, int64_t i) {
    return p->q_row + i / d->G * d->Hq + i % d->G;
}

static void run_tile(dense *d, const scratch *w, tile_coord p) {
    const int64_t dk = d->dk, dv = d->dv, ldk = d->Hkv * dk, ldv = d->Hkv * dv;
    const int64_t end = p.t0 + p.tokens;
    memset(w->o, 0, (size_t)(p.rows * dv) * sizeof *w->o);
    for (int64_t i = 0; i < p.rows; i++) {
        const float *q = d->in->q + q_row(d, &p, i) * dk;
        for (int64_t j = 0; j < dk; j++)
            w->q[i * dk + j] = d->scale * LOG2E * q[j];
        w->m[i] = -1e30f;
        w->l[i] = 0;
    }
    for (int64_t s0 = 0; s0 < end; s0 += KEYS) {
        const int64_t n = end - s0 < KEYS ? end - s0 : KEYS;
        const float *k = d->in->k + p.k_row * dk + s0 * ldk,
                    *v = d->in->v + p.k_row * dv + s0 * ldv;
        blas_sgemm(ROW_MAJOR, AS_IT_IS, TRANSPOSED, (int)p.rows, (int)n, (int)dk, 1, w->q, (int)dk,
                   k, (int)ldk, 0, w->s, KEYS);
        if (s0 + n > p.t0 + 1)
            mask(w->s, p.tokens, d->G, p.t0, s0, n);
        for (int64_t i = 0; i < p.rows; i++) {
            const float rescale = softmax_row(w->s + i * KEYS, n, &w->m[i], &w->l[i]);
            for (int64_t j = 0; j < dv && rescale != 1; j++)
                w->o[i * dv + j] *= rescale;
        }
        blas_sgemm(ROW_MAJOR, AS_IT_IS, AS_IT_IS, (int)p.rows, (int)dv, (int)n, 1, w->s, KEYS, v,
                   (int)ldv, 1, w->o, (int)dv);
    }
    for (int64_t i = 0; i < p.rows; i++) {
        float *out = d->out + q_row(d, &p, i) * dv;
        for (int64_t j = 0; j < dv; j++)
            out[j] = w->o[i * dv + j] / w->l[i];
    }
}

/* Each thread takes tiles until none is left; a product runs on its own thread alone. */
static void work(void *arg, int thread) {
    dense *d = arg;
    const int64_t rows = d->tile * d->G;
    float *s = d->out + d->outputs + d->each * (size_t)thread, *q = s + rows * KEYS;
    float *o = q + rows * d->dk, *m = o + rows * d->dv;
    const scratch w = {.q = q, .o = o, .s = s, .m = m, .l = m + rows};
    for (long i; (i = atomic_fetch_add(&d->next, 1)) < tiles_of(d) * d->Hkv * d->B;)
        run_tile(d, &w, tile_coord_of(d, i));
}

float *dense_run(dense *d, const dense_inputs *in, int64_t len) {
    d->in = in;
    d->len = len;
    atomic_store(&d->next, 0);
    blas_threads(1); /* parallel over tiles, not within products */
    bench_parallel(d->threads, work, d);
    return d->out;
}
