/** @file
 *  @brief Decode: caches in the same blocks, one slot a sequence, one row a step. open() fixes the
 *  grids of attention's launches; what changes from step to step lies in device memory. */
#include "decode.cuh"
#include "load.cuh"

/* The struct that st->decoder points to. */
typedef struct decoder {
    decode_args args;
    cmp_tokens cmp, host_cmp; /* [max_seqs] the compressed tokens that the step completes */
    int64_t *key, *host_key;  /* [max_seqs] the new tokens' indices in the caches */
    int32_t *host_ints;       /* [2,max_seqs] positions and slots */
} decoder;

/* CUDA blocks for `items` memory blocks, `each` memory blocks to one. */
static int splits_for(int64_t items, int64_t each) {
    const int64_t splits = (items + each - 1) / each;
    return splits < 1 ? 1 : splits > MAX_SPLITS ? (int)MAX_SPLITS : (int)splits;
}

static void open_caches(stage *st) {
    const nsa_config *c = &st->cfg;
    for (int x = 0; x < LAYOUTS; x++) {
        const int64_t keys = x == CMP ? nsa_cmp_tokens(c, c->max_seq_len) : c->max_seq_len;
        kv_blocks *in = &st->cache[x];
        st->slot_blocks[x] = (keys + BLOCK - 1) / BLOCK;
        in->stride = c->max_seqs * st->slot_blocks[x];
        const int64_t all = c->kv_heads * in->stride * BLOCK;
        in->natural[VALUES] = alloc_reals(st, NSA_MEM_PERSISTENT, all * st->c.dvp);
        if (x == RAW) /* only compressed */
            in->natural[KEYS] = alloc_reals(st, NSA_MEM_PERSISTENT, all * st->c.dkp);
        else
            in->transposed[KEYS] = alloc_reals(st, NSA_MEM_PERSISTENT, all * st->c.dk8);
    }
}

/* What load_step() lists of a step's rows. */
static void open_coords(stage *st, decoder *dec) {
    const int64_t rows = st->cfg.max_seqs;
    nsa_pool *pool = st->plan->pool;
    open_cmp_tokens(st, &dec->cmp, &dec->host_cmp, rows);
    dec->key = (int64_t *)device_alloc(st, NSA_MEM_PERSISTENT, rows, sizeof(int64_t));
    dec->host_key = (int64_t *)nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, rows, sizeof(int64_t));
    dec->host_ints = (int32_t *)nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, 2 * rows, sizeof(int32_t));
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
    /* A warp gets two memory blocks of compressed keys, the most there are, and one of the others.
     */
    a->splits[CMP] = splits_for(st->slot_blocks[CMP], 2 * SPLIT_WARPS);
    a->splits[WIN] = splits_for(window / BLOCK + 1, SPLIT_WARPS);
    a->splits[SLC] = splits_for(c->slc_count * (c->slc_block + BLOCK - 1) / BLOCK, SPLIT_WARPS);
    const int64_t splits = a->units * (int64_t)(a->splits[CMP] + a->splits[WIN] + a->splits[SLC]);
    const int64_t n = splits * TILE_ROWS; /* rows of all splits */
    for (int x = 0; x < BRANCHES; x++) {
        a->in[x] = st->cache[x];
        a->slot_blocks[x] = st->slot_blocks[x];
        a->out_x[x] = st->plan->setup.flags & NSA_WANT_BRANCHES ? st->out_x[x] : NULL;
    }
    a->t = st->row_t;
    a->slot = st->row_seq; /* in a step, a row's sequence is its slot */
    a->q_t = st->q_t;
    a->gate = st->gate;
    a->scores = (real *)device_alloc(
        st, NSA_MEM_SCRATCH, a->units * a->slot_blocks[CMP] * TILE_ROWS * BLOCK, sizeof(real));
    a->split_o = (real *)device_alloc(st, NSA_MEM_SCRATCH, n * st->c.dvp, sizeof(real));
    a->split_stats = (partial_stats *)device_alloc(st, NSA_MEM_SCRATCH, n, sizeof(partial_stats));
    a->block_idx = st->block_idx;
    a->out = st->out;
    open_coords(st, dec);
    st->decoder = dec;
    return st->failed ? NSA_OK : open_decode_attend(a); /* open reports a shortage */
}

/* Copy `n` blocks of every head from the pack to a slot: whole blocks, for what lies past a
 * sequence's end is masked. */
static nsa_status copy_blocks(stage *st, int branch, int64_t to, int64_t from, int64_t n) {
    const kv_blocks *pack = &st->in[branch], *cache = &st->cache[branch];
    const real *const src[] = {pack->transposed[KEYS], pack->natural[KEYS], pack->natural[VALUES]};
    real *const dst[] = {cache->transposed[KEYS], cache->natural[KEYS], cache->natural[VALUES]};
    const int widths[] = {st->c.dk8, st->c.dkp, st->c.dvp};
    for (int i = 0; i < 3; i++) {
        const int64_t block = (int64_t)widths[i] * BLOCK;
        const size_t bytes = (size_t)block * sizeof(real);
        if (dst[i] && n)
            NSA_CUDA(cudaMemcpy2DAsync(dst[i] + to * block, (size_t)cache->stride * bytes,
                                       src[i] + from * block, (size_t)pack->stride * bytes,
                                       (size_t)n * bytes, (size_t)st->c.Hkv,
                                       cudaMemcpyDeviceToDevice, st->stream));
    }
    return NSA_OK;
}

nsa_status prefill(void *self) {
    stage *st = (stage *)self;
    TRY(forward(self));
    for (int64_t b = 0; b < st->batch.B; b++) {
        const sequence *sq = &st->host_seqs[b];
        for (int x = 0; x < LAYOUTS; x++)
            TRY(copy_blocks(st, x, st->batch.slot[b] * st->slot_blocks[x], sq->first_block[x],
                            ((x == CMP ? sq->n_cmp : sq->len) + BLOCK - 1) / BLOCK));
    }
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

/* Load positions and slots of the rows, where their keys go, and the compressed tokens that they
 * complete: token number `len` of a slot completes i = (len - l)/d, if d divides len - l. */
static nsa_status load_coords(stage *st, const nsa_step *step) {
    const nsa_config *c = &st->cfg;
    decoder *dec = (decoder *)st->decoder;
    int32_t *t = dec->host_ints, *slot = t + c->max_seqs;
    cmp_tokens *cmp = &dec->host_cmp;
    cmp->count = 0;
    for (int64_t a = 0; a < c->max_seqs; a++) {
        const int64_t len = a < step->A ? step->pos[a] + 1 : 0, begin = len - c->cmp_block;
        t[a] = (int32_t)(len - 1);
        slot[a] = a < step->A ? step->slot[a] : 0;
        const int64_t first = slot[a] * st->slot_blocks[RAW] * BLOCK;
        dec->host_key[a] = first + len - 1;
        if (begin < 0 || begin % c->cmp_stride)
            continue;
        cmp->first[cmp->count] = first + begin;
        cmp->key[cmp->count++] = slot[a] * st->slot_blocks[CMP] * BLOCK + begin / c->cmp_stride;
    }
    const size_t rows = (size_t)c->max_seqs;
    TRY(copy_to_device(st, st->row_t, t, rows * sizeof *t));
    TRY(copy_to_device(st, st->row_seq, slot, rows * sizeof *slot));
    TRY(copy_to_device(st, dec->key, dec->host_key, (size_t)step->A * sizeof *dec->key));
    return copy_cmp_tokens(st, &dec->cmp, cmp);
}

/* New keys and values go straight into the caches; q and gate into row tiles. */
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    stage *st = (stage *)self;
    const dims *c = &st->c;
    decoder *dec = (decoder *)st->decoder;
    st->step = *step;
    TRY(load_coords(st, step));
    TRY(load_queries(st, in, NULL, step->A));
    TRY(load_keys(st, in, dec->key, step->A, st->cache));
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
    const int first_slc = a->splits[CMP] + a->splits[WIN];
    st->rows = st->step.A;
    TRY(poison(st, NSA_MEM_FORWARD | NSA_MEM_SCRATCH));
    TRY(start_phases(st));
    TRY(compress(st, st->cache, &dec->cmp));
    TRY(record_phase(st, PHASE_COMPRESS));
    TRY(decode_splits(st, a, 0, first_slc)); /* the window's too: they wait for nothing */
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
