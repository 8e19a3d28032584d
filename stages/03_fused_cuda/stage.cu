/** @file
 *  @brief Memory of this stage: open, close, timing, and its table for the contract. */
#include "load.cuh"

#include "common/cuda_stage.h"

#include <string.h>

/* ------------------------------------------------------------------- open */

static dims dims_of(const nsa_plan *plan) {
    const nsa_config *c = &plan->cfg;
    dims x;
    x.dk = (int)c->qk_dim;
    x.dv = (int)c->v_dim;
    x.dk8 = (int)round_up(c->qk_dim, DIM_ALIGN);
    x.dv8 = (int)round_up(c->v_dim, DIM_ALIGN);
    x.dkp = (int)round_up(c->qk_dim, TILE_COLS);
    x.dvp = (int)round_up(c->v_dim, TILE_COLS);
    x.wp = x.dkp > x.dvp ? x.dkp : x.dvp;
    x.G = (int)plan->group;
    x.GT = (int)((plan->group + TILE_ROWS - 1) / TILE_ROWS);
    x.Hq = (int)c->q_heads;
    x.Hkv = (int)c->kv_heads;
    x.l = (int)c->cmp_block;
    x.d = (int)c->cmp_stride;
    x.lb = (int)c->slc_block;
    x.n = (int)c->slc_count;
    x.per_block = x.lb / x.d;
    x.overlap = x.l / x.d;
    x.each = x.lb % BLOCK == 0 ? x.lb / BLOCK : BLOCK % x.lb == 0 ? 1 : (x.lb - 2) / BLOCK + 2;
    x.init = (int)c->slc_init;
    x.local = (int)c->slc_local;
    x.w = c->window < INT32_MAX ? (int)c->window : INT32_MAX;
    x.hidden = (int)c->phi_hidden;
    x.scale = (float)c->scale;
    x.scale2 = (float)(c->scale * 1.4426950408889634);
    return x;
}

/* Allocate `stride` blocks for each head: what attention reads, what the compressors read or write,
 * and what backward needs besides. */
static void open_blocks(stage *st, int branch, int64_t stride) {
    const unsigned flags = st->plan->setup.flags;
    const int backward = (flags & NSA_BACKWARD) != 0, attended = branch != RAW;
    const int64_t all = st->cfg.kv_heads * stride * BLOCK;
    const nsa_memory_kind kind = branch == CMP ? NSA_MEM_FORWARD : NSA_MEM_PERSISTENT;
    kv_blocks *in = &st->in[branch];
    in->stride = stride;
    alloc(st, &in->natural[VALUES], kind, all * st->c.dvp);
    if (attended || (flags & NSA_WANT_CAUSAL))
        alloc(st, &in->transposed[KEYS], kind, all * st->c.dk8);
    if (branch == CMP || branch == RAW || backward)
        alloc(st, &in->natural[KEYS], kind, all * st->c.dkp);
    if (attended && backward)
        alloc(st, &in->transposed[VALUES], kind, all * st->c.dv8);
    if (backward) {
        alloc(st, &in->gradient[KEYS], NSA_MEM_BACKWARD, all * st->c.dkp);
        alloc(st, &in->gradient[VALUES], NSA_MEM_BACKWARD, all * st->c.dvp);
    }
}

static void open_tables(stage *st, int64_t T, int64_t R) {
    const int64_t B = st->cfg.max_seqs;
    const int64_t token_size = st->cfg.q_heads * (st->c.dkp > st->c.dvp ? st->c.dkp : st->c.dvp);
    open_table(st, &st->tiles, &st->host_tiles, R + B);
    open_table(st, &st->seqs, &st->host_seqs, B);
    open_table(st, &st->row_t, &st->host_rows, 2 * R);
    open_table(st, &st->key, &st->host_key, T);
    open_table(st, &st->cmp.first, &st->host_cmp.first, st->plan->max_cmp);
    open_table(st, &st->cmp.key, &st->host_cmp.key, st->plan->max_cmp);
    st->row_seq = st->row_t + R;
    alloc(st, &st->token, NSA_MEM_PERSISTENT, R);
    const int64_t chunk = st->plan->setup.flags & NSA_DEBUG_MEMORY ? SHORT_CHUNK : CHUNK;
    st->staging.count = token_size > chunk ? token_size : chunk;
    open_table(st, &st->staging.device, &st->staging.host, st->staging.count);
}

static void open_weights(stage *st) {
    const nsa_config *c = &st->cfg;
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        if (nsa_has(c, (nsa_id)(NSA_PHI_FIRST + i)))
            alloc(st, &st->phi[i / WEIGHTS][i % WEIGHTS], NSA_MEM_PERSISTENT,
                  nsa_weight_count(&st->cfg, i / WEIGHTS, i % WEIGHTS));
    }
}

static void open_inputs(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    const int backward = (st->plan->setup.flags & NSA_BACKWARD) != 0;
    const int64_t row_tiles = R * c->kv_heads * st->c.GT;
    alloc(st, &st->q_t, NSA_MEM_PERSISTENT, row_tiles * st->c.dk8 * TILE_ROWS);
    alloc(st, &st->gate, NSA_MEM_PERSISTENT, R * c->q_heads * BRANCHES);
    alloc(st, &st->forced_idx, NSA_MEM_PERSISTENT, R * c->kv_heads * c->slc_count);
    alloc(st, &st->bad, NSA_MEM_PERSISTENT, 1);
    for (int x = 0; x < LAYOUTS; x++) /* each sequence begins a block and may leave one unfilled */
        open_blocks(st, x, (x == CMP ? st->plan->max_cmp : T) / BLOCK + c->max_seqs);
    if (!backward)
        return;
    alloc(st, &st->q_n, NSA_MEM_PERSISTENT, row_tiles * TILE_ROWS * st->c.wp);
    alloc(st, &st->dout_t, NSA_MEM_PERSISTENT, row_tiles * st->c.dv8 * TILE_ROWS);
    alloc(st, &st->dout_n, NSA_MEM_PERSISTENT, row_tiles * TILE_ROWS * st->c.wp);
}

static void open_results(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    const uint32_t flags = st->plan->setup.flags;
    const int64_t outputs = R * c->q_heads * st->c.dvp;
    alloc(st, &st->out, NSA_MEM_FORWARD, outputs);
    for (int x = 0; x < BRANCHES; x++) {
        if (flags & (NSA_WANT_BRANCHES | NSA_BACKWARD))
            alloc(st, &st->out_x[x], NSA_MEM_FORWARD, outputs);
    }
    if (flags & NSA_BACKWARD)
        alloc(st, &st->stats, NSA_MEM_FORWARD, R * c->q_heads * BRANCHES);
    if (flags & NSA_WANT_CAUSAL)
        alloc(st, &st->out_causal, NSA_MEM_FORWARD, outputs);
    if (flags & NSA_WANT_IMPORTANCE)
        alloc(st, &st->importance, NSA_MEM_FORWARD,
              R * c->kv_heads * ((T + c->slc_block - 1) / c->slc_block));
    alloc(st, &st->block_idx, NSA_MEM_FORWARD, R * c->kv_heads * c->slc_count);
}

static void open_gradients(stage *st, int64_t R) {
    const nsa_config *c = &st->cfg;
    alloc(st, &st->dq, NSA_MEM_BACKWARD, R * c->q_heads * st->c.dkp);
    alloc(st, &st->dgate, NSA_MEM_BACKWARD, R * c->q_heads * BRANCHES);
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        const int pair = i / WEIGHTS, w = i % WEIGHTS;
        if (st->phi[pair][w])
            alloc(st, &st->dphi[pair][w], NSA_MEM_BACKWARD, nsa_weight_count(&st->cfg, pair, w));
    }
}

static void close(void *self) {
    stage *st = (stage *)self;
    if (!st)
        return;
    nsa_stream_close(&st->streams);
    nsa_refusals_close(&st->refusals);
    nsa_device_pool_free(&st->memory);
    nsa_device_timer_close(&st->timer);
}

static nsa_status open_all(stage *st) {
    const int64_t T = st->cfg.seq_len, R = st->plan->setup.max_rows;
    int max_shared;
    TRY(nsa_stream_open(&st->streams));
    st->stream = st->streams.now;
    NSA_CUDA(cudaDeviceGetAttribute(&max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                    st->streams.device));
    st->max_shared = (size_t)max_shared;
    open_tables(st, T, R);
    open_weights(st);
    open_inputs(st, T, R);
    open_results(st, T, R);
    TRY(open_compress(st));
    TRY(open_attend(st));
    if (st->plan->setup.flags & NSA_BACKWARD) {
        open_gradients(st, R);
        if (!st->memory.failed)
            TRY(open_backward(st));
    }
    if (!st->memory.failed && (st->plan->setup.flags & NSA_DECODE))
        TRY(open_decode(st));
    TRY(nsa_pool_status(st->plan->pool));
    TRY(nsa_device_pool_status(&st->memory));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

static nsa_status open(const nsa_plan *plan, void **self) {
    stage *st = (stage *)nsa_pool_alloc(plan->pool, NSA_MEM_PERSISTENT, 1, sizeof *st);
    if (!st)
        return nsa_pool_status(plan->pool);
    *st = stage();
    st->plan = plan;
    st->cfg = plan->cfg;
    st->c = dims_of(plan);
    st->memory.debug = (plan->setup.flags & NSA_DEBUG_MEMORY) != 0;
    const nsa_status status = open_all(st);
    if (status)
        close(st);
    *self = st;
    return status;
}

static const char *const names[PHASES] = {"cmp",   "slc+win", "compress", "gate",    "dq",
                                          "lists", "cmp dkv", "slc dkv",  "win dkv", "phi"};
NSA_CUDA_STAGE(ARITH, IDEA, names, PHASES)
