/** @file
 *  @brief The chain `select`: makes its problem, runs its steps, and computes importance in
 *  float64. */
#include "problem.cuh"

#include "harness/random.h"

#include <string.h>

static problem pb;
static float *q, *k, *importance; /* on the host; importance is step 0's */

static const char *const what[] = {
    "stage 02's loops, each a kernel; all in memory",
    "a lane ranks a block: how many come before it",
    "a warp's tile: row statistics with the scores",
    "scores a second time: heads summed on chip",
    "importance as keys stream past a ring buffer",
    "a list of the best, not ranks: one launch",
};

static nsa_status (*const steps[])(const problem *) = {
    select_0_memory,    select_1_ranks, select_2_statistics,
    select_3_two_walks, select_4_ring,  select_5_topk,
};

/* The paper's shape from T = 2048 on; a shorter problem has a compressed key for every token, so
 * that there are always many blocks to choose from. Keys come again after a third of them, so that
 * many blocks are exactly as important as others. */
static void make(int T) {
    uint64_t random = random_seed(SEED);
    const int64_t rows = (int64_t)T * G;
    int64_t period;
    pb = {};
    pb.T = T;
    pb.stride = T < 2048 ? 1 : 16;
    pb.n = T < 2048 ? 8 : 16;
    pb.N = visible_cmp(&pb, T - 1);
    pb.J = own_block_of(&pb, T - 1) + 1;
    pb.padded = max(BLOCK, (int)round_up(pb.N, BLOCK));
    pb.scale2 = (float)(1.4426950408889634 / sqrt((double)D));
    period = round_up(pb.N / 3 + 1, PER_BLOCK);
    q = draw(rows * D, &random);
    k = draw((int64_t)pb.padded * D, &random);
    for (int64_t i = period * D; i < (int64_t)pb.N * D; i++)
        k[i] = k[i - period * D];
    for (int64_t i = (int64_t)pb.N * D; i < (int64_t)pb.padded * D; i++)
        k[i] = NAN; /* nothing may come of keys that are not there */
    importance = (float *)allocate((int64_t)T * pb.J, sizeof *importance);
    pb.q = (float *)copy_to_device(q, rows * D, sizeof *q);
    pb.kt = transposed_blocks(k, pb.padded);
    pb.scores = (float *)device_output(rows * pb.padded, sizeof(float));
    pb.stats = (row_stats *)device_output(rows, sizeof *pb.stats);
    pb.p_group = (float *)device_output((int64_t)T * pb.padded, sizeof(float));
    pb.importance = (float *)device_output((int64_t)T * pb.J, sizeof(float));
    pb.idx = (int32_t *)device_output((int64_t)T * pb.n, sizeof *pb.idx);
}

static nsa_status run(int step) {
    return steps[step](&pb);
}

static void *result(int64_t *bytes) {
    *bytes = (int64_t)pb.T * pb.n * (int64_t)sizeof *pb.idx;
    return pb.idx;
}

/* ------------------------------------------------------------------ the check */

/* Importance of all blocks of query t, in float64. */
static void importance_float64(int t, double *imp) {
    const int n_visible = visible_cmp(&pb, t);
    double *p = (double *)allocate(max(n_visible, 1), sizeof *p);
    for (int j = 0; j < pb.J; j++)
        imp[j] = 0;
    for (int64_t row = (int64_t)t * G; row < (int64_t)(t + 1) * G; row++) {
        double row_sum = 0;
        for (int i = 0; i < n_visible; i++) {
            double s = 0;
            for (int c = 0; c < D; c++)
                s += (double)q[row * D + c] * (double)k[(int64_t)i * D + c];
            row_sum += p[i] = exp(s / sqrt((double)D)); /* scores are small here */
        }
        for (int j = 0; j <= own_block_of(&pb, t); j++) {
            for (int x = 1 - OVERLAP; x < PER_BLOCK; x++) {
                const int i = PER_BLOCK * j + x;
                imp[j] += i >= 0 && i < n_visible ? (double)weight(x) * p[i] / row_sum : 0;
            }
        }
    }
}

/* Are the blocks idx [n] of query t allowed: ascending, the forced ones among them, as many as
 * there can be, and -1 after them? */
static bool legal(const int32_t *idx, int t) {
    const int own_block = own_block_of(&pb, t), length = min(pb.n, own_block + 1);
    int n_forced = 0;
    for (int i = 0; i < pb.n; i++) {
        if (i >= length ? idx[i] != -1 : idx[i] <= (i ? idx[i - 1] : -1) || idx[i] > own_block)
            return false;
        n_forced += i < length && forced(idx[i], own_block);
    }
    return n_forced == min(INIT + LOCAL, own_block + 1);
}

/* Importance, by step 0, of all blocks that query t has selected. */
static double selected_importance(const int32_t *idx, int t) {
    double sum = 0;
    for (int i = 0; i < pb.n && idx[i] >= 0; i++)
        sum += (double)importance[(int64_t)t * pb.J + idx[i]];
    return sum;
}

/* How much less importance than step 0 a step has selected, of the worst query: float32 sums in
 * another order may exchange two blocks that are equal but for their last digit. Blocks that are
 * exactly equal may not be exchanged. */
static double difference(const void *out, const void *first) {
    double worst = 0;
    for (int t = 0; t < pb.T; t++) {
        const int32_t *a = (const int32_t *)out + (int64_t)t * pb.n;
        const int32_t *b = (const int32_t *)first + (int64_t)t * pb.n;
        const double best = selected_importance(b, t), lost = best - selected_importance(a, t);
        const bool same = memcmp(a, b, (size_t)pb.n * sizeof *a) == 0;
        if (!legal(a, t) || (!same && lost == 0))
            return INFINITY;
        if (!same)
            worst = larger(worst, fabs(lost) / best);
    }
    return worst;
}

/* Does step 0's selection follow from its importance: no other block is better than a selected one
 * that is not forced? */
static bool best_selected(const int32_t *idx, int t) {
    const float *imp = importance + (int64_t)t * pb.J;
    const int own_block = own_block_of(&pb, t);
    for (int j = 0; j <= own_block; j++) {
        bool selected = false, better = false;
        for (int i = 0; i < pb.n && idx[i] >= 0; i++) {
            selected |= idx[i] == j;
            better |= !forced(idx[i], own_block) &&
                      (imp[j] > imp[idx[i]] || (imp[j] == imp[idx[i]] && j < idx[i]));
        }
        if (!selected && better)
            return false;
    }
    return true;
}

/* Importance of some queries from float64, and the selection of all. */
static double error(const void *first) {
    const size_t bytes = (size_t)pb.T * (size_t)pb.J * sizeof *importance;
    double *imp = (double *)allocate(pb.J, sizeof *imp), worst = 0;
    if (cudaMemcpy(importance, pb.importance, bytes, cudaMemcpyDeviceToHost) != cudaSuccess)
        return NAN;
    for (int t = 0; t < pb.T; t++) {
        const int32_t *idx = (const int32_t *)first + (int64_t)t * pb.n;
        if (!legal(idx, t) || !best_selected(idx, t))
            return INFINITY;
    }
    for (int i = 0; i < 12; i++) {
        const int t = (int)((int64_t)(pb.T - 1) * i / 11);
        importance_float64(t, imp);
        if (visible_cmp(&pb, t) > 0)
            worst = larger(
                worst, relative_rms(importance + (int64_t)t * pb.J, imp, own_block_of(&pb, t) + 1));
    }
    return worst;
}

extern const chain chain_select = {
    "select", what, sizeof steps / sizeof *steps, 8192, 1e-5, make, run, result, error, difference,
};
