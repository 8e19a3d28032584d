/** @file
 *  @brief Decode: caches in the same blocks, one slot a sequence, one row a step. */
#include "stage.h"

#include <string.h>

/* A slot of the caches, as a sequence of `len` tokens. */
static sequence slot_sequence(const stage *st, int64_t slot, int64_t len) {
    sequence sq = {.len = len, .n_cmp = nsa_cmp_tokens(&st->cfg, len)};
    for (int x = 0; x < BRANCHES; x++) {
        sq.in[x] = &st->cache[x];
        sq.first[x] = slot * st->cache_first[x];
    }
    return sq;
}

/* `n` blocks of every head, from the pack's to a slot's; whole, for their tails are never read. */
static void copy_blocks(const stage *st, int branch, int64_t to, int64_t from, int64_t n) {
    const kv_blocks *pack = &st->in[branch], *cache = &st->cache[branch];
    const int64_t k = st->cfg.qk_dim * BLOCK, v = BLOCK * st->dvp;
    for (int64_t h = 0; h < st->cfg.kv_heads; h++) {
        memcpy(cache->kt + (h * cache->stride + to) * k, pack->kt + (h * pack->stride + from) * k,
               (size_t)(n * k) * sizeof(real));
        memcpy(cache->v + (h * cache->stride + to) * v, pack->v + (h * pack->stride + from) * v,
               (size_t)(n * v) * sizeof(real));
    }
}

nsa_status prefill(void *self) {
    stage *st = self;
    const nsa_config *c = &st->cfg;
    const nsa_batch *batch = &st->batch;
    nsa_status status = forward(self);
    for (int64_t b = 0; b < batch->B; b++) {
        int64_t len = batch->seq[b + 1] - batch->seq[b], N = batch->cmp[b + 1] - batch->cmp[b];
        for (int x = 0; x < BRANCHES; x++)
            copy_blocks(st, x, b * st->cache_first[x], st->first[x][b],
                        ((x == CMP ? N : len) + BLOCK - 1) / BLOCK);
        for (int pair = 0; pair < PAIR; pair++) {
            int64_t row = c->kv_heads * width(st, pair);
            memcpy(st->cache_raw[pair] + b * c->max_seq_len * row,
                   st->raw[pair] + batch->seq[b] * row, (size_t)(len * row) * sizeof(real));
        }
    }
    return status;
}

/* The new tokens' keys and values go straight to their places in the caches, q and gate to rows. */
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    stage *st = self;
    const nsa_config *c = &st->cfg;
    real row[256];
    st->step = *step;
    for (int64_t i = 0; i < step->A * c->q_heads; i++)
        copy(st->q + i * st->dkp, &in->at[NSA_Q], i * c->qk_dim, c->qk_dim);
    copy(st->gate, &in->at[NSA_GATE], 0, step->A * c->q_heads * BRANCHES);
    for (int64_t i = 0; i < step->A * c->kv_heads; i++) {
        int64_t a = i / c->kv_heads, h = i % c->kv_heads, slot = step->slot[a], t = step->pos[a];
        int64_t raw = (slot * c->max_seq_len + t) * c->kv_heads + h;
        copy(st->cache_raw[KEYS] + raw * c->qk_dim, &in->at[NSA_K_CMP], i * c->qk_dim, c->qk_dim);
        copy(st->cache_raw[VALUES] + raw * c->v_dim, &in->at[NSA_V_CMP], i * c->v_dim, c->v_dim);
        for (int x = SLC; x <= WIN; x++) {
            int64_t block = slot * st->cache_first[x] + t / BLOCK;
            copy(row, &in->at[NSA_K_CMP + 2 * x], i * c->qk_dim, c->qk_dim);
            pack_key(st, &st->cache[x], h, block, t % BLOCK, row);
            copy(row, &in->at[NSA_V_CMP + 2 * x], i * c->v_dim, c->v_dim);
            pack_value(st, &st->cache[x], h, block, t % BLOCK, row);
        }
    }
    return NSA_OK;
}

/* Token number `len` of a slot completes compressed token i = (len - l)/d, if d divides len - l. */
static void compress_newest(stage *st, work *w, int64_t slot, int64_t h, int64_t len) {
    const nsa_config *c = &st->cfg;
    if (len < c->cmp_block || (len - c->cmp_block) % c->cmp_stride)
        return;
    int64_t i = (len - c->cmp_block) / c->cmp_stride, token = len - c->cmp_block;
    int64_t block = slot * st->cache_first[CMP] + i / BLOCK;
    for (int pair = 0; pair < PAIR; pair++) {
        int64_t at = ((slot * c->max_seq_len + token) * c->kv_heads + h) * width(st, pair);
        compress(st, w, pair, st->cache_raw[pair] + at, 0, 1, w->dz);
        if (pair == KEYS)
            pack_key(st, &st->cache[CMP], h, block, i % BLOCK, w->dz);
        else
            pack_value(st, &st->cache[CMP], h, block, i % BLOCK, w->dz);
    }
}

nsa_status decode(void *self) {
    stage *st = self;
    const nsa_step *step = &st->step;
    const int64_t Hkv = st->cfg.kv_heads;
    st->rows = step->A;
    st->keep_importance = 0;
    start_timers(st);
#pragma omp parallel num_threads(st->threads)
    {
        work *w = &st->work[this_thread()];
        nsa_timer_start(&w->timer);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < step->A * Hkv; unit++) {
            const int64_t a = unit / Hkv;
            const tile_of_rows row = {.first = a, .count = 1};
            const sequence sq = slot_sequence(st, step->slot[a], step->pos[a] + 1);
            compress_newest(st, w, step->slot[a], unit % Hkv, step->pos[a] + 1);
            attend_tile(st, w, &sq, &row, unit % Hkv, &step->pos[a], step->block_idx);
        }
    }
    stop_timers(st);
    return NSA_OK;
}
