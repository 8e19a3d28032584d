/** @file
 *  @brief Decode: caches of keys, values and compressed tokens, one slot a sequence, one row a
 * step. */
#include "stage.h"

#include <string.h>

/* A slot of the caches, as a sequence of `len` tokens. */
static sequence slot_sequence(const stage *st, int64_t slot, int64_t len) {
    const nsa_config *c = &st->cfg;
    sequence sq = {.len = len, .n_cmp = nsa_cmp_tokens(c, len)};
    for (int x = 0; x < BRANCHES; x++) {
        sq.k[x] = st->cache_k[x] + slot * c->max_seq_len * c->kv_heads * c->qk_dim;
        sq.v[x] = st->cache_v[x] + slot * c->max_seq_len * c->kv_heads * c->v_dim;
    }
    sq.k[CMP] = st->cache_phi[KEYS] + slot * st->cache_cmp * c->kv_heads * c->qk_dim;
    sq.v[CMP] = st->cache_phi[VALUES] + slot * st->cache_cmp * c->kv_heads * c->v_dim;
    return sq;
}

/* Copy rows of `row_width`: from row `from` of the pack on, to row `to` of the cache on. */
static void cache_rows(real *cache, int64_t to, const real *pack, int64_t from, int64_t rows,
                       int64_t row_width) {
    memcpy(cache + to * row_width, pack + from * row_width,
           (size_t)(rows * row_width) * sizeof *cache);
}

nsa_status prefill(void *self) {
    stage *st = self;
    const nsa_config *c = &st->cfg;
    const nsa_batch *batch = &st->batch;
    const int64_t k_width = c->kv_heads * c->qk_dim, v_width = c->kv_heads * c->v_dim;
    nsa_status status = forward(self);
    for (int64_t b = 0; b < batch->B; b++) {
        const int64_t slot = batch->slot[b], first = slot * c->max_seq_len;
        int64_t len = batch->seq[b + 1] - batch->seq[b], N = batch->cmp[b + 1] - batch->cmp[b];
        for (int x = 0; x < BRANCHES; x++) {
            cache_rows(st->cache_k[x], first, st->k[x], batch->seq[b], len, k_width);
            cache_rows(st->cache_v[x], first, st->v[x], batch->seq[b], len, v_width);
        }
        cache_rows(st->cache_phi[KEYS], slot * st->cache_cmp, st->xphi[KEYS], batch->cmp[b], N,
                   k_width);
        cache_rows(st->cache_phi[VALUES], slot * st->cache_cmp, st->xphi[VALUES], batch->cmp[b], N,
                   v_width);
    }
    return status;
}

/* The new tokens' keys and values go straight to their places in the caches, q and gate to rows. */
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    stage *st = self;
    const nsa_config *c = &st->cfg;
    const int64_t k_width = c->kv_heads * c->qk_dim, v_width = c->kv_heads * c->v_dim;
    st->step = *step;
    copy(st->q, &in->at[NSA_Q], 0, step->A * c->q_heads * c->qk_dim);
    copy(st->gate, &in->at[NSA_GATE], 0, step->A * c->q_heads * BRANCHES);
    for (int64_t a = 0; a < step->A; a++) {
        int64_t row = step->slot[a] * c->max_seq_len + step->pos[a];
        for (int x = 0; x < BRANCHES; x++) {
            copy(st->cache_k[x] + row * k_width, &in->at[NSA_K_CMP + 2 * x], a * k_width, k_width);
            copy(st->cache_v[x] + row * v_width, &in->at[NSA_V_CMP + 2 * x], a * v_width, v_width);
        }
    }
    return NSA_OK;
}

/* Token number `len` of a slot completes compressed token i = (len - l)/d, if d divides len - l. */
static void compress_newest(stage *st, int64_t slot, int64_t len) {
    const nsa_config *c = &st->cfg;
    if (len < c->cmp_block || (len - c->cmp_block) % c->cmp_stride)
        return;
    int64_t i = (len - c->cmp_block) / c->cmp_stride, token = len - c->cmp_block;
    for (int pair = 0; pair < PAIR; pair++) {
        const real *x = pair == KEYS ? st->cache_k[CMP] : st->cache_v[CMP];
        int64_t D = width(st, pair);
        for (int64_t h = 0; h < c->kv_heads; h++)
            compress(st, pair, x + ((slot * c->max_seq_len + token) * c->kv_heads + h) * D,
                     st->cache_phi[pair] + ((slot * st->cache_cmp + i) * c->kv_heads + h) * D);
    }
}

nsa_status decode(void *self) {
    stage *st = self;
    const nsa_step *step = &st->step;
    const int64_t idx_stride = st->cfg.kv_heads * st->cfg.slc_count;
    st->rows = step->A;
    st->keep_importance = 0;
    nsa_timer_start(&st->timer);
    for (int64_t a = 0; a < step->A; a++) {
        compress_newest(st, step->slot[a], step->pos[a] + 1);
        nsa_timer_add(&st->timer, COMPRESS);
        sequence sq = slot_sequence(st, step->slot[a], step->pos[a] + 1);
        attend_row(st, &sq, step->pos[a], a,
                   step->block_idx ? step->block_idx + a * idx_stride : NULL);
    }
    return NSA_OK;
}
