/** @file
 *  @brief Backward: tile after tile of query rows, then the compressed tokens back to their blocks.
 */
#include "stage.h"

#include <string.h>

static void zero(real *x, int64_t count) {
    memset(x, 0, (size_t)count * sizeof *x);
}

/* Gradients are sums over rows; they start from zero. */
static void zero_gradients(stage *st) {
    const nsa_config *c = &st->cfg;
    zero(st->dq, st->batch.R * c->q_heads * st->dkp);
    zero(st->dgate, st->batch.R * c->q_heads * BRANCHES);
    for (int pair = 0; pair < PAIR; pair++) {
        zero(st->draw[pair], st->batch.T * c->kv_heads * width(st, pair));
        for (int w = 0; w < WEIGHTS; w++) {
            if (st->dphi[pair][w])
                zero(st->dphi[pair][w], gradient_count(st, pair, w));
        }
    }
}

/* Two tiles may add to the same key, so each thread has gradients of its own. They are added up in
 * the threads' order, and which tiles a thread takes is fixed: the same bits for the same thread
 * count. */
static void sum_threads(const stage *st, real *d, int64_t count) {
#pragma omp parallel for num_threads(st->threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        for (int thread = 1; thread < st->threads; thread++)
            d[i] += d[thread * count + i];
    }
}

/* One compressor: every compressed token's gradient, out of the blocks, to its tokens and the
 * weights. */
static void compress_pack_backward(stage *st, work *w, int pair) {
    const nsa_batch *batch = &st->batch;
    const int64_t D = width(st, pair), Hkv = st->cfg.kv_heads;
    const int64_t padded = pair == KEYS ? st->dkp : st->dvp;
    const real *d = pair == KEYS ? st->in[CMP].dk : st->in[CMP].dv;
    for (int64_t b = 0; b < batch->B; b++) {
        const int64_t N = batch->cmp[b + 1] - batch->cmp[b], step = st->cfg.cmp_stride * Hkv * D;
        for (int64_t unit = 0, i = 0; i < N; i = ++unit / Hkv * MLP_BATCH) {
            const int64_t h = unit % Hkv, left = N - i;
            const int64_t key = (h * st->in[CMP].stride + st->first[CMP][b]) * BLOCK + i;
            const int64_t at = (batch->seq[b] * Hkv + h) * D + i * step;
            compress_backward(st, w, pair, st->raw[pair] + at, step,
                              left < MLP_BATCH ? left : MLP_BATCH, d + key * padded,
                              st->draw[pair] + at);
        }
    }
    compress_end_backward(st, pair);
}

nsa_status backward(void *self) {
    stage *st = self;
    const int64_t Hkv = st->cfg.kv_heads;
    start_timers(st);
    zero_gradients(st);
#pragma omp parallel num_threads(st->threads)
    {
        const int thread = this_thread();
        work *w = &st->work[thread];
        for (int x = 0; x < BRANCHES; x++) {
            const int64_t keys = Hkv * st->in[x].stride * BLOCK;
            zero(st->in[x].dk + thread * keys * st->dkp, keys * st->dkp);
            zero(st->in[x].dv + thread * keys * st->dvp, keys * st->dvp);
        }
        nsa_timer_start(&w->timer);
#pragma omp for schedule(static, 1)
        for (int64_t unit = 0; unit < st->n_tiles * Hkv; unit++) {
            const tile_of_rows *rows = &st->tiles[unit / Hkv];
            const sequence sq = pack_sequence(st, rows->sequence);
            backward_tile(st, w, thread, &sq, rows, unit % Hkv);
        }
    }
    for (int x = 0; x < BRANCHES; x++) {
        const int64_t keys = Hkv * st->in[x].stride * BLOCK;
        sum_threads(st, st->in[x].dk, keys * st->dkp);
        sum_threads(st, st->in[x].dv, keys * st->dvp);
    }
    stop_timers(st);
    const double before = nsa_now();
#pragma omp parallel for num_threads(st->threads) schedule(static, 1)
    for (int pair = 0; pair < PAIR; pair++)
        compress_pack_backward(st, &st->work[this_thread()], pair);
    st->timer.seconds[COMPRESS] = nsa_now() - before;
    return NSA_OK;
}
