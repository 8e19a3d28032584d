/** @file
 *  @brief The chain `select`: makes its problem and runs its steps. */
#include "problem.cuh"

#include "harness/random.h"

static problem pb;
static host_arrays host;

static const char *const what[] = {
    "stage 02's loops, each a kernel; all in memory",
    "a lane ranks a block: how many come before it",
    "a warp's tile: row statistics with the scores",
    "scores a second time: heads summed on chip",
    "importance as keys stream past a ring buffer",
    "a list of the best, not ranks: one launch",
};

static nsa_status (*const steps[])(const problem *) = {
    select_0_memory,     select_1_ranks, select_2_statistics,
    select_3_two_passes, select_4_ring,  select_5_topk,
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
    pb.N = cmp_visible(&pb, T - 1);
    pb.J = own_block_of(&pb, T - 1) + 1;
    pb.padded = max(BLOCK, (int)round_up(pb.N, BLOCK));
    pb.scale2 = (float)(1.4426950408889634 / sqrt((double)D));
    period = round_up(pb.N / 3 + 1, PER_BLOCK);
    host.q = draw(rows * D, &random);
    host.k = draw((int64_t)pb.padded * D, &random);
    for (int64_t i = period * D; i < (int64_t)pb.N * D; i++)
        host.k[i] = host.k[i - period * D];
    for (int64_t i = (int64_t)pb.N * D; i < (int64_t)pb.padded * D; i++)
        host.k[i] = NAN; /* nothing may come of keys that are not there */
    host.importance = (float *)allocate((int64_t)T * pb.J, sizeof *host.importance);
    pb.q = (float *)copy_to_device(host.q, rows * D, sizeof *host.q);
    pb.kt = transposed_blocks(host.k, pb.padded);
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

static double difference(const void *out, const void *first) {
    return select_difference(&pb, &host, (const int32_t *)out, (const int32_t *)first);
}

static double error(const void *first) {
    return select_error(&pb, &host, (const int32_t *)first);
}

extern const chain chain_select = {
    "select", what,       sizeof steps / sizeof *steps, 8192, {1e-5, 1e-5}, make, run, result,
    error,    difference,
};
