/** @file kernels.c
 *  @brief Operations and bytes of single phases, and their floors. */
#include "bench/kernels.h"
#include "common/counts.h"

#include <string.h>

enum { CMP, SLC, WIN, BRANCHES };

/* Counted in one loop over the queries. */
typedef struct sums {
    double keys[BRANCHES]; /* keys visible to all queries of a head */
    double reranked;       /* compressed keys of rows that rank their blocks */
    double rows;           /* queries */
} sums;

static sums count_keys(const workload *w) {
    const nsa_config *c = &w->cfg;
    const int step = w->pass == BENCH_DECODE;
    const int64_t from = step ? w->T + DECODE_WARM : 0, to = step ? from + 1 : w->T;
    sums s = {.rows = (double)(w->B * (to - from))};
    for (int64_t t = from; t < to; t++) {
        const nsa_reads r = nsa_reads_at(c, t);
        s.keys[CMP] += (double)(w->B * r.cmp);
        s.keys[SLC] += (double)(w->B * r.slc);
        s.keys[WIN] += (double)(w->B * r.win);
        /* a step keeps the scores of its one row */
        if (!step && t / c->slc_block + 1 > c->slc_count)
            s.reranked += (double)(w->B * r.cmp);
    }
    return s;
}

/* The branches in a phase's name; all if none is named. */
static void branches_of(const char *name, int wanted[BRANCHES]) {
    static const char *const names[] = {"cmp", "slc", "win"};
    int any = 0;
    for (int x = 0; x < BRANCHES; x++)
        any |= wanted[x] = strstr(name, names[x]) != NULL;
    for (int x = 0; x < BRANCHES && !any; x++)
        wanted[x] = 1;
}

/* Keys of one branch that are read from memory; for a step those that its query sees. */
static double stored(const workload *w, const sums *s, int branch) {
    const double each = branch == CMP ? (double)nsa_cmp_tokens(&w->cfg, w->T) : (double)w->T;
    return w->pass == BENCH_DECODE ? s->keys[branch] : (double)w->B * each;
}

/* The compressor reads tokens and writes compressed ones; its backward also moves their
 * gradients. */
static void count_phi(const workload *w, double size, bench_phase *p) {
    const workload_cost cost = workload_phi(w);
    const nsa_config *c = &w->cfg;
    const double row = (double)c->kv_heads * (double)(c->qk_dim + c->v_dim);
    const double n_raw =
        w->pass == BENCH_DECODE ? (double)c->cmp_block / (double)c->cmp_stride : (double)w->T;
    const double n_compressed =
        w->pass == BENCH_DECODE ? 1 / (double)c->cmp_stride : (double)nsa_cmp_tokens(c, w->T);
    const double directions = w->pass == BENCH_BACKWARD ? 2 : 1;
    p->flops = cost.flops * directions;
    p->bytes =
        size * ((double)w->B * row * (n_raw + n_compressed) * directions + cost.bytes * directions);
}

/* Attention of the branches that are named. */
static void count_attention(const workload *w, double size, bench_phase *p) {
    const nsa_config *c = &w->cfg;
    const double dk = (double)c->qk_dim, dv = (double)c->v_dim, Hq = (double)c->q_heads;
    const double Hkv = (double)c->kv_heads;
    const int backward = w->pass == BENCH_BACKWARD, queries = strstr(p->name, "dq") != NULL;
    const int keys = strstr(p->name, "dk") || strstr(p->name, "dv");
    const double pair = !backward ? 2 * dk + 2 * dv
                        : queries ? 4 * dk + 2 * dv
                        : keys    ? 4 * dk + 4 * dv
                                  : 6 * dk + 4 * dv;
    const sums s = count_keys(w);
    /* reads q and writes out; backward reads q and dout and, except in the pass over keys, writes
     * dq */
    double numbers = s.rows * Hq * (dk + dv + (backward && !keys ? dk : 0));
    int wanted[BRANCHES];
    branches_of(p->name, wanted);
    for (int x = 0; x < BRANCHES; x++) {
        if (!wanted[x])
            continue;
        p->flops += s.keys[x] * Hq * pair;
        numbers += stored(w, &s, x) * Hkv * (dk + dv) * (backward && !queries ? 2 : 1);
    }
    if (wanted[CMP] && !backward)
        p->flops += s.reranked * Hq * 2 * dk;
    if (wanted[SLC] && !keys)
        p->l2 = s.keys[SLC] * Hkv * (dk + dv) * size;
    p->bytes = numbers * size;
}

/* dgate = <dout, out of each branch>: reads four tensors; for each branch reads the gate, writes a
 * gradient and the four row statistics that later kernels use. */
static void count_gate(const workload *w, double size, bench_phase *p) {
    const double heads = (double)w->B * (double)w->T * (double)w->cfg.q_heads;
    const double dv = (double)w->cfg.v_dim;
    p->flops = 2 * BRANCHES * heads * dv;
    p->bytes = size * heads * ((1 + BRANCHES) * dv + BRANCHES * (1 + 1 + 4));
}

/* Build the inverse lists: read n block indices a row, write as many row indices. */
static void count_lists(const workload *w, bench_phase *p) {
    const double rows = (double)w->B * (double)w->T * (double)w->cfg.kv_heads;
    p->bytes = 2 * rows * (double)w->cfg.slc_count * (double)sizeof(int32_t);
}

static int is_attention(const workload *w, const char *name) {
    static const char *const own[] = {"cmp", "slc", "win"}, *const gradients[] = {"dq", "dk", "dv"};
    int known = 0;
    for (int i = 0; i < 3; i++)
        known |= strstr(name, own[i]) || (w->pass == BENCH_BACKWARD && strstr(name, gradients[i]));
    return known;
}

void kernels_count(const workload *w, int causal, nsa_arith arith, bench_phase *phase) {
    const double size = arith == NSA_FLOAT64 ? 8 : arith == NSA_BFLOAT16 ? 2 : 4;
    phase->flops = phase->l2 = phase->bytes = 0;
    if (causal)
        return; /* the row itself has its share of the ceiling */
    if (strstr(phase->name, "compress") || strstr(phase->name, "phi"))
        count_phi(w, size, phase);
    else if (strstr(phase->name, "gate"))
        count_gate(w, size, phase);
    else if (strstr(phase->name, "lists"))
        count_lists(w, phase);
    else if (is_attention(w, phase->name))
        count_attention(w, size, phase);
}

kernel_floor kernels_floor(const bench_run *run, const bench_row *row, const bench_phase *phase) {
    const int gpu = !strcmp(row->device, "gpu"), half = !strcmp(row->arith, "bfloat16");
    const double flops = !gpu ? run->gflops : run->ceiling[half ? BENCH_BF16 : BENCH_FMA];
    const double rate[] = {flops, gpu ? run->ceiling[BENCH_L2] : 0,
                           gpu ? run->ceiling[BENCH_READ] : run->gbs};
    const double what[] = {phase->flops, phase->l2, phase->bytes};
    const char *const bound[] = {half ? "MMA" : "FMA", "L2", "memory"};
    kernel_floor floor = {0, ""};
    if (!(flops > 0) && phase->flops > 0)
        return floor; /* without an arithmetic ceiling the floor would be too low */
    for (int i = 0; i < 3; i++) {
        const double seconds = rate[i] > 0 ? 1e-9 * what[i] / rate[i] : 0;
        if (seconds > floor.seconds)
            floor = (kernel_floor){seconds, bound[i]};
    }
    return floor;
}
