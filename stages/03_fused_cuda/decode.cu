/** @file
 *  @brief Decode: caches in the same blocks, one slot a sequence, one row a step. open() fixes the
 *  grids of attention's launches; what changes from step to step, lengths too, lies in device
 *  memory, so that a graph of a step can be launched again and again. */
#include "decode.cuh"
#include "load.cuh"

/* The rows of a step on the device, and what follows from the lengths of their slots. */
typedef struct step_coords {
    int64_t A;                  /* rows */
    int64_t slot_keys[LAYOUTS]; /* keys of a slot's blocks, room past max_seq_len included */
    int64_t *len;               /* [max_seqs] tokens in each slot */
    int32_t *t;                 /* [max_seqs] position of each row; -1 if there is none */
    int32_t *slot;              /* [max_seqs] its slot */
    int64_t *key;               /* [max_seqs] the new token's index in the caches; -1 for none */
    int64_t *cmp_first;         /* [max_seqs] the compressed tokens that the step completes, and */
    int64_t *cmp_key;           /* [max_seqs] where they go, as in cmp_tokens */
    int64_t *cmp_rows;          /* [1] how many rows (tokens x Hkv) hold one */
} step_coords;

/* The struct that st->decoder points to. */
typedef struct decoder {
    decode_args args;
    step_coords at;
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
        alloc(st, &in->natural[VALUES], NSA_MEM_PERSISTENT, all * st->c.dvp);
        if (x == RAW) /* only compressed */
            alloc(st, &in->natural[KEYS], NSA_MEM_PERSISTENT, all * st->c.dkp);
        else
            alloc(st, &in->transposed[KEYS], NSA_MEM_PERSISTENT, all * st->c.dk8);
    }
}

static nsa_status open_coords(stage *st, decoder *dec) {
    const int64_t rows = st->cfg.max_seqs;
    step_coords *x = &dec->at;
    int64_t **const tables[] = {&x->len,     &x->key,      &x->cmp_first,
                                &x->cmp_key, &x->cmp_rows, &st->refusals.device};
    for (int64_t **table : tables) /* rows + 1: refusals are two, and rows may be one */
        alloc(st, table, NSA_MEM_PERSISTENT, rows + 1);
    alloc(st, &x->t, NSA_MEM_PERSISTENT, 2 * rows);
    x->slot = x->t + rows;
    for (int i = 0; i < LAYOUTS; i++)
        x->slot_keys[i] = st->slot_blocks[i] * BLOCK;
    return nsa_refusals_open(&st->refusals);
}

nsa_status open_decode(stage *st) {
    const nsa_config *c = &st->cfg;
    nsa_pool *pool = st->plan->pool;
    decoder *dec = (decoder *)nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, 1, sizeof *dec);
    if (!dec)
        return nsa_pool_status(pool);
    *dec = decoder();
    st->decoder = dec;
    open_caches(st);
    TRY(open_coords(st, dec));
    decode_args *a = &dec->args;
    const int64_t window = c->window < c->max_seq_len ? c->window : c->max_seq_len;
    a->c = st->c;
    a->units = (int)(c->max_seqs * st->c.Hkv * st->c.GT);
    /* A warp gets two memory blocks of compressed keys, the branch with the most, and one of each
     * other branch. */
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
    a->t = dec->at.t;
    a->slot = dec->at.slot;
    a->q_t = st->q_t;
    a->gate = st->gate;
    alloc(st, &a->scores, NSA_MEM_SCRATCH, a->units * a->slot_blocks[CMP] * TILE_ROWS * BLOCK);
    alloc(st, &a->split_o, NSA_MEM_SCRATCH, n * st->c.dvp);
    alloc(st, &a->split_stats, NSA_MEM_SCRATCH, n);
    a->block_idx = st->block_idx;
    a->out = st->out;
    TRY(open_decode_attend(a));
    return open_decode_select();
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
    const decoder *dec = (const decoder *)st->decoder;
    TRY(forward(self));
    if (!st->batch.keeps_slots) /* all others become empty */
        NSA_CUDA(cudaMemsetAsync(dec->at.len, 0, (size_t)st->cfg.max_seqs * sizeof *dec->at.len,
                                 st->stream));
    for (int64_t b = 0; b < st->batch.B; b++) {
        const sequence *sq = &st->host_seqs[b];
        const int64_t slot = st->batch.slot[b];
        for (int x = 0; x < LAYOUTS; x++)
            TRY(copy_blocks(st, x, slot * st->slot_blocks[x], sq->first_block[x],
                            ((x == CMP ? sq->n_cmp : sq->len) + BLOCK - 1) / BLOCK));
        NSA_CUDA(cudaMemcpyAsync(dec->at.len + slot, &st->seqs[b].len, sizeof *dec->at.len,
                                 cudaMemcpyDeviceToDevice, st->stream));
    }
    return nsa_stream_finish(&st->streams);
}

nsa_status slot_lens(void *self, int64_t *len) {
    stage *st = (stage *)self;
    return nsa_stream_copy(&st->streams, len, ((const decoder *)st->decoder)->at.len,
                           (size_t)st->cfg.max_seqs * sizeof *len);
}

/* Positions of the rows, where their keys go, and the compressed tokens that they complete: token
 * number `len` of a slot completes i = (len - l)/d, if d divides len - l. These are listed in any
 * order: each is compressed by itself. A full slot is left alone. All `rows`, max_seqs, get a
 * position: those past A get -1. One CUDA block, a row a thread. */
static __global__ void __launch_bounds__(NSA_THREADS)
    step_coords_kernel(dims c, step_coords x, int64_t rows, int64_t max_len, int64_t *refused) {
    __shared__ int s_complete;
    if (threadIdx.x == 0)
        s_complete = 0;
    __syncthreads();
    for (int64_t a = threadIdx.x; a < rows; a += NSA_THREADS) {
        const int64_t slot = x.slot[a], t = x.len[slot], begin = t + 1 - c.l;
        const bool there = a < x.A && t < max_len;
        if (a < x.A && !there)
            nsa_refuse(refused, slot);
        x.t[a] = there ? (int32_t)t : -1;
        x.key[a] = there ? slot * x.slot_keys[RAW] + t : -1;
        if (!there || begin < 0 || begin % c.d)
            continue;
        const int n = atomicAdd(&s_complete, 1);
        x.cmp_first[n] = slot * x.slot_keys[RAW] + begin;
        x.cmp_key[n] = slot * x.slot_keys[CMP] + begin / c.d;
    }
    __syncthreads();
    if (threadIdx.x == 0)
        *x.cmp_rows = (int64_t)s_complete * c.Hkv;
    for (int64_t n = s_complete + threadIdx.x; n < x.A; n += NSA_THREADS) {
        x.cmp_first[n] = 0;
        x.cmp_key[n] = -1;
    }
}

static nsa_status load_coords(stage *st, decoder *dec, const nsa_step *step) {
    step_coords *x = &dec->at;
    x->A = step->A;
    if (!step->same)
        TRY(upload(st, x->slot, step->slot, x->A));
    LAUNCH(step_coords_kernel, 1, NSA_THREADS, 0, st, st->c, *x, st->cfg.max_seqs,
           st->cfg.max_seq_len, st->refusals.device);
    return nsa_refusals_copy(&st->refusals, &st->streams);
}

/* New keys and values go straight into the caches; q and gate into row tiles. */
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    stage *st = (stage *)self;
    decoder *dec = (decoder *)st->decoder;
    TRY(load_coords(st, dec, step));
    TRY(load_queries(st, in, NULL, NULL, step->A));
    TRY(load_keys(st, in, dec->at.key, step->A, st->cache));
    TRY(load_block_lists(st, &in->at[NSA_BLOCK_IDX], step->block_idx, NULL, dec->at.t, step->A));
    dec->args.forced = st->forced;
    return nsa_stream_finish(&st->streams);
}

/* The rows of a step are now in their slots. */
static __global__ void advance_kernel(step_coords x) {
    for (int64_t a = nsa_first(); a < x.A; a += nsa_grid_threads()) {
        if (x.t[a] >= 0)
            x.len[x.slot[a]] = x.t[a] + 1;
    }
}

nsa_status decode(void *self) {
    stage *st = (stage *)self;
    decoder *dec = (decoder *)st->decoder;
    const decode_args *a = &dec->args;
    const step_coords *x = &dec->at;
    const cmp_tokens cmp = {x->cmp_first, x->cmp_key, x->A, x->cmp_rows}; /* room for one a row */
    const int first_slc = a->splits[CMP] + a->splits[WIN];
    TRY(poison(st, NSA_MEM_FORWARD | NSA_MEM_SCRATCH));
    TRY(start_phases(st));
    TRY(compress(st, st->cache, &cmp));
    TRY(record_phase(st, PHASE_COMPRESS));
    TRY(decode_splits(st, a, 0, first_slc)); /* the window's too: they wait for nothing */
    if (a->forced)
        NSA_CUDA(cudaMemcpyAsync(st->block_idx, st->forced_idx,
                                 (size_t)(x->A * a->c.Hkv * a->c.n) * sizeof(int32_t),
                                 cudaMemcpyDeviceToDevice, st->stream));
    else
        TRY(decode_select(st, a));
    TRY(record_phase(st, PHASE_CMP));
    TRY(decode_splits(st, a, first_slc, first_slc + a->splits[SLC]));
    TRY(decode_combine(st, a));
    LAUNCH(advance_kernel, nsa_grid(x->A), NSA_THREADS, 0, st, *x);
    TRY(record_phase(st, PHASE_SLC_WIN));
    return nsa_stream_finish(&st->streams);
}
