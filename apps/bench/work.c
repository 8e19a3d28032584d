/** @file work.c
 *  @brief Operations and bytes that the inputs need at least: of a whole pass and of phases. */
#include "bench/contender.h"
#include "common/counts.h"

enum { CMP, SLC, WIN, BRANCHES, DQ = BRANCHES, DK, DV };

/* Keys that the queries of a pass see, of all sequences, for one head. */
typedef struct key_counts {
    double branch[BRANCHES]; /* of each branch */
    double dense;            /* of plain causal attention */
    double reranked;         /* compressed keys of rows that rank their blocks */
    double queries;          /* how many */
} key_counts;

/* A step of decode: the first timed one, at position T + DECODE_WARM. */
static key_counts count_keys(const workload *w) {
    const nsa_config *c = &w->cfg;
    const int step = w->pass == BENCH_DECODE;
    const int64_t from = step ? w->T + DECODE_WARM : 0, to = step ? from + 1 : w->T;
    const double B = (double)w->B;
    key_counts s = {.queries = B * (double)(to - from)};
    for (int64_t t = from; t < to; t++) {
        const nsa_reads r = nsa_reads_at(c, t);
        s.branch[CMP] += B * (double)r.cmp;
        s.branch[SLC] += B * (double)r.slc;
        s.branch[WIN] += B * (double)r.win;
        s.dense += B * (double)r.dense;
        /* a step keeps the scores of its one row */
        if (!step && t / c->slc_block + 1 > c->slc_count)
            s.reranked += B * (double)r.cmp;
    }
    return s;
}

static const double size_of[] = {8, 4, 2}; /* bytes of a number, by nsa_arith */

/* Operations of one compressed token with D columns, forward. */
static double phi_flops(const nsa_config *c, double D) {
    double l = (double)c->cmp_block, hidden = (double)c->phi_hidden;
    if (c->phi == NSA_PHI_MLP)
        return 2 * hidden * l * D + 2 * hidden * D;
    return c->phi == NSA_PHI_GATED ? 4 * l * D : l * D; /* scores and weighted sum; or a sum */
}

typedef struct phi_cost {
    double blocks, flops, weights; /* blocks of one sequence */
} phi_cost;

/* Both compressors' forward. */
static phi_cost count_compressors(const workload *w) {
    const nsa_config *c = &w->cfg;
    const double dk = (double)c->qk_dim, dv = (double)c->v_dim;
    /* one block is compressed every d steps */
    const double blocks =
        w->pass == BENCH_DECODE ? 1.0 / (double)c->cmp_stride : (double)nsa_cmp_tokens(c, w->T);
    const double tokens = (double)w->B * blocks * (double)c->kv_heads;
    phi_cost cost = {blocks, tokens * (phi_flops(c, dk) + phi_flops(c, dv)), 0};
    for (int id = NSA_PHI_FIRST; id <= NSA_PHI_LAST; id++)
        cost.weights += nsa_has(c, (nsa_id)id) ? (double)nsa_count(&w->in.at[id]) : 0;
    return cost;
}

/* Numbers that a pass reads and writes: q, gate, keys, values and out once; a step the keys and
 * values that its query sees. The backward reads dout too, and writes a gradient of each input. */
static double count_numbers(const workload *w, double keys, int causal) {
    const nsa_config *c = &w->cfg;
    const double dk = (double)c->qk_dim, dv = (double)c->v_dim, Hkv = (double)c->kv_heads;
    const int step = w->pass == BENCH_DECODE, directions = w->pass == BENCH_BACKWARD ? 2 : 1;
    const double rows = (double)w->B * (step ? 1 : (double)w->T) * (double)c->q_heads;
    const double stored = step ? keys : (double)w->B * (double)w->T * (causal ? 1 : 3);
    return directions * (rows * (dk + (causal ? 0 : 3)) + stored * Hkv * (dk + dv)) + rows * dv;
}

void workload_count(const workload *w, int causal, nsa_arith arith, bench_row *row) {
    const double dk = (double)w->cfg.qk_dim, dv = (double)w->cfg.v_dim;
    const int step = w->pass == BENCH_DECODE, backward = w->pass == BENCH_BACKWARD;
    const key_counts s = count_keys(w);
    const double keys = causal ? s.dense : s.branch[CMP] + s.branch[SLC] + s.branch[WIN];
    const double pair = backward ? 6 * dk + 4 * dv : 2 * dk + 2 * dv;
    const phi_cost phi = causal ? (phi_cost){0} : count_compressors(w);
    const double weights = step ? 0 : phi.weights * (backward ? 2 : 1);
    row->flops = keys * (double)w->cfg.q_heads * pair + phi.flops * (backward ? 3 : 1);
    row->bytes = (count_numbers(w, keys, causal) + weights) * size_of[arith];
    row->tokens = s.queries;
}

/* The compressor reads tokens and writes compressed ones; its backward moves gradients too. */
static void count_phi(const workload *w, double size, bench_phase *p) {
    const phi_cost cost = count_compressors(w);
    const nsa_config *c = &w->cfg;
    const double row = (double)c->kv_heads * (double)(c->qk_dim + c->v_dim);
    const int directions = w->pass == BENCH_BACKWARD ? 2 : 1;
    const double raw =
        w->pass == BENCH_DECODE ? (double)c->cmp_block / (double)c->cmp_stride : (double)w->T;
    p->flops = cost.flops * directions;
    p->bytes = size * directions * ((double)w->B * row * (raw + cost.blocks) + cost.weights);
}

/* Is that part, a branch or a gradient, in the phase's name? */
static int has(const bench_phase *p, int part) {
    static const char *const names[] = {"cmp", "slc", "win", "dq", "dk", "dv"};
    return strstr(p->name, names[part]) != NULL;
}

/* Attention of the branches in the phase's name; of all if it names a gradient alone. `kept`: the
 * stage scores compressed keys again in a phase "select", and keeps dS for the pass over queries.
 */
static void count_attention(const workload *w, double size, int kept, bench_phase *p) {
    const nsa_config *c = &w->cfg;
    const double dk = (double)c->qk_dim, dv = (double)c->v_dim, Hq = (double)c->q_heads;
    const double Hkv = (double)c->kv_heads;
    const int backward = w->pass == BENCH_BACKWARD, queries = has(p, DQ);
    const int keys = has(p, DK) || has(p, DV), all = !has(p, CMP) && !has(p, SLC) && !has(p, WIN);
    const key_counts s = count_keys(w);
    if (kept && !strcmp(p->name, "select"))
        p->flops = s.reranked * Hq * 2 * dk;
    if (all && !queries && !keys)
        return;
    const double pair = !backward ? 2 * dk + 2 * dv
                        : queries ? 2 * dk + (kept ? 0 : 2 * dk + 2 * dv)
                        : keys    ? 4 * dk + 4 * dv
                                  : 6 * dk + 4 * dv;
    /* reads q, writes out; backward reads q and dout, writes dq, but for the pass over keys */
    double numbers = s.queries * Hq * (dk + dv + (backward && !keys ? dk : 0));
    for (int x = 0; x < BRANCHES; x++) {
        if (!all && !has(p, x))
            continue;
        const double each = x == CMP ? (double)nsa_cmp_tokens(c, w->T) : (double)w->T;
        const double stored = w->pass == BENCH_DECODE ? s.branch[x] : (double)w->B * each;
        p->flops += s.branch[x] * Hq * pair;
        numbers += stored * Hkv * (dk + dv) * (backward && !queries ? 2 : 1);
        numbers += kept && backward ? s.branch[x] * Hq : 0; /* dS */
        if (x == CMP && !backward && !kept)
            p->flops += s.reranked * Hq * 2 * dk;
        if (x == SLC && !keys)
            p->l2 = s.branch[SLC] * Hkv * (dk + (kept && backward ? 0 : dv)) * size;
    }
    p->bytes = numbers * size;
}

void phase_work(const workload *w, nsa_arith arith, bench_phase *p) {
    const double tokens = (double)w->B * (double)w->T, dv = (double)w->cfg.v_dim;
    const double heads = tokens * (double)w->cfg.q_heads, size = size_of[arith];
    p->flops = p->l2 = p->bytes = 0;
    if (strstr(p->name, "compress") || strstr(p->name, "phi")) {
        count_phi(w, size, p);
    } else if (strstr(p->name, "gate")) {
        /* dgate = <dout, out of each branch>: reads four tensors; for each branch reads the gate,
         * writes a gradient and the four row statistics that later kernels use */
        p->flops = 2 * BRANCHES * heads * dv;
        p->bytes = size * heads * ((1 + BRANCHES) * dv + BRANCHES * (1 + 1 + 4));
    } else if (strstr(p->name, "lists")) {
        /* build the inverse lists: read n block indices a row, write as many row indices */
        p->bytes = 2 * tokens * (double)w->cfg.kv_heads * (double)w->cfg.slc_count * 4;
    } else {
        count_attention(w, size, arith == NSA_BFLOAT16, p);
    }
}
