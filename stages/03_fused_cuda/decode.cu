/** @file
 *  @brief Decode: caches in the same blocks, one slot a sequence, one row a step. open() fixes the
 *  grids of all launches; what changes from step to step lies in device memory. */
#include "decode.cuh"
#include "load.cuh"

/* The struct that st->decoder points to. */
typedef struct decoder {
    decode_args args;
    cmp_coord *coords, *host_coords; /* [max_seqs] the compressed token that each row completes */
    int32_t *host_ints;              /* [2,max_seqs] positions and slots */
} decoder;

/* CUDA blocks for `items` memory blocks, `each` memory blocks to one. */
static int splits_for(int64_t items, int64_t each) {
    const int64_t splits = (items + each - 1) / each;
    return splits < 1 ? 1 : splits > MAX_SPLITS ? (int)MAX_SPLITS : (int)splits;
}

static void open_caches(stage *st) {
    const nsa_config *c = &st->cfg;
    const dims *x = &st->c;
    for (int branch = 0; branch < BRANCHES; branch++) {
        const int64_t keys = branch == CMP ? nsa_cmp_tokens(c, c->max_seq_len) : c->max_seq_len;
        kv_blocks *in = &st->cache[branch];
        st->cache_first[branch] = (keys + BLOCK - 1) / BLOCK;
        in->stride = c->max_seqs * st->cache_first[branch];
        in->kt = (real *)device_alloc(st, NSA_MEM_PERSISTENT, x->Hkv * in->stride * x->dk8 * BLOCK,
                                      sizeof(real));
        in->v = (real *)device_alloc(st, NSA_MEM_PERSISTENT, x->Hkv * in->stride * BLOCK * x->dvp,
                                     sizeof(real));
    }
    for (int pair = 0; pair < PAIR; pair++)
        st->cache_raw[pair] = (real *)device_alloc(
            st, NSA_MEM_PERSISTENT, c->max_seqs * c->max_seq_len * x->Hkv * width(st, pair),
            sizeof(real));
}

nsa_status open_decode(stage *st) {
    const nsa_config *c = &st->cfg;
    nsa_pool *pool = st->plan->pool;
    decoder *dec = (decoder *)nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, 1, sizeof *dec);
    if (!dec)
        return nsa_pool_status(pool);
    open_caches(st);
    decode_args *a = &dec->args;
    const int64_t window = c->window < c->max_seq_len ? c->window : c->max_seq_len;
    a->c = st->c;
    a->units = (int)(c->max_seqs * st->c.Hkv * st->c.GT);
    /* One memory block a warp if there are few, two if there are many. */
    a->splits[CMP] = splits_for(st->cache_first[CMP], 2 * SPLIT_WARPS);
    a->splits[WIN] = splits_for(window / BLOCK + 1, SPLIT_WARPS);
    a->splits[SLC] = splits_for(c->slc_count * (c->slc_block + BLOCK - 1) / BLOCK, SPLIT_WARPS);
    const int64_t splits = a->units * (int64_t)(a->splits[CMP] + a->splits[WIN] + a->splits[SLC]);
    const int64_t n = splits * TILE_ROWS; /* rows of all splits */
    for (int x = 0; x < BRANCHES; x++) {
        a->in[x] = st->cache[x];
        a->first[x] = st->cache_first[x];
        a->out_x[x] = st->plan->setup.flags & NSA_WANT_BRANCHES ? st->out_x[x] : NULL;
    }
    a->t = st->row_t;
    a->slot = st->row_seq;
    a->q_t = st->q_t;
    a->gate = st->gate;
    a->scores = (real *)device_alloc(st, NSA_MEM_SCRATCH,
                                     a->units * a->first[CMP] * TILE_ROWS * BLOCK, sizeof(real));
    a->split_o = (real *)device_alloc(st, NSA_MEM_SCRATCH, n * st->c.dvp, sizeof(real));
    a->split_stats = (partial_stats *)device_alloc(st, NSA_MEM_SCRATCH, n, sizeof(partial_stats));
    a->block_idx = st->block_idx;
    a->out = st->out;
    dec->coords = (cmp_coord *)device_alloc(st, NSA_MEM_PERSISTENT, c->max_seqs, sizeof(cmp_coord));
    dec->host_coords =
        (cmp_coord *)nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, c->max_seqs, sizeof(cmp_coord));
    dec->host_ints =
        (int32_t *)nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, 2 * c->max_seqs, sizeof(int32_t));
    st->decoder = dec;
    return st->failed ? NSA_OK : open_decode_attend(a); /* open reports a shortage */
}

/* Copy `n` blocks of every head from the pack to a slot; whole blocks, because the tails are never
 * read. */
static nsa_status copy_blocks(stage *st, int branch, int64_t to, int64_t from, int64_t n) {
    const kv_blocks *pack = &st->in[branch], *cache = &st->cache[branch];
    const size_t k = (size_t)st->c.dk8 * BLOCK * sizeof(real);
    const size_t v = (size_t)st->c.dvp * BLOCK * sizeof(real);
    if (n == 0)
        return NSA_OK;
    NSA_CUDA(cudaMemcpy2DAsync(cache->kt + to * st->c.dk8 * BLOCK, (size_t)cache->stride * k,
                               pack->kt + from * st->c.dk8 * BLOCK, (size_t)pack->stride * k,
                               (size_t)n * k, (size_t)st->c.Hkv, cudaMemcpyDeviceToDevice,
                               st->stream));
    NSA_CUDA(cudaMemcpy2DAsync(cache->v + to * st->c.dvp * BLOCK, (size_t)cache->stride * v,
                               pack->v + from * st->c.dvp * BLOCK, (size_t)pack->stride * v,
                               (size_t)n * v, (size_t)st->c.Hkv, cudaMemcpyDeviceToDevice,
                               st->stream));
    return NSA_OK;
}

nsa_status prefill(void *self) {
    stage *st = (stage *)self;
    TRY(forward(self));
    for (int64_t b = 0; b < st->batch.B; b++) {
        const sequence *sq = &st->host_seqs[b];
        const int64_t slot = st->batch.slot[b];
        for (int x = 0; x < BRANCHES; x++)
            TRY(copy_blocks(st, x, slot * st->cache_first[x], sq->first[x],
                            ((x == CMP ? sq->n_cmp : sq->len) + BLOCK - 1) / BLOCK));
        for (int pair = 0; pair < PAIR && sq->len; pair++) {
            const int64_t row = st->c.Hkv * width(st, pair);
            NSA_CUDA(cudaMemcpyAsync(st->cache_raw[pair] + slot * st->cfg.max_seq_len * row,
                                     st->raw[pair] + sq->token * row,
                                     (size_t)(sq->len * row) * sizeof(real),
                                     cudaMemcpyDeviceToDevice, st->stream));
        }
    }
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

/* Load positions and slots of the rows, and the compressed tokens that they complete: token number
 * `len` of a slot completes i = (len - l)/d, if d divides len - l. Inactive rows do nothing. */
static nsa_status load_coords(stage *st, const nsa_step *step) {
    const nsa_config *c = &st->cfg;
    decoder *dec = (decoder *)st->decoder;
    int32_t *t = dec->host_ints, *slot = t + c->max_seqs;
    for (int64_t a = 0; a < c->max_seqs; a++) {
        const int64_t len = a < step->A ? step->pos[a] + 1 : 0, begin = len - c->cmp_block;
        t[a] = (int32_t)(len - 1);
        slot[a] = a < step->A ? step->slot[a] : 0;
        dec->host_coords[a].token = -1;
        dec->host_coords[a].key = 0;
        if (begin < 0 || begin % c->cmp_stride)
            continue;
        dec->host_coords[a].token = slot[a] * c->max_seq_len + begin;
        dec->host_coords[a].key = slot[a] * st->cache_first[CMP] * BLOCK + begin / c->cmp_stride;
    }
    const size_t rows = (size_t)c->max_seqs;
    TRY(copy_to_device(st, st->row_t, t, rows * sizeof *t));
    TRY(copy_to_device(st, st->row_seq, slot, rows * sizeof *slot));
    return copy_to_device(st, dec->coords, dec->host_coords, rows * sizeof *dec->coords);
}

/* New keys and values go straight into the caches; q and gate into row tiles. */
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    stage *st = (stage *)self;
    const dims *c = &st->c;
    decoder *dec = (decoder *)st->decoder;
    st->step = *step;
    TRY(load_coords(st, step));
    TRY(load_rows(st, &in->at[NSA_Q], NULL, step->A, c->dk, st->q_t, NULL));
    TRY(load_gates(st, &in->at[NSA_GATE], NULL, step->A));
    TRY(append_raw(st, &in->at[NSA_K_CMP], st->cache_raw[KEYS], step->A, c->dk));
    TRY(append_raw(st, &in->at[NSA_V_CMP], st->cache_raw[VALUES], step->A, c->dv));
    for (int x = SLC; x <= WIN; x++) {
        const kv_blocks *to = &st->cache[x];
        TRY(append_keys(st, &in->at[NSA_K_CMP + 2 * x], to->kt, NULL, to->stride,
                        st->cache_first[x], step->A, c->dk));
        TRY(append_keys(st, &in->at[NSA_V_CMP + 2 * x], NULL, to->v, to->stride, st->cache_first[x],
                        step->A, c->dv));
    }
    dec->args.forced = step->block_idx != NULL;
    if (step->block_idx)
        TRY(copy_to_device(st, st->forced_idx, step->block_idx,
                           (size_t)(step->A * c->Hkv * c->n) * sizeof(int32_t)));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

nsa_status decode(void *self) {
    stage *st = (stage *)self;
    decoder *dec = (decoder *)st->decoder;
    const decode_args *a = &dec->args;
    const real *const raw[PAIR] = {st->cache_raw[KEYS], st->cache_raw[VALUES]};
    const int first_slc = a->splits[CMP] + a->splits[WIN];
    st->rows = st->step.A;
    TRY(poison(st, NSA_MEM_FORWARD | NSA_MEM_SCRATCH));
    TRY(record_phase(st, -1));
    TRY(compress(st, raw, &st->cache[CMP], dec->coords, st->cfg.max_seqs));
    TRY(record_phase(st, PHASE_COMPRESS));
    TRY(decode_splits(st, a, 0, first_slc));
    if (a->forced)
        NSA_CUDA(cudaMemcpyAsync(st->block_idx, st->forced_idx,
                                 (size_t)(st->rows * a->c.Hkv * a->c.n) * sizeof(int32_t),
                                 cudaMemcpyDeviceToDevice, st->stream));
    else
        TRY(decode_select(st, a));
    TRY(record_phase(st, PHASE_CMP));
    TRY(decode_splits(st, a, first_slc, first_slc + a->splits[SLC]));
    TRY(decode_combine(st, a));
    TRY(record_phase(st, PHASE_SLC_WIN));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}
