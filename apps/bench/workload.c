/** @file workload.c
 *  @brief The inputs of one pass at one length. */
#include "bench/slots.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void workload_text(const bench_options *o, int64_t T, char *text, size_t capacity) {
    const nsa_config *c = &o->cfg;
    size_t used = 0;
    if (T && o->batch == 1)
        used += (size_t)snprintf(text, capacity, "T=%" PRId64 ",", T);
    for (int64_t b = 0; b < o->batch && T && o->batch > 1; b++)
        used += (size_t)snprintf(text + used, capacity - used, "%s%" PRId64 "%s",
                                 b ? "+" : "seqs=", T, b + 1 == o->batch ? "," : "");
    snprintf(text + used, capacity - used,
             "Hq=%" PRId64 ",Hkv=%" PRId64 ",dk=%" PRId64 ",dv=%" PRId64 ",l=%" PRId64 ",d=%" PRId64
             ",l2=%" PRId64 ",n=%" PRId64 ",w=%" PRId64 ",phi=%s,rows=%" PRId64 ",seed=%" PRId64,
             c->q_heads, c->kv_heads, c->qk_dim, c->v_dim, c->cmp_block, c->cmp_stride,
             c->slc_block, c->slc_count, c->window, nsa_phi_name(c->phi), o->rows, o->seed);
}

/* ------------------------------------------------------------------ drawing */

/* dout of the sampled rows, zero elsewhere. */
static nsa_status make_sparse(workload *w) {
    const nsa_tensor *dout = &w->in.at[NSA_DOUT];
    int64_t row = tensor_row(dout);
    nsa_status status = tensor_copy(&w->sparse, dout);
    for (int64_t t = 0, r = 0; t < dout->shape[0] && !status; t++) {
        if (r < w->rows.shape[0] && tensor_ints(&w->rows)[r] == t)
            r++;
        else
            memset((float *)w->sparse.data + t * row, 0, (size_t)row * sizeof(float));
    }
    return status;
}

nsa_status workload_open(const bench_options *o, bench_pass pass, int64_t T, nsa_arith arith,
                         workload *w) {
    char text[320];
    memset(w, 0, sizeof *w);
    *w =
        (workload){.pass = pass, .T = T, .B = o->batch, .threads = (int)o->threads, .arith = arith};
    if (pass == BENCH_DECODE)
        return slots_open(o, w);
    workload_text(o, T, text, sizeof text);
    nsa_status status = case_parse(text, &w->judged);
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

/* Set the window's gate to 1, the others to 0. */
static nsa_status gate_window_only(nsa_tensor *gate, nsa_tensors *in) {
    nsa_status status = tensor_copy(gate, &in->at[NSA_GATE]);
    for (int64_t i = 0; i < nsa_count(gate) && !status; i++)
        tensor_set(gate, i, i % 3 == 2);
    in->at[NSA_GATE] = *gate;
    return status;
}

nsa_status workload_judged(const workload *w, int causal, nsa_config *cfg, nsa_tensor *gate,
                           nsa_tensors *in) {
    *in = w->in;
    *cfg = w->judged.cfg;
    memset(gate, 0, sizeof *gate);
    in->at[NSA_ROWS] = w->rows;
    if (w->pass == BENCH_BACKWARD)
        in->at[NSA_DOUT] = w->sparse;
    if (!causal)
        return NSA_OK;
    cfg->window = cfg->seq_len;
    return gate_window_only(gate, in);
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
    return gate_window_only(gate, in);
}

void workload_close(workload *w) {
    slots_close(w);
    tensors_free(&w->in);
    tensors_free(&w->step);
    tensors_free(&w->truth[0]);
    tensors_free(&w->truth[1]);
    tensor_free(&w->rows);
    tensor_free(&w->sparse);
}
