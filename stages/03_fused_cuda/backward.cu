/** @file
 *  @brief Backward: gradients of the queries, then of keys and values in each branch, then of the
 *  compressors and their inputs. */
#include "backward.cuh"

/* Allocate what backward needs beyond the stage's own fields. */
nsa_status open_backward(stage *st) {
    const nsa_config *c = &st->cfg;
    const int64_t tiles = st->plan->setup.max_rows * c->kv_heads * st->c.GT;
    scratch *s = (scratch *)nsa_pool_alloc(st->plan->pool, NSA_MEM_PERSISTENT, 1, sizeof *s);
    int device = 0, max_shared = 0;
    if (!s)
        return nsa_pool_status(st->plan->pool);
    memset(s, 0, sizeof *s);
    st->scratch = s;
    NSA_CUDA(cudaGetDevice(&device));
    NSA_CUDA(cudaDeviceGetAttribute(&max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    TRY(open_queries(s, &st->c, (size_t)max_shared));
    TRY(open_range(s, &st->c, (size_t)max_shared));
    TRY(open_keys(s, (size_t)max_shared));
    s->terms =
        (float4 *)device_alloc(st, NSA_MEM_SCRATCH, BRANCHES * tiles * TILE_ROWS, sizeof(float4));
    return open_inverse_list(st, s);
}

static nsa_status zero(const stage *st, real *x, int64_t count) {
    NSA_CUDA(cudaMemsetAsync(x, 0, (size_t)count * sizeof *x, st->stream));
    return NSA_OK;
}

/* Zero the gradients that are accumulated, the compressors'; without rows, all of them. */
static nsa_status zero_gradients(stage *st) {
    const nsa_config *c = &st->cfg;
    for (int x = st->batch.R ? RAW : 0; x < LAYOUTS; x++) {
        const int64_t keys = c->kv_heads * st->in[x].stride * BLOCK;
        TRY(zero(st, st->in[x].dk, keys * st->c.dkp));
        TRY(zero(st, st->in[x].dv, keys * st->c.dvp));
    }
    for (int pair = 0; pair < PAIR; pair++) {
        for (int w = 0; w < WEIGHTS; w++) {
            if (st->dphi[pair][w])
                TRY(zero(st, st->dphi[pair][w], weight_count(st, pair, w)));
        }
    }
    return NSA_OK;
}

/* Arguments of the attention kernels. */
static grad_args gradients_of(const stage *st) {
    grad_args a;
    a.c = st->c;
    a.R = st->batch.R;
    a.B = st->batch.B;
    a.seqs = st->seqs;
    a.row_t = st->row_t;
    a.row_seq = st->row_seq;
    a.block_idx = st->block_idx;
    a.q_t = st->q_t;
    a.q_n = st->q_n;
    a.dout_t = st->dout_t;
    a.dout_n = st->dout_n;
    a.terms = ((const scratch *)st->scratch)->terms;
    for (int x = 0; x < BRANCHES; x++)
        a.in[x] = st->in[x];
    a.dq = st->dq;
    return a;
}

nsa_status backward(void *self) {
    stage *st = (stage *)self;
    const grad_args args = gradients_of(st);
    TRY(record_phase(st, -1));
    TRY(zero_gradients(st));
    if (args.R) {
        TRY(backward_gate(st, &args));
        TRY(record_phase(st, PHASE_GATE));
        TRY(backward_range(st, &args));
        TRY(record_phase(st, PHASE_DQ));
        TRY(backward_queries(st, &args));
        TRY(record_phase(st, PHASE_DQ_SLC));
        for (int x = 0; x < BRANCHES; x++) {
            inverse_list inverse;
            TRY(build_inverse_list(st, &args, x, &inverse));
            TRY(record_phase(st, PHASE_LISTS));
            TRY(backward_keys(st, &args, &inverse));
            TRY(record_phase(st, PHASE_DKV + x));
        }
    }
    TRY(compress_pack_backward(st));
    TRY(record_phase(st, PHASE_PHI));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}
