/** @file
 *  @brief Forward: compress the pack, then tile after tile of query rows. Also plain causal
 * attention. */
#include "stage.h"

/* A call begins on every thread's clock, and ends as the mean of all of them. */
void start_timers(stage *st) {
    for (int i = 0; i < st->threads; i++)
        nsa_timer_start(&st->work[i].timer);
    nsa_timer_start(&st->timer);
}

void stop_timers(stage *st) {
    for (int i = 0; i < st->threads; i++) {
        for (int phase = 0; phase < COMPRESS; phase++)
            st->timer.seconds[phase] += st->work[i].timer.seconds[phase] / st->threads;
    }
}

/* The positions of a tile's rows in their sequence. */
static void positions(const stage *st, const tile_of_rows *rows, int64_t *t) {
    for (int64_t i = 0; i < rows->count; i++)
        t[i] = st->batch.row[rows->first + i] - st->batch.seq[rows->sequence];
}

/* Tiles do not meet: each thread takes the next one that is free, and no sum depends on which. */
nsa_status forward(void *self) {
    stage *st = self;
    st->rows = st->batch.R;
    st->keep_importance = (st->plan->setup.flags & NSA_WANT_IMPORTANCE) != 0;
    start_timers(st);
    compress_pack(st);
    nsa_timer_add(&st->timer, COMPRESS);
#pragma omp parallel num_threads(st->threads)
    {
        work *w = &st->work[this_thread()];
        nsa_timer_start(&w->timer);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < st->n_tiles * st->cfg.kv_heads; unit++) {
            /* the last tiles see most keys: they go first */
            const tile_of_rows *rows = &st->tiles[st->n_tiles - 1 - unit / st->cfg.kv_heads];
            const sequence sq = pack_sequence(st, rows->sequence);
            int64_t t[QUERY_TILE];
            positions(st, rows, t);
            attend_tile(st, w, &sq, rows, unit % st->cfg.kv_heads, t, st->batch.block_idx);
        }
    }
    stop_timers(st);
    return NSA_OK;
}

/* One head group of a tile over all s <= t of one pair: what every branch becomes in its limit. */
static void causal_tile(stage *st, work *w, int branch, const tile_of_rows *rows, int64_t kvh) {
    const nsa_config *c = &st->cfg;
    const sequence sq = pack_sequence(st, rows->sequence);
    int64_t t[QUERY_TILE], G = st->plan->group;
    positions(st, rows, t);
    for (int64_t i = 0; i < rows->count; i++) {
        w->next_span[i] = i ? w->end_span[i - 1] : 0;
        w->end_span[i] = w->next_span[i] + visible_all(st, t[i], w->spans + w->next_span[i]);
    }
    attend_blocks(st, w, &sq, branch, rows->first, rows->count, kvh);
    for (int64_t i = 0; i < rows->count * G; i++) {
        const int64_t head = (rows->first + i / G) * c->q_heads + kvh * G + i % G;
        for (int64_t k = 0; k < c->v_dim; k++)
            st->out_causal[head * c->v_dim + k] = w->inv_sum[i] * w->o[i * st->dvp + k];
    }
}

nsa_status causal(void *self, int pair) {
    stage *st = self;
#pragma omp parallel for num_threads(st->threads) schedule(dynamic)
    for (int64_t unit = 0; unit < st->n_tiles * st->cfg.kv_heads; unit++)
        causal_tile(st, &st->work[this_thread()], pair == CMP ? RAW : pair,
                    &st->tiles[st->n_tiles - 1 - unit / st->cfg.kv_heads], unit % st->cfg.kv_heads);
    return NSA_OK;
}
