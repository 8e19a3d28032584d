/** @file
 *  @brief Backward: gradients of the gates, then of keys, values and queries branch after branch,
 *  then of the compressors and their inputs. */
#include "backward.cuh"

/* Allocate what backward needs beyond the stage's own fields. */
nsa_status open_backward(stage *st) {
    scratch *s = (scratch *)nsa_pool_alloc(st->plan->pool, NSA_MEM_PERSISTENT, 1, sizeof *s);
    if (!s)
        return nsa_pool_status(st->plan->pool);
    memset(s, 0, sizeof *s);
    st->scratch = s;
    TRY(open_queries(st, s));
    TRY(open_keys(st));
    open_inverse_list(st, s);
    return NSA_OK;
}

/* Zero the gradients that are accumulated. dq is not: its first branch writes it. */
static nsa_status zero_gradients(stage *st) {
    const nsa_config *c = &st->cfg;
    for (int x = 0; x < LAYOUTS; x++) {
        const int64_t keys = c->kv_heads * st->in[x].stride * BLOCK;
        TRY(zero(st, st->in[x].gradient[KEYS], keys * st->c.dkp));
        TRY(zero(st, st->in[x].gradient[VALUES], keys * st->c.dvp));
    }
    for (int pair = 0; pair < PAIR; pair++) {
        for (int w = 0; w < WEIGHTS; w++) {
            if (st->dphi[pair][w])
                TRY(zero(st, st->dphi[pair][w], nsa_weight_count(&st->cfg, pair, w)));
        }
    }
    return NSA_OK;
}

/* Arguments of the attention kernels. */
static grad_args gradients_of(const stage *st) {
    const scratch *s = (const scratch *)st->scratch;
    grad_args a;
    a.f = make_attend_args(st);
    a.R = st->batch.R;
    a.B = st->batch.B;
    a.row_tiles = a.R * st->c.Hkv * st->c.GT;
    a.dout = st->dout;
    a.terms = s->terms;
    a.ds = s->ds;
    a.dq = st->dq;
    a.dgate = st->dgate;
    return a;
}

/* One branch, slice after slice: dk and dv of the rows' blocks, then their dq. */
static nsa_status backward_branch(stage *st, const grad_args *args, int branch) {
    inverse_list inverse;
    for (int64_t row = 0; row < args->R; row = inverse.end_row) {
        TRY(build_inverse_list(st, args, branch, row, &inverse));
        TRY(record_phase(st, PHASE_LISTS));
        TRY(backward_keys(st, args, &inverse));
        TRY(record_phase(st, PHASE_DKV + branch));
        TRY(backward_queries(st, args, &inverse));
        TRY(record_phase(st, PHASE_DQ));
    }
    return NSA_OK;
}

nsa_status backward(void *self) {
    stage *st = (stage *)self;
    const grad_args args = gradients_of(st);
    TRY(poison(st, NSA_MEM_BACKWARD | NSA_MEM_SCRATCH));
    TRY(start_phases(st));
    TRY(zero_gradients(st));
    if (args.R) {
        TRY(gate_backward(st, &args));
        TRY(record_phase(st, PHASE_GATE));
        for (int x = 0; x < BRANCHES; x++)
            TRY(backward_branch(st, &args, x));
    }
    TRY(compress_pack_backward(st));
    TRY(record_phase(st, PHASE_PHI));
    return nsa_stream_finish(&st->streams);
}
