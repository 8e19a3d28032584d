/** @file
 *  @brief Memory of this stage: open, close, timing, and its table for the contract. */
#include "common/device_calls.h"
#include "load.cuh"

#include <string.h>

static nsa_status available(void) {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0)
        return nsa_fail(NSA_ERR_DEVICE, "no CUDA device: %s", cudaGetErrorString(error));
    return NSA_OK;
}

/* ----------------------------------------------------------------- memory */

void *device_alloc(stage *st, nsa_memory_kind kind, int64_t count, size_t size) {
    buffer *b = &st->buffers[st->n_buffers];
    const size_t bytes = (size_t)round_up((count ? count : 1) * (int64_t)size, 256);
    if (st->failed || st->n_buffers == MAX_BUFFERS)
        return st->failed = 1, (void *)NULL;
    if (cudaMalloc(&b->ptr, bytes) != cudaSuccess) {
        (void)cudaGetLastError(); /* cleared: open reports it */
        return st->failed = 1, (void *)NULL;
    }
    b->bytes = bytes;
    b->kind = kind;
    st->n_buffers++;
    /* what is never written is padding, which must be zero */
    if (cudaMemsetAsync(b->ptr, 0, bytes, st->stream) != cudaSuccess)
        st->failed = 1;
    return b->ptr;
}

nsa_status poison(stage *st, unsigned kinds) {
    for (int i = 0; i < st->n_buffers && (st->plan->setup.flags & NSA_DEBUG_MEMORY); i++) {
        if (st->buffers[i].kind & kinds)
            NSA_CUDA(cudaMemsetAsync(st->buffers[i].ptr, 0xff, st->buffers[i].bytes, st->stream));
    }
    return NSA_OK;
}

real *alloc_reals(stage *st, nsa_memory_kind kind, int64_t count) {
    return (real *)device_alloc(st, kind, count, sizeof(real));
}

static void *host_alloc(const stage *st, int64_t count, size_t size) {
    return nsa_pool_alloc(st->plan->pool, NSA_MEM_PERSISTENT, count, size);
}

/* ------------------------------------------------------------------- open */

/* D of a compressor: dk for keys, dv for values */
int64_t width(const stage *st, int pair) {
    return pair == KEYS ? st->cfg.qk_dim : st->cfg.v_dim;
}

/* Number of elements of a compressor's weight, from its shape. */
int64_t weight_count(const stage *st, int pair, int weight) {
    const nsa_lengths none = {0, 0, 0, 0};
    nsa_tensor shape;
    nsa_shape(&st->cfg, &none, (nsa_id)(NSA_PHI_FIRST + pair * WEIGHTS + weight), 0, &shape);
    return nsa_count(&shape);
}

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
    in->natural[VALUES] = alloc_reals(st, kind, all * st->c.dvp);
    if (attended || (flags & NSA_WANT_CAUSAL))
        in->transposed[KEYS] = alloc_reals(st, kind, all * st->c.dk8);
    if (branch == CMP || branch == RAW || backward)
        in->natural[KEYS] = alloc_reals(st, kind, all * st->c.dkp);
    if (attended && backward)
        in->transposed[VALUES] = alloc_reals(st, kind, all * st->c.dv8);
    if (backward) {
        in->gradient[KEYS] = alloc_reals(st, NSA_MEM_BACKWARD, all * st->c.dkp);
        in->gradient[VALUES] = alloc_reals(st, NSA_MEM_BACKWARD, all * st->c.dvp);
    }
}

void open_cmp_tokens(stage *st, cmp_tokens *tokens, cmp_tokens *host, int64_t count) {
    tokens->first = (int64_t *)device_alloc(st, NSA_MEM_PERSISTENT, count, sizeof(int64_t));
    tokens->key = (int64_t *)device_alloc(st, NSA_MEM_PERSISTENT, count, sizeof(int64_t));
    host->first = (int64_t *)host_alloc(st, count, sizeof(int64_t));
    host->key = (int64_t *)host_alloc(st, count, sizeof(int64_t));
}

static void open_tables(stage *st, int64_t T, int64_t R) {
    const int64_t B = st->cfg.max_seqs, tiles = R + B;
    const int64_t token_size = st->cfg.q_heads * (st->c.dkp > st->c.dvp ? st->c.dkp : st->c.dvp);
    st->host_tiles = (row_range *)host_alloc(st, tiles, sizeof(row_range));
    st->host_seqs = (sequence *)host_alloc(st, B, sizeof(sequence));
    st->token = (int64_t *)device_alloc(st, NSA_MEM_PERSISTENT, R, sizeof(int64_t));
    st->host_rows = (int32_t *)host_alloc(st, 2 * R, sizeof(int32_t));
    st->host_key = (int64_t *)host_alloc(st, T, sizeof(int64_t));
    st->tiles = (row_range *)device_alloc(st, NSA_MEM_PERSISTENT, tiles, sizeof(row_range));
    st->seqs = (sequence *)device_alloc(st, NSA_MEM_PERSISTENT, B, sizeof(sequence));
    st->row_t = (int32_t *)device_alloc(st, NSA_MEM_PERSISTENT, R, sizeof(int32_t));
    st->row_seq = (int32_t *)device_alloc(st, NSA_MEM_PERSISTENT, R, sizeof(int32_t));
    st->key = (int64_t *)device_alloc(st, NSA_MEM_PERSISTENT, T, sizeof(int64_t));
    open_cmp_tokens(st, &st->cmp, &st->host_cmp, st->plan->max_cmp);
    const int64_t chunk = st->plan->setup.flags & NSA_DEBUG_MEMORY ? SHORT_CHUNK : CHUNK;
    st->chunk = token_size > chunk ? token_size : chunk;
    st->host_staging = (real *)host_alloc(st, st->chunk, sizeof(real));
    st->dev_staging = alloc_reals(st, NSA_MEM_PERSISTENT, st->chunk);
}

static void open_weights(stage *st) {
    const nsa_config *c = &st->cfg;
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        if (nsa_has(c, (nsa_id)(NSA_PHI_FIRST + i)))
            st->phi[i / WEIGHTS][i % WEIGHTS] =
                alloc_reals(st, NSA_MEM_PERSISTENT, weight_count(st, i / WEIGHTS, i % WEIGHTS));
    }
}

static void open_inputs(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    const int backward = (st->plan->setup.flags & NSA_BACKWARD) != 0;
    const int64_t row_tiles = R * c->kv_heads * st->c.GT;
    st->q_t = alloc_reals(st, NSA_MEM_PERSISTENT, row_tiles * st->c.dk8 * TILE_ROWS);
    st->gate = alloc_reals(st, NSA_MEM_PERSISTENT, R * c->q_heads * BRANCHES);
    st->forced_idx = (int32_t *)device_alloc(st, NSA_MEM_PERSISTENT, R * c->kv_heads * c->slc_count,
                                             sizeof(int32_t));
    st->bad = (nsa_bad_values *)device_alloc(st, NSA_MEM_PERSISTENT, 1, sizeof *st->bad);
    for (int x = 0; x < LAYOUTS; x++) /* each sequence begins a block and may leave one unfilled */
        open_blocks(st, x, (x == CMP ? st->plan->max_cmp : T) / BLOCK + c->max_seqs);
    if (!backward)
        return;
    st->q_n = alloc_reals(st, NSA_MEM_PERSISTENT, row_tiles * TILE_ROWS * st->c.wp);
    st->dout_t = alloc_reals(st, NSA_MEM_PERSISTENT, row_tiles * st->c.dv8 * TILE_ROWS);
    st->dout_n = alloc_reals(st, NSA_MEM_PERSISTENT, row_tiles * TILE_ROWS * st->c.wp);
}

static void open_results(stage *st, int64_t T, int64_t R) {
    const nsa_config *c = &st->cfg;
    const uint32_t flags = st->plan->setup.flags;
    const int64_t outputs = R * c->q_heads * st->c.dvp;
    st->out = alloc_reals(st, NSA_MEM_FORWARD, outputs);
    for (int x = 0; x < BRANCHES; x++) {
        if (flags & (NSA_WANT_BRANCHES | NSA_BACKWARD))
            st->out_x[x] = alloc_reals(st, NSA_MEM_FORWARD, outputs);
    }
    if (flags & NSA_BACKWARD)
        st->stats = (row_stats *)device_alloc(st, NSA_MEM_FORWARD, R * c->q_heads * BRANCHES,
                                              sizeof(row_stats));
    if (flags & NSA_WANT_CAUSAL)
        st->out_causal = alloc_reals(st, NSA_MEM_FORWARD, outputs);
    if (flags & NSA_WANT_IMPORTANCE)
        st->importance = alloc_reals(st, NSA_MEM_FORWARD,
                                     R * c->kv_heads * ((T + c->slc_block - 1) / c->slc_block));
    st->block_idx = (int32_t *)device_alloc(st, NSA_MEM_FORWARD, R * c->kv_heads * c->slc_count,
                                            sizeof(int32_t));
}

static void open_gradients(stage *st, int64_t R) {
    const nsa_config *c = &st->cfg;
    st->dq = alloc_reals(st, NSA_MEM_BACKWARD, R * c->q_heads * st->c.dkp);
    st->dgate = alloc_reals(st, NSA_MEM_BACKWARD, R * c->q_heads * BRANCHES);
    for (int i = 0; i < PAIR * WEIGHTS; i++) {
        const int pair = i / WEIGHTS, w = i % WEIGHTS;
        if (st->phi[pair][w])
            st->dphi[pair][w] = alloc_reals(st, NSA_MEM_BACKWARD, weight_count(st, pair, w));
    }
}

static void close(void *self) {
    stage *st = (stage *)self;
    if (!st)
        return;
    nsa_stream_close(&st->streams);
    close_decode(st);
    for (int i = 0; i < st->n_buffers; i++)
        (void)cudaFree(st->buffers[i].ptr);
    for (int i = 0; i <= MAX_INTERVALS; i++) {
        if (st->event[i])
            (void)cudaEventDestroy(st->event[i]);
    }
}

static nsa_status open_all(stage *st) {
    const int64_t T = st->cfg.seq_len, R = st->plan->setup.max_rows;
    int max_shared;
    TRY(nsa_stream_open(&st->streams));
    st->stream = st->streams.now;
    NSA_CUDA(cudaDeviceGetAttribute(&max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                    st->streams.device));
    st->max_shared = (size_t)max_shared;
    for (int i = 0; i <= MAX_INTERVALS; i++)
        NSA_CUDA(cudaEventCreate(&st->event[i]));
    open_tables(st, T, R);
    open_weights(st);
    open_inputs(st, T, R);
    open_results(st, T, R);
    TRY(open_compress(st));
    if (st->plan->setup.flags & NSA_BACKWARD) {
        open_gradients(st, R);
        if (!st->failed)
            TRY(open_backward(st));
    }
    if (!st->failed && (st->plan->setup.flags & NSA_DECODE))
        TRY(open_decode(st));
    TRY(nsa_pool_status(st->plan->pool));
    if (st->failed)
        return nsa_fail(NSA_ERR_MEMORY, "device memory is short, or of more than %d buffers",
                        MAX_BUFFERS);
    TRY(open_attend(st));
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
    const nsa_status status = open_all(st);
    if (status)
        close(st);
    *self = st;
    return status;
}

static nsa_status set_stream(void *self, void *stream) {
    stage *st = (stage *)self;
    TRY(nsa_stream_set(&st->streams, stream));
    st->stream = st->streams.now;
    return NSA_OK;
}

static nsa_status check(void *self, nsa_id id, const nsa_tensor *tensor) {
    return nsa_check_device_tensor(id, tensor, ((const stage *)self)->streams.device);
}

/* ------------------------------------------------------------------ timing */

nsa_status start_phases(stage *st) {
    st->intervals =
        nsa_stream_captures(&st->streams) ? -1 : 0; /* a graph's events cannot be asked */
    if (st->intervals < 0)
        return NSA_OK;
    NSA_CUDA(cudaEventRecord(st->event[0], st->stream));
    return NSA_OK;
}

nsa_status record_phase(stage *st, int phase) {
    if (st->intervals < 0)
        return NSA_OK;
    if (st->intervals < MAX_INTERVALS)
        st->interval_phase[st->intervals++] = phase;
    NSA_CUDA(cudaEventRecord(st->event[st->intervals], st->stream));
    return NSA_OK;
}

static int phases(void *self, nsa_phase *list, int capacity) {
    static const char *const names[PHASES] = {"cmp",   "slc+win", "compress", "gate",    "dq",
                                              "lists", "cmp dkv", "slc dkv",  "win dkv", "phi"};
    const stage *st = (const stage *)self;
    double seconds[PHASES] = {0};
    int n = 0;
    if (st->intervals > 0)
        (void)cudaEventSynchronize(st->event[st->intervals]);
    for (int i = 0; i < st->intervals; i++) {
        float ms = 0;
        if (cudaEventElapsedTime(&ms, st->event[i], st->event[i + 1]) == cudaSuccess)
            seconds[st->interval_phase[i]] += 1e-3 * ms;
    }
    for (int i = 0; i < PHASES && n < capacity; i++) {
        if (seconds[i] > 0)
            list[n++] = nsa_phase{names[i], seconds[i]};
    }
    return n;
}

extern "C" NSA_EXPORT const nsa_stage *nsa_stage_get(void) {
    static const nsa_stage table = {
        NSA_ABI,
        ARITH,
        IDEA,
        available,
        open,
        load,
        load_dout,
        load_step,
        forward,
        backward,
        prefill,
        decode,
        causal,
        read,
        close,
        phases,
        nsa_device_name,
        nsa_free_memory,
        set_stream,
        check,
        pending,
        slot_lens,
        &nsa_calls,
    };
    return &table;
}
