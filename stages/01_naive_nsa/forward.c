/** @file
 *  @brief Forward: compress the pack, then each query row alone. Also plain causal attention. */
#include "stage.h"

nsa_status forward(void *self) {
    stage *st = self;
    const int64_t idx_stride = st->cfg.kv_heads * st->cfg.slc_count;
    st->rows = st->batch.R;
    st->keep_importance = (st->plan->setup.flags & NSA_WANT_IMPORTANCE) != 0;
    nsa_timer_start(&st->timer);
    compress_pack(st);
    nsa_timer_add(&st->timer, COMPRESS);
    for (int64_t r = 0; r < st->batch.R; r++) {
        int64_t b = sequence_of(st, st->batch.row[r]);
        sequence sq = pack_sequence(st, b);
        const int32_t *forced = st->batch.block_idx;
        attend_row(st, &sq, st->batch.row[r] - st->batch.seq[b], r,
                   forced ? forced + r * idx_stride : NULL);
    }
    return NSA_OK;
}

/* softmax over all s <= t of one pair as loaded: what every branch becomes in its limit. */
nsa_status causal(void *self, int pair) {
    stage *st = self;
    const nsa_config *c = &st->cfg;
    for (int64_t r = 0; r < st->batch.R; r++) {
        int64_t b = sequence_of(st, st->batch.row[r]), first = st->batch.seq[b] * c->kv_heads;
        for (int64_t h = 0; h < c->q_heads; h++) {
            int64_t row = r * c->q_heads + h, kvh = h / st->plan->group;
            int64_t n = visible_all(st, st->batch.row[r] - st->batch.seq[b]);
            attend(st, st->q + row * c->qk_dim, st->k[pair] + (first + kvh) * c->qk_dim,
                   st->v[pair] + (first + kvh) * c->v_dim, n, st->out_causal + row * c->v_dim);
        }
    }
    return NSA_OK;
}
