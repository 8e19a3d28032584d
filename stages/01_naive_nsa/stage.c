/** @file
 *  @brief Where this stage keeps its tensors: open, load, read, close, and its table for the
 * contract. */
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
                pool_alloc(st, NSA_MEM_PERSISTENT, weight_count(st, i / WEIGHTS, i % WEIGHTS));
    }
}

static void open_results(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    const uint32_t flags = st->plan->setup.flags;
    const int64_t outputs = R * c->q_heads * c->v_dim, N = st->plan->max_cmp;
    const int64_t blocks = (T + c->slc_block - 1) / c->slc_block, scratch = st->plan->max_blocks;
    const int64_t kept = flags & NSA_WANT_IMPORTANCE ? R * c->kv_heads * blocks : 0;
    st->out = pool_alloc(st, NSA_MEM_FORWARD, outputs);
    for (int x = 0; x < BRANCHES && (flags & NSA_WANT_BRANCHES); x++)
        st->out_x[x] = pool_alloc(st, NSA_MEM_FORWARD, outputs);
    if (flags & NSA_WANT_CAUSAL)
        st->out_causal = pool_alloc(st, NSA_MEM_FORWARD, outputs);
    st->importance = pool_alloc(st, NSA_MEM_FORWARD, kept > scratch ? kept : scratch);
    st->block_idx = nsa_pool_alloc(st->plan->pool, NSA_MEM_FORWARD, R * c->kv_heads * c->slc_count,
                                   sizeof *st->block_idx);
    for (int pair = 0; pair < PAIR; pair++)
        st->xphi[pair] = pool_alloc(st, NSA_MEM_FORWARD, N * c->kv_heads * width(st, pair));
}

static void open_gradients(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    st->dout = pool_alloc(st, NSA_MEM_PERSISTENT, R * c->q_heads * c->v_dim);
    st->dq = pool_alloc(st, NSA_MEM_BACKWARD, R * c->q_heads * c->qk_dim);
    st->dgate = pool_alloc(st, NSA_MEM_BACKWARD, R * c->q_heads * BRANCHES);
    for (int x = 0; x < BRANCHES; x++) {
        st->dk[x] = pool_alloc(st, NSA_MEM_BACKWARD, T * c->kv_heads * c->qk_dim);
        st->dv[x] = pool_alloc(st, NSA_MEM_BACKWARD, T * c->kv_heads * c->v_dim);
    }
    for (int pair = 0; pair < PAIR; pair++) {
        st->dxphi[pair] =
            pool_alloc(st, NSA_MEM_BACKWARD, st->plan->max_cmp * c->kv_heads * width(st, pair));
        for (int w = 0; w < WEIGHTS; w++) {
            if (st->phi[pair][w])
                st->dphi[pair][w] = pool_alloc(st, NSA_MEM_BACKWARD, weight_count(st, pair, w));
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
    st->key_list = nsa_pool_alloc(st->plan->pool, NSA_MEM_SCRATCH, keys, sizeof *st->key_list);
    st->p = pool_alloc(st, NSA_MEM_SCRATCH, keys);
    st->o = pool_alloc(st, NSA_MEM_SCRATCH, c->v_dim);
    st->d_o = pool_alloc(st, NSA_MEM_SCRATCH, c->v_dim);
    st->partial = pool_alloc(st, NSA_MEM_SCRATCH, c->v_dim);
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

/* The rows to compute, each from its token's place in a tensor of T rows. */
static void load_rows(const stage *st, real *dst, const nsa_tensor *src, int64_t row_width) {
    for (int64_t r = 0; r < st->batch.R; r++)
        copy(dst + r * row_width, src, st->batch.row[r] * row_width, row_width);
}

static nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch) {
    stage *st = self;
    const nsa_config *c = &st->cfg;
    st->batch = *batch;
    load_rows(st, st->q, &in->at[NSA_Q], c->q_heads * c->qk_dim);
    load_rows(st, st->gate, &in->at[NSA_GATE], c->q_heads * BRANCHES);
    for (int x = 0; x < BRANCHES; x++) {
        copy(st->k[x], &in->at[NSA_K_CMP + 2 * x], 0, batch->T * c->kv_heads * c->qk_dim);
        copy(st->v[x], &in->at[NSA_V_CMP + 2 * x], 0, batch->T * c->kv_heads * c->v_dim);
    }
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        if (nsa_has(c, NSA_PHI_FIRST + i))
            copy(st->phi[i / WEIGHTS][i % WEIGHTS], &in->at[NSA_PHI_FIRST + i], 0,
                 weight_count(st, i / WEIGHTS, i % WEIGHTS));
    }
    return NSA_OK;
}

static nsa_status load_dout(void *self, const nsa_tensor *dout) {
    stage *st = self;
    load_rows(st, st->dout, dout, st->cfg.q_heads * st->cfg.v_dim);
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

static const void *result(const stage *st, nsa_id id) {
    if (id >= NSA_DPHI_K_PE && id <= NSA_GRAD_LAST)
        return st->dphi[(id - NSA_DPHI_K_PE) / WEIGHTS][(id - NSA_DPHI_K_PE) % WEIGHTS];
    if (id >= NSA_DK_CMP && id <= NSA_DV_WIN) {
        int x = ((int)id - NSA_DK_CMP) / 2;
        return (id - NSA_DK_CMP) % 2 ? st->dv[x] : st->dk[x];
    }
    switch (id) {
    case NSA_OUT:
        return st->out;
    case NSA_OUT_CMP:
    case NSA_OUT_SLC:
    case NSA_OUT_WIN:
        return st->out_x[id - NSA_OUT_CMP];
    case NSA_OUT_CAUSAL:
        return st->out_causal;
    case NSA_BLOCK_IDX:
        return st->block_idx;
    case NSA_IMPORTANCE:
        return st->importance;
    case NSA_K_PHI:
        return st->xphi[KEYS];
    case NSA_V_PHI:
        return st->xphi[VALUES];
    case NSA_DQ:
        return st->dq;
    case NSA_DGATE:
        return st->dgate;
    default:
        return NULL;
    }
}

static nsa_status read(void *self, nsa_id id, void *dst) {
    const stage *st = self;
    const nsa_batch *b = &st->batch;
    const nsa_lengths lengths = {
        .T = b->T, .R = id == NSA_OUT_CAUSAL ? b->R : st->rows, .N = b->N, .J = b->J};
    const void *src = result(st, id);
    nsa_tensor shape;
    nsa_shape(&st->cfg, &lengths, id, 1, &shape);
    if (!src)
        return nsa_fail(NSA_ERR_UNSUPPORTED, "this stage keeps no %s", nsa_name(id));
    memcpy(dst, src, (size_t)nsa_count(&shape) * (id == NSA_BLOCK_IDX ? 4 : sizeof(real)));
    return NSA_OK;
}

static void close(void *self) {
    (void)self; /* all memory is the pool's */
}

static int phases(void *self, nsa_phase *key_list, int capacity) {
    static const char *const names[PHASES] = {"cmp", "slc", "win", "select", "compress"};
    const stage *st = self;
    for (int i = 0; i < PHASES && i < capacity; i++)
        key_list[i] = (nsa_phase){names[i], st->timer.seconds[i]};
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
