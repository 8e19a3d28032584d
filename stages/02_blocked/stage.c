/** @file
 *  @brief Where this stage keeps its tensors: open, load, and its table for the contract. The
 * layout that pack_row() writes is the stage's idea. */
#include "stage.h"

/* ------------------------------------------------------------------- open */

static real *pool_alloc(const stage *st, nsa_memory_kind kind, int64_t count) {
    return nsa_pool_alloc(st->plan->pool, kind, count, sizeof(real));
}

/* A result, and where read() finds it. W1's gradient is unpacked all the same. */
static real *alloc_result(stage *st, nsa_id id, int64_t count) {
    real *at = pool_alloc(st, id >= NSA_DQ ? NSA_MEM_BACKWARD : NSA_MEM_FORWARD, count);
    st->result[id] = at;
    return at;
}

/* `stride` blocks a head; with `backward` the other way round too, and gradients. */
static void open_blocks(const stage *st, kv_blocks *in, nsa_memory_kind kind, int64_t stride,
                        int backward) {
    const int64_t keys = st->cfg.kv_heads * stride * BLOCK;
    in->stride = stride;
    for (int pair = 0; pair < PAIR; pair++) {
        const int64_t D = width(st, pair), Dp = round_up(D, LANES);
        if (pair == KEYS || backward)
            in->transposed[pair] = pool_alloc(st, kind, keys * D);
        if (pair == VALUES || backward)
            in->natural[pair] = pool_alloc(st, kind, keys * Dp);
        if (backward)
            in->gradient[pair] = pool_alloc(st, NSA_MEM_BACKWARD, keys * Dp * st->threads);
    }
}

static void open_inputs(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    const uint32_t flags = st->plan->setup.flags;
    st->q = pool_alloc(st, NSA_MEM_PERSISTENT, R * c->q_heads * st->dkp);
    st->gate = pool_alloc(st, NSA_MEM_PERSISTENT, R * c->q_heads * BRANCHES);
    st->tiles = nsa_pool_alloc(st->plan->pool, NSA_MEM_PERSISTENT, R / QUERY_TILE + c->max_seqs + 1,
                               sizeof *st->tiles);
    for (int x = 0; x < (flags & NSA_WANT_CAUSAL ? LAYOUTS : BRANCHES); x++) {
        /* every sequence begins a block, so it may leave one unfilled */
        int64_t blocks = (x == CMP ? st->plan->max_cmp : T) / BLOCK + c->max_seqs;
        open_blocks(st, &st->in[x], x == CMP ? NSA_MEM_FORWARD : NSA_MEM_PERSISTENT, blocks,
                    flags & NSA_BACKWARD && x != RAW);
    }
    for (int pair = 0; pair < PAIR; pair++) {
        st->raw[pair] = pool_alloc(st, NSA_MEM_PERSISTENT, T * c->kv_heads * width(st, pair));
        for (int w = 0; w < WEIGHTS; w++) {
            if (nsa_has(c, NSA_PHI_FIRST + pair * WEIGHTS + w))
                st->phi[pair][w] = pool_alloc(st, NSA_MEM_PERSISTENT, padded_count(st, pair, w));
        }
    }
}

static void open_results(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    const uint32_t flags = st->plan->setup.flags;
    const int64_t outputs = R * c->q_heads * c->v_dim;
    const int64_t blocks = (T + c->slc_block - 1) / c->slc_block;
    st->out = alloc_result(st, NSA_OUT, outputs);
    for (int x = 0; x < BRANCHES && (flags & (NSA_WANT_BRANCHES | NSA_BACKWARD)); x++)
        st->out_x[x] = alloc_result(st, NSA_OUT_CMP + x, outputs);
    if (flags & NSA_BACKWARD)
        st->stats = pool_alloc(st, NSA_MEM_FORWARD, R * c->q_heads * BRANCHES * 2);
    if (flags & NSA_WANT_CAUSAL)
        st->out_causal = alloc_result(st, NSA_OUT_CAUSAL, outputs);
    if (flags & NSA_WANT_IMPORTANCE)
        st->importance = alloc_result(st, NSA_IMPORTANCE, R * c->kv_heads * blocks);
    st->block_idx = nsa_pool_alloc(st->plan->pool, NSA_MEM_FORWARD, R * c->kv_heads * c->slc_count,
                                   sizeof *st->block_idx);
    st->result[NSA_BLOCK_IDX] = st->block_idx;
}

static void open_gradients(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    st->dout = pool_alloc(st, NSA_MEM_PERSISTENT, R * c->q_heads * st->dvp);
    st->dq = pool_alloc(st, NSA_MEM_BACKWARD, R * c->q_heads * st->dkp);
    st->dgate = alloc_result(st, NSA_DGATE, R * c->q_heads * BRANCHES);
    for (int pair = 0; pair < PAIR; pair++) {
        st->d_raw[pair] = alloc_result(st, NSA_DK_CMP + pair, T * c->kv_heads * width(st, pair));
        for (int w = 0; w < WEIGHTS; w++) {
            if (st->phi[pair][w])
                st->dphi[pair][w] =
                    alloc_result(st, NSA_DPHI_K_PE + pair * WEIGHTS + w, padded_count(st, pair, w));
        }
    }
}

static void open_caches(stage *st) {
    const nsa_config *c = &st->cfg;
    for (int x = 0; x < BRANCHES; x++) {
        int64_t keys = x == CMP ? nsa_cmp_tokens(c, c->max_seq_len) : c->max_seq_len;
        open_blocks(st, &st->cache[x], NSA_MEM_PERSISTENT,
                    c->max_seqs * ((keys + BLOCK - 1) / BLOCK), 0);
    }
    for (int pair = 0; pair < PAIR; pair++)
        st->cache_raw[pair] = pool_alloc(
            st, NSA_MEM_PERSISTENT, c->max_seqs * c->max_seq_len * c->kv_heads * width(st, pair));
}

/* What a batch of the compressor needs, for the wider of the two pairs. */
static void open_compressor(const stage *st, work *w) {
    const nsa_config *c = &st->cfg;
    const int64_t Dp = st->dkp > st->dvp ? st->dkp : st->dvp, mlp = c->phi == NSA_PHI_MLP;
    const int64_t z = mlp ? c->cmp_block * Dp * MLP_BATCH : 0;
    const int64_t hidden = mlp ? c->phi_hidden * MLP_BATCH : c->cmp_block;
    w->hidden = pool_alloc(st, NSA_MEM_SCRATCH, hidden);
    w->dhidden = pool_alloc(st, NSA_MEM_SCRATCH, hidden);
    w->z = pool_alloc(st, NSA_MEM_SCRATCH, z);
    w->zt = pool_alloc(st, NSA_MEM_SCRATCH, z);
    w->dz = pool_alloc(st, NSA_MEM_SCRATCH, z);
    w->yt = pool_alloc(st, NSA_MEM_SCRATCH, Dp * MLP_BATCH);
    w->y = pool_alloc(st, NSA_MEM_SCRATCH, Dp * MLP_BATCH);
}

/* One thread's scratch, for sequences of up to `max_len` tokens. */
static void open_work(const stage *st, work *w, int64_t max_len) {
    const nsa_config *c = &st->cfg;
    const int64_t G = st->plan->group, N = round_up(nsa_cmp_tokens(c, max_len), BLOCK);
    w->spans = nsa_pool_alloc(st->plan->pool, NSA_MEM_SCRATCH, QUERY_TILE * st->max_spans,
                              sizeof *w->spans);
    w->s = pool_alloc(st, NSA_MEM_SCRATCH, G * BLOCK);
    w->dp = pool_alloc(st, NSA_MEM_SCRATCH, G * BLOCK);
    w->scores = pool_alloc(st, NSA_MEM_SCRATCH, G * N);
    w->p_group = pool_alloc(st, NSA_MEM_SCRATCH, N);
    w->importance = pool_alloc(st, NSA_MEM_SCRATCH, st->plan->max_blocks);
    w->o = pool_alloc(st, NSA_MEM_SCRATCH, QUERY_TILE * G * st->dvp);
    w->partial = pool_alloc(st, NSA_MEM_SCRATCH, G * st->dvp);
    w->row_max = pool_alloc(st, NSA_MEM_SCRATCH, QUERY_TILE * G);
    w->row_sum = pool_alloc(st, NSA_MEM_SCRATCH, QUERY_TILE * G * LANES);
    w->inv_sum = pool_alloc(st, NSA_MEM_SCRATCH, QUERY_TILE * G);
    open_compressor(st, w);
}

/* Spans of one query, at most: the branch that sees the most blocks. */
static int64_t span_capacity(const stage *st, int64_t max_len) {
    const nsa_config *c = &st->cfg;
    const int64_t window = c->window < max_len ? c->window : max_len;
    const int64_t all = (st->plan->setup.flags & NSA_WANT_CAUSAL) ? max_len / BLOCK + 1 : 0;
    const int64_t spans[] = {nsa_cmp_tokens(c, max_len) / BLOCK + 1,
                             c->slc_count * (c->slc_block / BLOCK + 2), window / BLOCK + 2, all};
    int64_t max = 0;
    for (int i = 0; i < 4; i++)
        max = spans[i] > max ? spans[i] : max;
    return max;
}

static nsa_status open(const nsa_plan *plan, void **self) {
    stage *st = nsa_pool_alloc(plan->pool, NSA_MEM_PERSISTENT, 1, sizeof *st);
    if (!st)
        return nsa_pool_status(plan->pool);
    memset(st, 0, sizeof *st);
    st->plan = plan;
    st->cfg = plan->cfg;
    st->dkp = round_up(st->cfg.qk_dim, LANES);
    st->dvp = round_up(st->cfg.v_dim, LANES);
    st->threads = plan->setup.threads ? plan->setup.threads : omp_get_max_threads();
    if (st->threads > NSA_MAX_THREADS)
        return nsa_fail(NSA_ERR_CONFIG, "OMP_NUM_THREADS asks for %d threads, at most %d",
                        st->threads, NSA_MAX_THREADS);
    const int64_t T = st->cfg.seq_len, R = plan->setup.max_rows;
    const int decodes = (plan->setup.flags & NSA_DECODE) != 0;
    const int64_t max_len = decodes && st->cfg.max_seq_len > T ? st->cfg.max_seq_len : T;
    open_inputs(st, T, R);
    open_results(st, T, R);
    if (plan->setup.flags & NSA_BACKWARD)
        open_gradients(st, T, R);
    if (decodes)
        open_caches(st);
    st->max_spans = span_capacity(st, max_len);
    st->work = nsa_pool_alloc(plan->pool, NSA_MEM_PERSISTENT, st->threads, sizeof *st->work);
    for (int i = 0; i < st->threads && st->work; i++)
        open_work(st, &st->work[i], max_len);
    *self = st;
    nsa_status status = nsa_pool_status(plan->pool);
    if (status)
        return status;
        /* Threads start here: what they allocate is allocated in open, not in the first call. */
#pragma omp parallel num_threads(st->threads)
    { st->work[omp_get_thread_num()].timer.last = 0; /* NOLINT: work is not NULL here */ }
    return NSA_OK;
}

/* ------------------------------------------------------------------- load */

/* One key or value to its column of a transposed block, and to its row of a natural one: those that
 * there are. `key` counts the keys of all blocks. */
void pack_row(const stage *st, const kv_blocks *in, int pair, int64_t key, const real *x) {
    const int64_t D = width(st, pair), Dp = round_up(D, LANES), block = key / BLOCK;
    real *transposed = in->transposed[pair], *natural = in->natural[pair];
    for (int64_t c = 0; c < D && transposed; c++)
        transposed[(block * D + c) * BLOCK + key % BLOCK] = x[c];
    for (int64_t c = 0; c < Dp && natural; c++)
        natural[key * Dp + c] = c < D ? x[c] : 0;
}

/* The tokens of a pair of keys and values into blocks; every sequence begins a new one. `id` is the
 * keys'. */
static void load_pair(stage *st, int branch, const nsa_tensors *in, nsa_id id) {
    const nsa_batch *batch = &st->batch;
    const int64_t Hkv = st->cfg.kv_heads;
    real x[256]; /* dk and dv are at most 256: a bound of the specification */
    for (int64_t b = 0; b < batch->B; b++) {
        for (int64_t i = batch->seq[b] * Hkv; i < batch->seq[b + 1] * Hkv; i++) {
            const int64_t h = i % Hkv, t = i / Hkv - batch->seq[b];
            const int64_t block = h * st->in[branch].stride + first_block(st, branch, b);
            for (int pair = 0; pair < PAIR; pair++) {
                copy(x, &in->at[id + pair], i * width(st, pair), width(st, pair));
                pack_row(st, &st->in[branch], pair, block * BLOCK + t, x);
            }
        }
    }
}

/* Rows of D, to padded rows: a product reads whole vectors of its operand B. What lies in the
 * padding ends in padding. Zeros, for it must hold no denormals, which are slow. */
static void pad_rows(real *x, int64_t rows, int64_t D, int64_t padded) {
    for (int64_t i = rows - 1; i >= 0 && padded > D; i--) { /* in place: the last row first */
        memmove(x + i * padded, x + i * D, (size_t)D * sizeof *x);
        memset(x + i * padded + D, 0, (size_t)(padded - D) * sizeof *x);
    }
}

/* Tiles of neighbouring rows, none of two sequences. */
static void make_tiles(stage *st) {
    const nsa_batch *batch = &st->batch;
    st->n_tiles = 0;
    for (int64_t r = 0, b = 0; r < batch->R; r++) {
        row_range *last = st->n_tiles ? &st->tiles[st->n_tiles - 1] : NULL;
        while (batch->row[r] >= batch->seq[b + 1])
            b++;
        if (last && last->sequence == b && last->count < QUERY_TILE)
            last->count++;
        else
            st->tiles[st->n_tiles++] = (row_range){.first = r, .count = 1, .sequence = b};
    }
}

static nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch) {
    stage *st = self;
    const nsa_config *c = &st->cfg;
    st->batch = *batch;
    make_tiles(st);
    load_rows(&st->batch, st->q, &in->at[NSA_Q], c->q_heads * c->qk_dim);
    pad_rows(st->q, batch->R * c->q_heads, c->qk_dim, st->dkp);
    load_rows(&st->batch, st->gate, &in->at[NSA_GATE], c->q_heads * BRANCHES);
    copy(st->raw[KEYS], &in->at[NSA_K_CMP], 0, batch->T * c->kv_heads * c->qk_dim);
    copy(st->raw[VALUES], &in->at[NSA_V_CMP], 0, batch->T * c->kv_heads * c->v_dim);
    load_pair(st, SLC, in, NSA_K_SLC);
    load_pair(st, WIN, in, NSA_K_WIN);
    if (st->plan->setup.flags & NSA_WANT_CAUSAL)
        load_pair(st, RAW, in, NSA_K_CMP);
    load_weights(c, in, st->phi);
    for (int pair = 0; pair < PAIR && st->phi[pair][W1]; pair++)
        pad_rows(st->phi[pair][W1], c->phi_hidden, c->cmp_block * width(st, pair),
                 z_width(st, pair));
    return NSA_OK;
}

static nsa_status load_dout(void *self, const nsa_tensor *dout) {
    stage *st = self;
    load_rows(&st->batch, st->dout, dout, st->cfg.q_heads * st->cfg.v_dim);
    pad_rows(st->dout, st->batch.R * st->cfg.q_heads, st->cfg.v_dim, st->dvp);
    return NSA_OK;
}

/* The tile of a unit of work: tiles in order, and of each tile the KV heads. */
query_tile pack_tile(const stage *st, int64_t unit) {
    const row_range rows = st->tiles[unit / st->cfg.kv_heads];
    query_tile qt = {
        .in = st->in, .row = rows.first, .count = rows.count, .kvh = unit % st->cfg.kv_heads};
    for (int x = 0; x < LAYOUTS; x++)
        qt.first_block[x] = first_block(st, x, rows.sequence);
    for (int64_t i = 0; i < rows.count; i++)
        qt.t[i] = st->batch.row[rows.first + i] - st->batch.seq[rows.sequence];
    return qt;
}

NSA_CPU_STAGE(ARITH, IDEA)
