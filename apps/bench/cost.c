/** @file cost.c
 *  @brief The operations and bytes that a config needs at least, counted exactly. */
#include "bench/workload.h"
#include "common/counts.h"

/* Operations of one compressed token with D columns, forward. */
static double phi_flops(const nsa_config *c, double D) {
    double l = (double)c->cmp_block, hidden = (double)c->phi_hidden;
    if (c->phi == NSA_PHI_MLP)
        return 2 * hidden * l * D + 2 * hidden * D;
    return c->phi == NSA_PHI_GATED ? 4 * l * D : l * D; /* scores and weighted sum; or a sum */
}

/* Weights of one compressor with D columns. */
static double phi_weights(const nsa_config *c, double D) {
    double l = (double)c->cmp_block, hidden = (double)c->phi_hidden;
    if (c->phi == NSA_PHI_MLP)
        return l * D + hidden * (l * D + 1) + D * (hidden + 1);
    return c->phi == NSA_PHI_GATED ? l * D + D + l : 0;
}

/* Keys that queries [from, to) of a sequence see, for each branch. */
static nsa_reads add_reads(const nsa_config *c, int64_t from, int64_t to) {
    nsa_reads sum = {0};
    for (int64_t t = from; t < to; t++) {
        nsa_reads r = nsa_reads_at(c, t);
        sum.cmp += r.cmp;
        sum.slc += r.slc;
        sum.win += r.win;
        sum.dense += r.dense;
    }
    return sum;
}

/* Numbers that a step reads and writes: q, gate, the visible keys and values, and a row of out. */
static double decode_numbers(const workload *w, const nsa_reads *r, int causal) {
    const nsa_config *c = &w->cfg;
    double dk = (double)c->qk_dim, dv = (double)c->v_dim, Hkv = (double)c->kv_heads;
    double keys = causal ? (double)r->dense : (double)(r->cmp + r->slc + r->win);
    return (double)c->q_heads * (dk + dv + (causal ? 0 : 3)) + keys * Hkv * (dk + dv);
}

/* Numbers that a pass reads and writes: every input and result once. The backward also reads dout,
 * and writes a gradient for each input. */
static double pass_numbers(const workload *w, int causal) {
    const nsa_config *c = &w->cfg;
    double dk = (double)c->qk_dim, dv = (double)c->v_dim, Hq = (double)c->q_heads;
    double pairs = causal ? 1 : 3, T = (double)w->T;
    double inputs = T * (Hq * (dk + (causal ? 0 : 3)) + pairs * (double)c->kv_heads * (dk + dv));
    double out = T * Hq * dv;
    return w->pass == BENCH_FORWARD ? inputs + out : 2 * inputs + out;
}

workload_cost workload_phi(const workload *w) {
    const nsa_config *c = &w->cfg;
    const double dk = (double)c->qk_dim, dv = (double)c->v_dim;
    /* one block is compressed every d steps */
    const double blocks =
        w->pass == BENCH_DECODE ? 1.0 / (double)c->cmp_stride : (double)nsa_cmp_tokens(c, w->T);
    return (workload_cost){.flops = (double)w->B * blocks * (double)c->kv_heads *
                                    (phi_flops(c, dk) + phi_flops(c, dv)),
                           .bytes = phi_weights(c, dk) + phi_weights(c, dv)};
}

workload_cost workload_count(const workload *w, int causal, nsa_arith arith) {
    const nsa_config *c = &w->cfg;
    const double dk = (double)c->qk_dim, dv = (double)c->v_dim, B = (double)w->B;
    const int step = w->pass == BENCH_DECODE, backward = w->pass == BENCH_BACKWARD;
    /* the first timed step: position T + DECODE_WARM */
    const int64_t from = step ? w->T + DECODE_WARM : 0, to = step ? from + 1 : w->T;
    const nsa_reads r = add_reads(c, from, to);
    const double keys = causal ? (double)r.dense : (double)(r.cmp + r.slc + r.win);
    const double pair = backward ? 6 * dk + 4 * dv : 2 * dk + 2 * dv;
    const workload_cost compress = workload_phi(w);
    const double phi = causal ? 0 : compress.flops * (backward ? 3 : 1);
    const double weights = causal ? 0 : compress.bytes;
    const double size = arith == NSA_FLOAT64 ? 8 : arith == NSA_BFLOAT16 ? 2 : 4;
    const double numbers = step ? B * decode_numbers(w, &r, causal)
                                : B * pass_numbers(w, causal) + weights * (backward ? 2 : 1);
    return (workload_cost){.flops = B * keys * (double)c->q_heads * pair + phi,
                           .bytes = numbers * size,
                           .tokens = B * (step ? 1 : (double)w->T)};
}
