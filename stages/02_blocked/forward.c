/** @file
 *  @brief Forward: compress the pack, then tile after tile of query rows. Also plain causal
 * attention. */
#include "stage.h"

/* Add the threads' mean time of each phase to the call's. */
void add_mean_times(stage *st) {
    for (int i = 0; i < st->threads * PHASES; i++)
        st->timer.seconds[i % PHASES] +=
            st->work[i / PHASES].timer.seconds[i % PHASES] / st->threads;
}

/* Tiles do not meet: each thread takes the next one that is free, and no sum depends on which. The
 * last tiles see most keys: they go first. */
nsa_status forward(void *self) {
    stage *st = self;
    const int64_t units = st->n_tiles * st->cfg.kv_heads;
    st->rows = st->batch.R;
    st->keep_importance = (st->plan->setup.flags & NSA_WANT_IMPORTANCE) != 0;
    nsa_timer_start(&st->timer);
    compress_pack(st);
    nsa_timer_add(&st->timer, COMPRESS);
#pragma omp parallel num_threads(st->threads)
    {
        work *w = &st->work[omp_get_thread_num()];
        nsa_timer_start(&w->timer);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; unit++) {
            const query_tile qt = pack_tile(st, units - 1 - unit);
            attend_tile(st, w, &qt, st->batch.block_idx);
        }
    }
    add_mean_times(st);
    return NSA_OK;
}

/* A tile over all s <= t of one pair: what every branch becomes in its limit. */
static void causal_tile(stage *st, work *w, int branch, const query_tile *qt) {
    const int64_t G = st->plan->group, dv = st->cfg.v_dim;
    attend_blocks(st, w, qt, branch, list_spans(st, w, qt, RAW));
    for (int64_t i = 0; i < qt->count * G; i++) {
        real *out = st->out_causal + (first_head(st, qt, i / G) + i % G) * dv;
        for (int64_t c = 0; c < dv; c++)
            out[c] = w->inv_sum[i] * w->o[i * st->dvp + c];
    }
}

nsa_status causal(void *self, int pair) {
    stage *st = self;
    const int64_t units = st->n_tiles * st->cfg.kv_heads;
#pragma omp parallel for num_threads(st->threads) schedule(dynamic)
    for (int64_t unit = 0; unit < units; unit++) {
        const query_tile qt = pack_tile(st, units - 1 - unit);
        causal_tile(st, &st->work[omp_get_thread_num()], pair == CMP ? RAW : pair, &qt);
    }
    return NSA_OK;
}
