/** @file
 *  @brief Decode: caches in the same blocks, one slot a sequence, one row a step. */
#include "stage.h"

/* The caches hold one slot a sequence, whole blocks each:
 *     head 0: slot 0 | slot 1 | ...    head 1: slot 0 | slot 1 | ...
 * So a slot is a sequence like one of the pack, and a step is attend_tile() of one query. */

/* The first `n` blocks of every head of sequence b, from the pack to its slot; whole, for what lies
 * behind their last key is masked. */
static void cache_blocks(const stage *st, int branch, int64_t b, int64_t n) {
    const kv_blocks *pack = &st->in[branch], *cache = &st->cache[branch];
    const int64_t k = st->cfg.qk_dim * BLOCK, v = BLOCK * st->dvp;
    for (int64_t h = 0; h < st->cfg.kv_heads; h++) {
        const int64_t to = h * cache->stride + first_of_slot(st, branch, st->batch.slot[b]);
        const int64_t from = h * pack->stride + first_block(st, branch, b);
        memcpy(cache->transposed[KEYS] + to * k, pack->transposed[KEYS] + from * k,
               (size_t)(n * k) * sizeof(real));
        memcpy(cache->natural[VALUES] + to * v, pack->natural[VALUES] + from * v,
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
            cache_blocks(st, x, b, ((x == CMP ? N : len) + BLOCK - 1) / BLOCK);
        for (int pair = 0; pair < PAIR; pair++) {
            int64_t row = c->kv_heads * width(st, pair);
            memcpy(st->cache_raw[pair] + batch->slot[b] * c->max_seq_len * row,
                   st->raw[pair] + batch->seq[b] * row, (size_t)(len * row) * sizeof(real));
        }
    }
    return status;
}

/* The new tokens' keys and values go straight to their places in the caches, q and gate to rows. */
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    stage *st = self;
    const nsa_config *c = &st->cfg;
    real x[256]; /* dk and dv are at most 256: a bound of the specification */
    st->step = *step;
    for (int64_t i = 0; i < step->A * c->q_heads; i++)
        copy(st->q + i * st->dkp, &in->at[NSA_Q], i * c->qk_dim, c->qk_dim);
    copy(st->gate, &in->at[NSA_GATE], 0, step->A * c->q_heads * BRANCHES);
    for (int64_t i = 0; i < step->A * c->kv_heads * PAIR; i++) {
        const int pair = (int)(i % PAIR);
        const int64_t row = i / PAIR, a = row / c->kv_heads, h = row % c->kv_heads;
        const int64_t D = width(st, pair), slot = step->slot[a], t = step->pos[a];
        copy(st->cache_raw[pair] + ((slot * c->max_seq_len + t) * c->kv_heads + h) * D,
             &in->at[NSA_K_CMP + pair], row * D, D);
        for (int branch = SLC; branch <= WIN; branch++) {
            const kv_blocks *cache = &st->cache[branch];
            copy(x, &in->at[NSA_K_CMP + 2 * branch + pair], row * D, D);
            pack_row(st, cache, pair,
                     (h * cache->stride + first_of_slot(st, branch, slot)) * BLOCK + t, x);
        }
    }
    return NSA_OK;
}

/* Token number `len` of a slot completes compressed token i = (len - l)/d, if d divides len - l. */
static void compress_newest(stage *st, work *w, int64_t slot, int64_t h, int64_t len) {
    const nsa_config *c = &st->cfg;
    const kv_blocks *cache = &st->cache[CMP];
    if (len < c->cmp_block || (len - c->cmp_block) % c->cmp_stride)
        return;
    int64_t i = (len - c->cmp_block) / c->cmp_stride, token = len - c->cmp_block;
    int64_t key = (h * cache->stride + first_of_slot(st, CMP, slot)) * BLOCK + i;
    for (int pair = 0; pair < PAIR; pair++) {
        int64_t at = ((slot * c->max_seq_len + token) * c->kv_heads + h) * width(st, pair);
        compress(st, w, pair, (cmp_blocks){st->cache_raw[pair] + at, 0, 1});
        pack_row(st, cache, pair, key, w->y);
    }
}

nsa_status decode(void *self) {
    stage *st = self;
    const nsa_step *step = &st->step;
    const int64_t Hkv = st->cfg.kv_heads;
    st->rows = step->A;
    st->keep_importance = 0;
    nsa_timer_start(&st->timer);
#pragma omp parallel num_threads(st->threads)
    {
        work *w = &st->work[omp_get_thread_num()];
        nsa_timer_start(&w->timer);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < step->A * Hkv; unit++) {
            const int64_t a = unit / Hkv, t = step->pos[a];
            query_tile qt = {.in = st->cache, .row = a, .count = 1, .kvh = unit % Hkv, .t = {t}};
            for (int x = 0; x < BRANCHES; x++)
                qt.first_block[x] = first_of_slot(st, x, step->slot[a]);
            compress_newest(st, w, step->slot[a], qt.kvh, t + 1);
            nsa_timer_add(&w->timer, COMPRESS);
            attend_tile(st, w, &qt, step->block_idx);
        }
    }
    add_mean_times(st);
    return NSA_OK;
}
