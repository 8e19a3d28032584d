/** @file
 *  @brief Backward: tile after tile of query rows, then compressed tokens back to their blocks. */
#include "stage.h"

static void zero(real *x, int64_t count) {
    memset(x, 0, (size_t)count * sizeof *x);
}

/* Elements of one thread's gradients of a branch's keys or values. */
static int64_t gradient_count(const stage *st, int branch, int pair) {
    return st->cfg.kv_heads * st->in[branch].stride * BLOCK * round_up(width(st, pair), LANES);
}

/* Gradients are sums over rows; they start from zero, those of every thread. */
static void zero_gradients(stage *st) {
    const nsa_config *c = &st->cfg;
    zero(st->dq, st->batch.R * c->q_heads * st->dkp);
    zero(st->dgate, st->batch.R * c->q_heads * BRANCHES);
    for (int pair = 0; pair < PAIR; pair++) {
        for (int x = 0; x < BRANCHES; x++)
            zero(st->in[x].gradient[pair], st->threads * gradient_count(st, x, pair));
        zero(st->d_raw[pair], st->batch.T * c->kv_heads * width(st, pair));
        for (int w = 0; w < WEIGHTS; w++) {
            if (st->dphi[pair][w])
                zero(st->dphi[pair][w], padded_count(st, pair, w));
        }
    }
}

/* Two tiles may add to the same key at the same time, so each thread has gradients of its own: no
 * lock, and no atomic sum whose order would differ from run to run. They are added up in the
 * threads' order, and which tiles a thread takes is fixed: as many threads, the same bits. */
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
    const kv_blocks *in = &st->in[CMP];
    const int64_t D = width(st, pair), Hkv = st->cfg.kv_heads,
                  stride = st->cfg.cmp_stride * Hkv * D;
    const real *dy = in->gradient[pair];
    for (int64_t b = 0; b < batch->B; b++) {
        const int64_t N = batch->cmp[b + 1] - batch->cmp[b];
        for (int64_t unit = 0, i = 0; i < N; i = ++unit / Hkv * MLP_BATCH) {
            const int64_t h = unit % Hkv, at = (batch->seq[b] * Hkv + h) * D + i * stride;
            const int64_t key = (h * in->stride + first_block(st, CMP, b)) * BLOCK + i;
            const cmp_blocks blocks = {st->raw[pair] + at, stride,
                                       N - i < MLP_BATCH ? N - i : MLP_BATCH};
            compress_backward(st, w, pair, blocks, dy + key * round_up(D, LANES),
                              st->d_raw[pair] + at);
        }
    }
}

nsa_status backward(void *self) {
    stage *st = self;
    nsa_timer_start(&st->timer);
    zero_gradients(st);
#pragma omp parallel num_threads(st->threads)
    {
        work *w = &st->work[omp_get_thread_num()];
        nsa_timer_start(&w->timer);
#pragma omp for schedule(static, 1)
        for (int64_t unit = 0; unit < st->n_tiles * st->cfg.kv_heads; unit++) {
            const query_tile qt = pack_tile(st, unit);
            backward_tile(st, w, &qt);
        }
    }
    for (int i = 0; i < BRANCHES * PAIR; i++)
        sum_threads(st, st->in[i / PAIR].gradient[i % PAIR],
                    gradient_count(st, i / PAIR, i % PAIR));
    add_mean_times(st);
    const double before = nsa_now();
#pragma omp parallel for num_threads(st->threads) schedule(static, 1)
    for (int pair = 0; pair < PAIR; pair++)
        compress_pack_backward(st, &st->work[omp_get_thread_num()], pair);
    st->timer.seconds[COMPRESS] = nsa_now() - before;
    return NSA_OK;
}
