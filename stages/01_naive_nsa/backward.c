/** @file
 *  @brief Backward: every query row on its own, then the compressed tokens back to their blocks. */
#include "stage.h"

#include <string.h>

static void zero(real *x, int64_t count) {
    memset(x, 0, (size_t)count * sizeof *x);
}

/* Gradients are sums over rows; they start from zero. */
static void zero_gradients(stage *st) {
    const nsa_config *c = &st->cfg;
    const nsa_batch *batch = &st->batch;
    zero(st->dq, batch->R * c->q_heads * c->qk_dim);
    zero(st->dgate, batch->R * c->q_heads * BRANCHES);
    for (int x = 0; x < BRANCHES; x++) {
        zero(st->dk[x], batch->T * c->kv_heads * c->qk_dim);
        zero(st->dv[x], batch->T * c->kv_heads * c->v_dim);
    }
    for (int pair = 0; pair < PAIR; pair++) {
        zero(st->dxphi[pair], batch->N * c->kv_heads * width(st, pair));
        for (int w = 0; w < WEIGHTS; w++) {
            if (st->dphi[pair][w])
                zero(st->dphi[pair][w], weight_count(c, pair, w));
        }
    }
}

/* Where the gradients of sequence b's keys and values are summed; [CMP]: compressed tokens'. */
static gradient pack_gradient(const stage *st, int64_t b) {
    const int64_t Hkv = st->cfg.kv_heads, dk = st->cfg.qk_dim, dv = st->cfg.v_dim;
    gradient g;
    for (int x = 0; x < BRANCHES; x++) {
        g.dk[x] = st->dk[x] + st->batch.seq[b] * Hkv * dk;
        g.dv[x] = st->dv[x] + st->batch.seq[b] * Hkv * dv;
    }
    g.dk[CMP] = st->dxphi[KEYS] + st->batch.cmp[b] * Hkv * dk;
    g.dv[CMP] = st->dxphi[VALUES] + st->batch.cmp[b] * Hkv * dv;
    return g;
}

nsa_status backward(void *self) {
    stage *st = self;
    const nsa_batch *batch = &st->batch;
    const int64_t Hkv = st->cfg.kv_heads;
    zero_gradients(st);
    nsa_timer_start(&st->timer);
    for (int64_t r = 0; r < batch->R; r++) {
        int64_t b = sequence_of(st, batch->row[r]);
        sequence sq = pack_sequence(st, b);
        gradient g = pack_gradient(st, b);
        backward_row(st, &sq, &g, batch->row[r] - batch->seq[b], r);
    }
    for (int pair = 0; pair < PAIR; pair++) {
        const real *x = pair == KEYS ? st->k[CMP] : st->v[CMP];
        real *dx = pair == KEYS ? st->dk[CMP] : st->dv[CMP];
        int64_t D = width(st, pair);
        for (int64_t b = 0; b < batch->B; b++) {
            for (int64_t i = batch->cmp[b]; i < batch->cmp[b + 1]; i++) {
                int64_t token = batch->seq[b] + (i - batch->cmp[b]) * st->cfg.cmp_stride;
                for (int64_t h = 0; h < Hkv; h++)
                    compress_backward(st, pair, x + (token * Hkv + h) * D,
                                      st->dxphi[pair] + (i * Hkv + h) * D,
                                      dx + (token * Hkv + h) * D);
            }
        }
    }
    nsa_timer_add(&st->timer, COMPRESS);
    return NSA_OK;
}
