/** @file workload.c
 *  @brief The inputs of one pass at one length. */
#include "bench/contender.h"
#include "common/tensors.h"
#include "harness/on_device.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <stdlib.h>

void workload_text(const bench_options *o, int64_t T, char *text, size_t capacity) {
    const nsa_config *c = &o->cfg;
    const char *first = o->batch > 1 ? "seqs=" : "T=";
    size_t used = 0;
    for (int64_t b = 0; b < o->batch && T; b++)
        used += (size_t)snprintf(text + used, capacity - used, "%s%" PRId64 "%s", b ? "+" : first,
                                 T, b + 1 == o->batch ? "," : "");
    snprintf(text + used, capacity - used,
             "Hq=%" PRId64 ",Hkv=%" PRId64 ",dk=%" PRId64 ",dv=%" PRId64 ",l=%" PRId64 ",d=%" PRId64
             ",l2=%" PRId64 ",n=%" PRId64 ",w=%" PRId64 ",phi=%s,rows=%" PRId64 ",seed=%" PRId64,
             c->q_heads, c->kv_heads, c->qk_dim, c->v_dim, c->cmp_block, c->cmp_stride,
             c->slc_block, c->slc_count, c->window, nsa_phi_name(c->phi), o->rows, o->seed);
}

static nsa_status case_of(bench_options o, int64_t batch, int64_t T, test_case *c) {
    char text[320];
    o.batch = batch;
    workload_text(&o, T, text, sizeof text);
    return case_parse(text, c);
}

/* Draw one sequence of `tokens`; no row of results is chosen. */
static nsa_status draw(const bench_options *o, int64_t tokens, nsa_arith arith, nsa_tensors *in) {
    test_case c;
    nsa_status status = case_of(*o, 1, tokens, &c);
    status = status ? status : case_inputs(&c, arith, in);
    tensor_free(&in->at[NSA_ROWS]);
    tensor_free(&in->at[NSA_DOUT]);
    return status;
}

/* Keys, values and weights of the stretch; its queries are not used. Queries and gates of the steps
 * are drawn as a separate case; their keys and values are the stretch's. */
static nsa_status draw_slots(const bench_options *o, workload *w) {
    bench_options stretch = *o, steps = *o;
    stretch.cfg.q_heads = stretch.cfg.kv_heads; /* as few queries as may be */
    steps.seed += 1;
    steps.cfg.phi = NSA_PHI_MEAN; /* a step has no weights */
    nsa_status status = draw(&stretch, w->T + w->B * DECODE_STEPS, w->arith, &w->in);
    status = status ? status : draw(&steps, DECODE_STEPS * w->B, w->arith, &w->step);
    tensor_free(&w->in.at[NSA_Q]);
    tensor_free(&w->in.at[NSA_GATE]);
    for (int id = NSA_K_CMP; id <= NSA_V_WIN && !status; id++) {
        const nsa_tensor *from = &w->in.at[id];
        const int64_t row = tensor_row(from);
        float *to = w->step.at[id].data;
        for (int64_t i = 0; i < DECODE_STEPS * w->B; i++) {
            const int64_t token = i % w->B * DECODE_STEPS + w->T + i / w->B;
            memcpy(to + i * row, (const float *)from->data + token * row, (size_t)row * sizeof *to);
        }
    }
    return status;
}

static nsa_status slots_open(const bench_options *o, workload *w) {
    uint64_t state = (uint64_t)o->seed;
    nsa_status status = case_of(*o, 1, w->T + DECODE_WARM, &w->judged);
    w->cfg = w->judged.cfg;
    w->cfg.seq_len = w->T;
    w->cfg.max_seq_len = w->T + DECODE_STEPS;
    w->cfg.max_seqs = w->B;
    status = status ? status : draw_slots(o, w);
    /* of each chosen slot the last warm-up step is judged */
    status = status ? status : case_rows(w->B, o->rows, &state, &w->rows);
    for (int i = 0; i < 2 && !status; i++) { /* zero; what is never written takes no memory */
        nsa_tensor *t = &w->blank[i];
        nsa_shape(&w->cfg, &(nsa_lengths){.T = w->T + DECODE_WARM}, i ? NSA_GATE : NSA_Q, 0, t);
        t->dtype = NSA_F32;
        t->data = calloc((size_t)nsa_count(t), sizeof(float));
        if (!t->data)
            status = nsa_fail(NSA_ERR_MEMORY, "no memory for a sequence's queries");
    }
    return status;
}

nsa_tensors workload_slot(const workload *w, int64_t slot, int64_t tokens) {
    nsa_tensors in = rows_from(&w->in, slot * DECODE_STEPS, tokens);
    in.at[NSA_Q] = w->blank[0];
    in.at[NSA_GATE] = w->blank[1];
    in.at[NSA_Q].shape[0] = in.at[NSA_GATE].shape[0] = tokens;
    return in;
}

nsa_status slots_fill(const workload *w, nsa_context *ctx) {
    nsa_status status = NSA_OK;
    for (int32_t slot = 0; slot < w->B && !status; slot++) {
        nsa_tensors in = workload_slot(w, slot, w->T);
        in.at[NSA_ACTIVE] = (nsa_tensor){&slot, NSA_I32, 1, {1}, NSA_HOST};
        in.at[NSA_ROWS] = (nsa_tensor){NULL, NSA_I32, 1, {0}, NSA_HOST};
        status = nsa_load(ctx, &in);
        status = status ? status : nsa_prefill(ctx);
    }
    return status;
}

nsa_status slots_unroll(const workload *w, nsa_id id, nsa_tensor *t) {
    const int64_t tokens = w->T + DECODE_STEPS, row = tensor_row(&w->in.at[id]);
    *t = w->in.at[id];
    t->shape[0] = w->B * tokens;
    nsa_status status = tensor_alloc(t);
    for (int64_t b = 0; b < w->B && !status; b++)
        memcpy((float *)t->data + b * tokens * row,
               (const float *)w->in.at[id].data + b * DECODE_STEPS * row,
               (size_t)(tokens * row) * sizeof(float));
    return status;
}

/* dout of the sampled rows, zero elsewhere. */
static nsa_status make_sparse(workload *w) {
    const nsa_tensor *dout = &w->in.at[NSA_DOUT];
    const size_t row = (size_t)tensor_row(dout) * sizeof(float);
    w->sparse = *dout;
    nsa_status status = tensor_alloc(&w->sparse);
    if (!status)
        memset(w->sparse.data, 0, (size_t)dout->shape[0] * row);
    for (int64_t r = 0; r < w->rows.shape[0] && !status; r++) {
        const size_t at = (size_t)tensor_ints(&w->rows)[r] * row;
        memcpy((char *)w->sparse.data + at, (const char *)dout->data + at, row);
    }
    return status;
}

nsa_status workload_open(const bench_options *o, bench_pass pass, int64_t T, nsa_arith arith,
                         workload *w) {
    *w =
        (workload){.pass = pass, .T = T, .B = o->batch, .threads = (int)o->threads, .arith = arith};
    if (pass == BENCH_DECODE)
        return slots_open(o, w);
    nsa_status status = case_of(*o, o->batch, T, &w->judged);
    status = status ? status : case_inputs(&w->judged, arith, &w->in);
    w->rows = w->in.at[NSA_ROWS]; /* separate: timed runs compute all rows */
    w->in.at[NSA_ROWS] = (nsa_tensor){0};
    w->cfg = w->judged.cfg;
    if (!status && pass == BENCH_BACKWARD)
        status = make_sparse(w);
    if (pass != BENCH_BACKWARD)
        tensor_free(&w->in.at[NSA_DOUT]);
    return status;
}

nsa_status workload_gate(nsa_tensor *gate, nsa_tensors *in) {
    nsa_status status = tensor_copy(gate, &in->at[NSA_GATE]);
    for (int64_t i = 0; i < nsa_count(gate) && !status; i++)
        tensor_set(gate, i, i % 3 == 2);
    in->at[NSA_GATE] = *gate;
    return status;
}

nsa_status workload_dense(const workload *w, nsa_config *cfg, nsa_tensor *gate, nsa_tensors *in) {
    *in = w->in;
    *cfg = w->cfg;
    cfg->window = cfg->seq_len;
    cfg->cmp_block = cfg->cmp_stride = cfg->slc_block = 256; /* the contract's maximum */
    cfg->slc_count = cfg->slc_local = 1;
    cfg->slc_init = 0;
    cfg->phi = NSA_PHI_MEAN;
    for (int id = NSA_PHI_FIRST; id <= NSA_PHI_LAST; id++)
        in->at[id] = (nsa_tensor){0};
    return workload_gate(gate, in);
}

void workload_close(workload *w) {
    free(w->blank[0].data);
    free(w->blank[1].data);
    tensors_free(&w->in);
    tensors_free(&w->step);
    tensors_free(&w->truth[0]);
    tensors_free(&w->truth[1]);
    tensor_free(&w->rows);
    tensor_free(&w->sparse);
}
