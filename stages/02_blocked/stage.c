/** @file
 *  @brief Where this stage keeps its tensors: open, load, and its table for the contract. The
 * layout that pack_key() and pack_value() write is the stage's idea. */
#include "stage.h"

#include <string.h>

static nsa_status available(void) {
    return NSA_OK; /* plain C */
}

/* ------------------------------------------------------------------- open */

static real *pool_alloc(const stage *st, nsa_memory_kind kind, int64_t count) {
    return nsa_pool_alloc(st->plan->pool, kind, count, sizeof(real));
}

/* Elements of a compressor's weight, by its shape in the specification. */
int64_t weight_count(const stage *st, int pair, int weight) {
    nsa_tensor shape;
    nsa_shape(&st->cfg, &(nsa_lengths){0}, NSA_PHI_FIRST + pair * WEIGHTS + weight, 0, &shape);
    return nsa_count(&shape);
}

/* Elements of its gradient: the hidden units of an mlp are padded to whole vectors. */
int64_t gradient_count(const stage *st, int pair, int weight) {
    const int64_t hidden = st->cfg.phi_hidden, count = weight_count(st, pair, weight);
    const int pads = weight == W1 || weight == B1 || weight == W2;
    return pads && st->cfg.phi == NSA_PHI_MLP ? count / hidden * round_up(hidden, LANES) : count;
}

/* Room for `stride` blocks a head; with `backward` the other way round too, and gradients. */
static void open_blocks(const stage *st, kv_blocks *in, nsa_memory_kind kind, int64_t stride,
                        int backward) {
    const int64_t keys = st->cfg.kv_heads * stride * BLOCK;
    in->stride = stride;
    in->kt = pool_alloc(st, kind, keys * st->cfg.qk_dim);
    in->v = pool_alloc(st, kind, keys * st->dvp);
    if (!backward)
        return;
    in->k = pool_alloc(st, kind, keys * st->dkp);
    in->vt = pool_alloc(st, kind, keys * st->cfg.v_dim);
    in->dk = pool_alloc(st, NSA_MEM_BACKWARD, keys * st->dkp * st->threads);
    in->dv = pool_alloc(st, NSA_MEM_BACKWARD, keys * st->dvp * st->threads);
}

static void open_inputs(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    const int backward = (st->plan->setup.flags & NSA_BACKWARD) != 0;
    const int causal_too = (st->plan->setup.flags & NSA_WANT_CAUSAL) != 0;
    st->q = pool_alloc(st, NSA_MEM_PERSISTENT, R * c->q_heads * st->dkp);
    st->gate = pool_alloc(st, NSA_MEM_PERSISTENT, R * c->q_heads * BRANCHES);
    st->n_tiles = R / QUERY_TILE + c->max_seqs + 1;
    st->tiles = nsa_pool_alloc(st->plan->pool, NSA_MEM_PERSISTENT, st->n_tiles, sizeof *st->tiles);
    for (int pair = 0; pair < PAIR; pair++)
        st->raw[pair] = pool_alloc(st, NSA_MEM_PERSISTENT, T * c->kv_heads * width(st, pair));
    for (int x = 0; x < (causal_too ? LAYOUTS : BRANCHES); x++) {
        /* every sequence begins a block, so it may leave one unfilled */
        int64_t blocks_of_all = (x == CMP ? st->plan->max_cmp : T) / BLOCK + c->max_seqs;
        open_blocks(st, &st->in[x], x == CMP ? NSA_MEM_FORWARD : NSA_MEM_PERSISTENT, blocks_of_all,
                    backward && x != RAW);
        st->first[x] = nsa_pool_alloc(st->plan->pool, NSA_MEM_PERSISTENT, c->max_seqs + 1,
                                      sizeof *st->first[x]);
    }
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        if (nsa_has(c, NSA_PHI_FIRST + i))
            st->phi[i / WEIGHTS][i % WEIGHTS] =
                pool_alloc(st, NSA_MEM_PERSISTENT, weight_count(st, i / WEIGHTS, i % WEIGHTS));
    }
    for (int pair = 0; pair < PAIR && c->phi == NSA_PHI_MLP; pair++) {
        const int64_t hidden = c->phi_hidden, P = round_up(hidden, LANES), D = width(st, pair);
        st->w1t[pair] = pool_alloc(st, NSA_MEM_PERSISTENT, c->cmp_block * D * P);
        st->w2t[pair] = pool_alloc(st, NSA_MEM_PERSISTENT, hidden * round_up(D, LANES));
        st->bias[pair] = pool_alloc(st, NSA_MEM_PERSISTENT, P);
        st->w1[pair] = backward ? pool_alloc(st, NSA_MEM_PERSISTENT,
                                             c->cmp_block * hidden * round_up(D, LANES))
                                : NULL;
        st->w2[pair] = backward ? pool_alloc(st, NSA_MEM_PERSISTENT, D * P) : NULL;
    }
}

static void open_results(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    const uint32_t flags = st->plan->setup.flags;
    const int64_t outputs = R * c->q_heads * c->v_dim;
    const int64_t blocks_of_all = (T + c->slc_block - 1) / c->slc_block;
    st->out = pool_alloc(st, NSA_MEM_FORWARD, outputs);
    for (int x = 0; x < BRANCHES && (flags & (NSA_WANT_BRANCHES | NSA_BACKWARD)); x++)
        st->out_x[x] = pool_alloc(st, NSA_MEM_FORWARD, outputs);
    if (flags & NSA_BACKWARD)
        st->stats = pool_alloc(st, NSA_MEM_FORWARD, R * c->q_heads * BRANCHES * 2);
    if (flags & NSA_WANT_CAUSAL)
        st->out_causal = pool_alloc(st, NSA_MEM_FORWARD, outputs);
    if (flags & NSA_WANT_IMPORTANCE)
        st->importance = pool_alloc(st, NSA_MEM_FORWARD, R * c->kv_heads * blocks_of_all);
    st->block_idx = nsa_pool_alloc(st->plan->pool, NSA_MEM_FORWARD, R * c->kv_heads * c->slc_count,
                                   sizeof *st->block_idx);
}

static void open_gradients(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    st->dout = pool_alloc(st, NSA_MEM_PERSISTENT, R * c->q_heads * st->dvp);
    st->dq = pool_alloc(st, NSA_MEM_BACKWARD, R * c->q_heads * st->dkp);
    st->dgate = pool_alloc(st, NSA_MEM_BACKWARD, R * c->q_heads * BRANCHES);
    for (int pair = 0; pair < PAIR; pair++) {
        st->draw[pair] = pool_alloc(st, NSA_MEM_BACKWARD, T * c->kv_heads * width(st, pair));
        for (int w = 0; w < WEIGHTS; w++) {
            if (st->phi[pair][w])
                st->dphi[pair][w] = pool_alloc(st, NSA_MEM_BACKWARD, gradient_count(st, pair, w));
        }
    }
}

static void open_caches(stage *st) {
    const nsa_config *c = &st->cfg;
    for (int x = 0; x < BRANCHES; x++) {
        int64_t keys = x == CMP ? nsa_cmp_tokens(c, c->max_seq_len) : c->max_seq_len;
        st->cache_first[x] = (keys + BLOCK - 1) / BLOCK;
        open_blocks(st, &st->cache[x], NSA_MEM_PERSISTENT, c->max_seqs * st->cache_first[x], 0);
    }
    for (int pair = 0; pair < PAIR; pair++)
        st->cache_raw[pair] = pool_alloc(
            st, NSA_MEM_PERSISTENT, c->max_seqs * c->max_seq_len * c->kv_heads * width(st, pair));
}

/* One thread's scratch, for sequences of up to `longest` tokens. */
static void open_work(const stage *st, work *w, int64_t max_len) {
    const nsa_config *c = &st->cfg;
    const int64_t G = st->plan->group, N = round_up(nsa_cmp_tokens(c, max_len), BLOCK);
    const int64_t Dp = st->dkp > st->dvp ? st->dkp : st->dvp;
    const int64_t all = st->plan->max_blocks * (c->slc_block / c->cmp_stride); /* strides */
    const int64_t units =
        round_up(c->phi_hidden > c->cmp_block ? c->phi_hidden : c->cmp_block, LANES);
    w->spans = nsa_pool_alloc(st->plan->pool, NSA_MEM_SCRATCH, QUERY_TILE * st->max_spans,
                              sizeof *w->spans);
    w->next_span =
        nsa_pool_alloc(st->plan->pool, NSA_MEM_SCRATCH, QUERY_TILE, sizeof *w->next_span);
    w->end_span = nsa_pool_alloc(st->plan->pool, NSA_MEM_SCRATCH, QUERY_TILE, sizeof *w->end_span);
    w->query_mask =
        nsa_pool_alloc(st->plan->pool, NSA_MEM_SCRATCH, max_len / BLOCK + 1, sizeof *w->query_mask);
    w->s = pool_alloc(st, NSA_MEM_SCRATCH, G * BLOCK);
    w->dp = pool_alloc(st, NSA_MEM_SCRATCH, G * BLOCK);
    w->score_stride = G * N;
    w->scores = pool_alloc(st, NSA_MEM_SCRATCH, QUERIES_PER_PASS * w->score_stride);
    w->lane_max = pool_alloc(st, NSA_MEM_SCRATCH, QUERIES_PER_PASS * G * LANES);
    w->partial = pool_alloc(st, NSA_MEM_SCRATCH, QUERIES_PER_PASS * G * st->dvp);
    w->group_p = pool_alloc(st, NSA_MEM_SCRATCH, ZERO_PAD + N + all);
    w->strides = pool_alloc(st, NSA_MEM_SCRATCH, round_up(all, LANES));
    w->importance = pool_alloc(st, NSA_MEM_SCRATCH, st->plan->max_blocks);
    w->o = pool_alloc(st, NSA_MEM_SCRATCH, QUERY_TILE * G * st->dvp);
    w->row_max = pool_alloc(st, NSA_MEM_SCRATCH, QUERY_TILE * G);
    w->row_sum = pool_alloc(st, NSA_MEM_SCRATCH, QUERY_TILE * G * LANES);
    w->inv_sum = pool_alloc(st, NSA_MEM_SCRATCH, QUERY_TILE * G);
    w->dz = pool_alloc(st, NSA_MEM_SCRATCH, MLP_BATCH * Dp);
    w->hidden = pool_alloc(st, NSA_MEM_SCRATCH, MLP_BATCH * units);
    w->dhidden = pool_alloc(st, NSA_MEM_SCRATCH, MLP_BATCH * units);
}

/* Spans of one query at the most: the branch that sees the most blocks. */
static int64_t span_capacity(const stage *st, int64_t max_len) {
    const nsa_config *c = &st->cfg;
    const int64_t window = c->window < max_len ? c->window : max_len;
    const int64_t all = (st->plan->setup.flags & NSA_WANT_CAUSAL) ? max_len / BLOCK + 1 : 0;
    const int64_t spans[] = {nsa_cmp_tokens(c, max_len) / BLOCK + 1,
                             c->slc_count * (c->slc_block / BLOCK + 2), window / BLOCK + 2, all};
    int64_t row_max = 0;
    for (int i = 0; i < 4; i++)
        row_max = spans[i] > row_max ? spans[i] : row_max;
    return row_max;
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
    st->threads = plan->setup.threads ? plan->setup.threads : max_threads();
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
        /* Threads are started here: what they take is taken in open too, not in the first call. */
#pragma omp parallel num_threads(st->threads)
    st->work[this_thread()].end_span[0] =
        0; /* NOLINT(clang-analyzer-core.NullDereference): not NULL */
    return NSA_OK;
}

/* ------------------------------------------------------------------- load */

/* One key to column `at` of its transposed block, and to a row of the natural one. */
void pack_key(const stage *st, const kv_blocks *in, int64_t h, int64_t block, int64_t at,
              const real *k) {
    const int64_t dk = st->cfg.qk_dim, slot = h * in->stride + block;
    for (int64_t c = 0; c < dk; c++)
        in->kt[(slot * dk + c) * BLOCK + at] = k[c];
    for (int64_t c = 0; in->k && c < st->dkp; c++)
        in->k[(slot * BLOCK + at) * st->dkp + c] = c < dk ? k[c] : 0;
}

/* One value to row `at` of its block, and to a column of the transposed one. */
void pack_value(const stage *st, const kv_blocks *in, int64_t h, int64_t block, int64_t at,
                const real *v) {
    const int64_t dv = st->cfg.v_dim, slot = h * in->stride + block;
    for (int64_t c = 0; c < st->dvp; c++)
        in->v[(slot * BLOCK + at) * st->dvp + c] = c < dv ? v[c] : 0;
    for (int64_t c = 0; in->vt && c < dv; c++)
        in->vt[(slot * dv + c) * BLOCK + at] = v[c];
}

/* The rows to compute, each from its token's place in a tensor of T rows; heads padded with zeros.
 */
static void load_rows(const stage *st, real *dst, const nsa_tensor *src, int64_t D,
                      int64_t padded) {
    const int64_t heads = st->cfg.q_heads;
    for (int64_t i = 0; i < st->batch.R * heads; i++) {
        copy(dst + i * padded, src, (st->batch.row[i / heads] * heads + i % heads) * D, D);
        memset(dst + i * padded + D, 0, (size_t)(padded - D) * sizeof *dst);
    }
}

/* A pair's tokens into blocks; every sequence begins a new one. */
static void load_pair(stage *st, int branch, const nsa_tensor *k, const nsa_tensor *v) {
    const nsa_batch *batch = &st->batch;
    const int64_t Hkv = st->cfg.kv_heads, dk = st->cfg.qk_dim, dv = st->cfg.v_dim;
    real row[256];
    for (int64_t b = 0; b < batch->B; b++) {
        for (int64_t i = batch->seq[b] * Hkv; i < batch->seq[b + 1] * Hkv; i++) {
            const int64_t t = i / Hkv - batch->seq[b], block = st->first[branch][b] + t / BLOCK;
            copy(row, k, i * dk, dk);
            pack_key(st, &st->in[branch], i % Hkv, block, t % BLOCK, row);
            copy(row, v, i * dv, dv);
            pack_value(st, &st->in[branch], i % Hkv, block, t % BLOCK, row);
        }
    }
}

/* Where each sequence begins in the blocks, and the tiles of neighbouring rows. */
static void make_tiles(stage *st) {
    const nsa_batch *batch = &st->batch;
    for (int x = 0; x < LAYOUTS && st->first[x]; x++) {
        const int64_t *at = x == CMP ? batch->cmp : batch->seq;
        for (int64_t b = 0, first = 0; b < batch->B; b++) {
            st->first[x][b] = first;
            first += (at[b + 1] - at[b] + BLOCK - 1) / BLOCK;
        }
    }
    st->n_tiles = 0;
    for (int64_t r = 0, b = 0; r < batch->R; r++) {
        tile_of_rows *last = st->tiles + st->n_tiles - 1;
        while (batch->row[r] >= batch->seq[b + 1])
            b++;
        if (st->n_tiles && last->sequence == b && last->count < QUERY_TILE)
            last->count++;
        else
            st->tiles[st->n_tiles++] = (tile_of_rows){.first = r, .count = 1, .sequence = b};
    }
}

/* y [to,padded] = x [rows,cols], or its transpose; zeros around. */
static void pack_matrix(real *y, int64_t padded, const real *x, int64_t rows, int64_t cols,
                        int64_t ld, int transposed) {
    const int64_t to = transposed ? cols : rows, n = transposed ? rows : cols;
    for (int64_t i = 0; i < to * padded; i++) {
        const int64_t r = i / padded, c = i % padded;
        y[i] = c >= n ? 0 : transposed ? x[c * ld + r] : x[r * ld + c];
    }
}

/* The mlp's two matrices, each as its products want it: what they sum over goes down. */
static void load_mlp(stage *st, int pair) {
    const int64_t hidden = st->cfg.phi_hidden, P = round_up(hidden, LANES), D = width(st, pair);
    const int64_t z = st->cfg.cmp_block * D, Dp = round_up(D, LANES);
    real *const *phi = st->phi[pair], *bias = st->bias[pair];
    pack_matrix(st->w1t[pair], P, phi[W1], hidden, z, z, 1);
    pack_matrix(st->w2t[pair], Dp, phi[W2], D, hidden, hidden, 1);
    for (int64_t m = 0; m < P; m++)
        bias[m] = m < hidden ? phi[B1][m] + dot(phi[W1] + m * z, phi[PE], z) : 0;
    for (int64_t r = 0; r < st->cfg.cmp_block && st->w1[pair]; r++)
        pack_matrix(st->w1[pair] + r * hidden * Dp, Dp, phi[W1] + r * D, hidden, D, z, 0);
    if (st->w2[pair])
        pack_matrix(st->w2[pair], P, phi[W2], D, hidden, hidden, 0);
}

static void load_weights(stage *st, const nsa_tensors *in) {
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        if (nsa_has(&st->cfg, NSA_PHI_FIRST + i))
            copy(st->phi[i / WEIGHTS][i % WEIGHTS], &in->at[NSA_PHI_FIRST + i], 0,
                 weight_count(st, i / WEIGHTS, i % WEIGHTS));
    }
    for (int pair = 0; pair < PAIR && st->cfg.phi == NSA_PHI_MLP; pair++)
        load_mlp(st, pair);
}

static nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch) {
    stage *st = self;
    const nsa_config *c = &st->cfg;
    st->batch = *batch;
    make_tiles(st);
    load_rows(st, st->q, &in->at[NSA_Q], c->qk_dim, st->dkp);
    load_rows(st, st->gate, &in->at[NSA_GATE], BRANCHES, BRANCHES);
    copy(st->raw[KEYS], &in->at[NSA_K_CMP], 0, batch->T * c->kv_heads * c->qk_dim);
    copy(st->raw[VALUES], &in->at[NSA_V_CMP], 0, batch->T * c->kv_heads * c->v_dim);
    load_pair(st, SLC, &in->at[NSA_K_SLC], &in->at[NSA_V_SLC]);
    load_pair(st, WIN, &in->at[NSA_K_WIN], &in->at[NSA_V_WIN]);
    if (st->first[RAW])
        load_pair(st, RAW, &in->at[NSA_K_CMP], &in->at[NSA_V_CMP]);
    load_weights(st, in);
    return NSA_OK;
}

static nsa_status load_dout(void *self, const nsa_tensor *dout) {
    stage *st = self;
    load_rows(st, st->dout, dout, st->cfg.v_dim, st->dvp);
    return NSA_OK;
}

/* Sequence b of the pack. */
sequence pack_sequence(const stage *st, int64_t b) {
    const nsa_batch *batch = &st->batch;
    sequence sq = {.len = batch->seq[b + 1] - batch->seq[b],
                   .n_cmp = batch->cmp[b + 1] - batch->cmp[b]};
    for (int x = 0; x < LAYOUTS && st->first[x]; x++) {
        sq.in[x] = &st->in[x];
        sq.first[x] = st->first[x][b];
    }
    return sq;
}

static void close(void *self) {
    (void)self; /* all memory is the pool's */
}

static int phases(void *self, nsa_phase *list, int capacity) {
    static const char *const names[PHASES] = {"cmp", "slc", "win", "select", "compress"};
    const stage *st = self;
    for (int i = 0; i < PHASES && i < capacity; i++)
        list[i] = (nsa_phase){names[i], st->timer.seconds[i]};
    return PHASES < capacity ? PHASES : capacity;
}

const nsa_stage *nsa_stage_get(void) {
    static const nsa_stage table = {
        .abi = NSA_ABI,
        .arith = ARITH,
        .idea = IDEA,
        .available = available,
        .open = open,
        .load = load,
        .load_dout = load_dout,
        .load_step = load_step,
        .forward = forward,
        .backward = backward,
        .prefill = prefill,
        .decode = decode,
        .causal = causal,
        .read = read,
        .close = close,
        .phases = phases,
    };
    return &table;
}
