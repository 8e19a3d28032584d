/** @file
 *  @brief Where this stage keeps its tensors: open, load, read, close, and its table for the
 * contract. */
#include "stage.h"

/* ------------------------------------------------------------------- open */

static real *pool_alloc(const stage *st, nsa_memory_kind kind, int64_t count) {
    return nsa_pool_alloc(st->plan->pool, kind, count, sizeof(real));
}

/* A result, and where read() finds it. */
static real *alloc_result(stage *st, nsa_id id, int64_t count) {
    real *at = pool_alloc(st, id >= NSA_DQ ? NSA_MEM_BACKWARD : NSA_MEM_FORWARD, count);
    st->result[id] = at;
    return at;
}

static void open_inputs(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    st->q = pool_alloc(st, NSA_MEM_PERSISTENT, R * c->q_heads * c->qk_dim);
    st->gate = pool_alloc(st, NSA_MEM_PERSISTENT, R * c->q_heads * BRANCHES);
    for (int x = 0; x < BRANCHES; x++) {
        st->k[x] = pool_alloc(st, NSA_MEM_PERSISTENT, T * c->kv_heads * c->qk_dim);
        st->v[x] = pool_alloc(st, NSA_MEM_PERSISTENT, T * c->kv_heads * c->v_dim);
    }
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        if (nsa_has(c, NSA_PHI_FIRST + i))
            st->phi[i / WEIGHTS][i % WEIGHTS] =
                pool_alloc(st, NSA_MEM_PERSISTENT, weight_count(c, i / WEIGHTS, i % WEIGHTS));
    }
}

static void open_results(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    const uint32_t flags = st->plan->setup.flags;
    const int64_t outputs = R * c->q_heads * c->v_dim, N = st->plan->max_cmp;
    const int64_t blocks = (T + c->slc_block - 1) / c->slc_block, scratch = st->plan->max_blocks;
    const int64_t kept = flags & NSA_WANT_IMPORTANCE ? R * c->kv_heads * blocks : 0;
    st->out = alloc_result(st, NSA_OUT, outputs);
    for (int x = 0; x < BRANCHES && (flags & NSA_WANT_BRANCHES); x++)
        st->out_x[x] = alloc_result(st, NSA_OUT_CMP + x, outputs);
    if (flags & NSA_WANT_CAUSAL)
        st->out_causal = alloc_result(st, NSA_OUT_CAUSAL, outputs);
    st->importance = alloc_result(st, NSA_IMPORTANCE, kept > scratch ? kept : scratch);
    st->block_idx = nsa_pool_alloc(st->plan->pool, NSA_MEM_FORWARD, R * c->kv_heads * c->slc_count,
                                   sizeof *st->block_idx);
    st->result[NSA_BLOCK_IDX] = st->block_idx;
    for (int pair = 0; pair < PAIR; pair++)
        st->xphi[pair] = alloc_result(st, NSA_K_PHI + pair, N * c->kv_heads * width(st, pair));
}

static void open_gradients(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    st->dout = pool_alloc(st, NSA_MEM_PERSISTENT, R * c->q_heads * c->v_dim);
    st->dq = alloc_result(st, NSA_DQ, R * c->q_heads * c->qk_dim);
    st->dgate = alloc_result(st, NSA_DGATE, R * c->q_heads * BRANCHES);
    for (int x = 0; x < BRANCHES; x++) {
        st->dk[x] = alloc_result(st, NSA_DK_CMP + 2 * x, T * c->kv_heads * c->qk_dim);
        st->dv[x] = alloc_result(st, NSA_DV_CMP + 2 * x, T * c->kv_heads * c->v_dim);
    }
    for (int pair = 0; pair < PAIR; pair++) {
        st->dxphi[pair] =
            pool_alloc(st, NSA_MEM_BACKWARD, st->plan->max_cmp * c->kv_heads * width(st, pair));
        for (int w = 0; w < WEIGHTS; w++) {
            if (st->phi[pair][w])
                st->dphi[pair][w] =
                    alloc_result(st, NSA_DPHI_K_PE + pair * WEIGHTS + w, weight_count(c, pair, w));
        }
    }
}

static void open_caches(stage *st) {
    const nsa_config *c = &st->cfg;
    st->cache_cmp = nsa_cmp_tokens(c, c->max_seq_len);
    for (int x = 0; x < BRANCHES; x++) {
        int64_t rows = c->max_seqs * c->max_seq_len * c->kv_heads;
        st->cache_k[x] = pool_alloc(st, NSA_MEM_PERSISTENT, rows * c->qk_dim);
        st->cache_v[x] = pool_alloc(st, NSA_MEM_PERSISTENT, rows * c->v_dim);
    }
    for (int pair = 0; pair < PAIR; pair++)
        st->cache_phi[pair] = pool_alloc(
            st, NSA_MEM_PERSISTENT, c->max_seqs * st->cache_cmp * c->kv_heads * width(st, pair));
}

static void open_scratch(stage *st, int64_t keys) {
    const nsa_config *c = &st->cfg;
    int64_t units = c->phi_hidden > c->cmp_block ? c->phi_hidden : c->cmp_block;
    int64_t D = c->qk_dim > c->v_dim ? c->qk_dim : c->v_dim;
    st->mask = nsa_pool_alloc(st->plan->pool, NSA_MEM_SCRATCH, keys, sizeof *st->mask);
    st->p = pool_alloc(st, NSA_MEM_SCRATCH, keys);
    st->o = pool_alloc(st, NSA_MEM_SCRATCH, c->v_dim);
    st->d_o = pool_alloc(st, NSA_MEM_SCRATCH, c->v_dim);
    st->hidden = pool_alloc(st, NSA_MEM_SCRATCH, units);
    st->dhidden = pool_alloc(st, NSA_MEM_SCRATCH, units);
    st->z = pool_alloc(st, NSA_MEM_SCRATCH, c->cmp_block * D);
    st->dz = pool_alloc(st, NSA_MEM_SCRATCH, c->cmp_block * D);
}

static nsa_status open(const nsa_plan *plan, void **self) {
    stage *st = nsa_pool_alloc(plan->pool, NSA_MEM_PERSISTENT, 1, sizeof *st);
    if (!st)
        return nsa_pool_status(plan->pool);
    memset(st, 0, sizeof *st);
    st->plan = plan;
    st->cfg = plan->cfg;
    const int64_t T = st->cfg.seq_len, R = plan->setup.max_rows;
    const int decodes = (plan->setup.flags & NSA_DECODE) != 0;
    open_inputs(st, T, R);
    open_results(st, T, R);
    if (plan->setup.flags & NSA_BACKWARD)
        open_gradients(st, T, R);
    if (decodes)
        open_caches(st);
    open_scratch(st, decodes && st->cfg.max_seq_len > T ? st->cfg.max_seq_len : T);
    *self = st;
    return nsa_pool_status(plan->pool);
}

/* ------------------------------------------------------------------- load */

static nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch) {
    stage *st = self;
    const nsa_config *c = &st->cfg;
    st->batch = *batch;
    load_rows(&st->batch, st->q, &in->at[NSA_Q], c->q_heads * c->qk_dim);
    load_rows(&st->batch, st->gate, &in->at[NSA_GATE], c->q_heads * BRANCHES);
    for (int x = 0; x < BRANCHES; x++) {
        copy(st->k[x], &in->at[NSA_K_CMP + 2 * x], 0, batch->T * c->kv_heads * c->qk_dim);
        copy(st->v[x], &in->at[NSA_V_CMP + 2 * x], 0, batch->T * c->kv_heads * c->v_dim);
    }
    load_weights(c, in, st->phi);
    return NSA_OK;
}

static nsa_status load_dout(void *self, const nsa_tensor *dout) {
    stage *st = self;
    load_rows(&st->batch, st->dout, dout, st->cfg.q_heads * st->cfg.v_dim);
    return NSA_OK;
}

/* Sequence b of the pack. */
sequence pack_sequence(const stage *st, int64_t b) {
    const int64_t Hkv = st->cfg.kv_heads, dk = st->cfg.qk_dim, dv = st->cfg.v_dim;
    const nsa_batch *batch = &st->batch;
    sequence sq = {.len = batch->seq[b + 1] - batch->seq[b],
                   .n_cmp = batch->cmp[b + 1] - batch->cmp[b]};
    for (int x = 0; x < BRANCHES; x++) {
        sq.k[x] = st->k[x] + batch->seq[b] * Hkv * dk;
        sq.v[x] = st->v[x] + batch->seq[b] * Hkv * dv;
    }
    sq.k[CMP] = st->xphi[KEYS] + batch->cmp[b] * Hkv * dk;
    sq.v[CMP] = st->xphi[VALUES] + batch->cmp[b] * Hkv * dv;
    return sq;
}

/* The sequence that holds a token of the pack, by bisection: seq[b] <= token < seq[b+1]. */
int64_t sequence_of(const stage *st, int64_t token) {
    int64_t low = 0, high = st->batch.B;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (st->batch.seq[middle] <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* ------------------------------------------------------------------- read */

static nsa_status read(void *self, nsa_id id, const nsa_tensor *to) {
    const stage *st = self;
    return read_result(&st->cfg, &st->batch, st->rows, id, st->result[id], to);
}

NSA_CPU_STAGE(ARITH, IDEA)
