/** @file
 *  @brief The chain `inverse_list`: makes its problem, runs its steps, and inverts in a plain
 *  loop. */
#include "problem.cuh"

#include "harness/random.h"

#include <string.h>

enum { MAX_CHUNKS = 256, MIN_CHUNK = 32 };

static problem pb;
static int32_t *idx; /* on the host */

static const char *const what[] = {
    "a thread a block reads all rows, twice",
    "counted by chunks of rows at once",
    "each chunk stores its rows from its own offset",
    "a warp a chunk: a lane an entry of the row",
    "prefix sums by 1024 threads",
};

static nsa_status (*const steps[])(const problem *) = {
    inverse_list_0_thread_block, inverse_list_1_count, inverse_list_2_scatter,
    inverse_list_3_lanes,        inverse_list_4_scan,
};

static int64_t result_ints(void) {
    return pb.blocks + 1 + (int64_t)pb.T * pb.n;
}

/* A short problem selects fewer blocks, so that some rows leave some out. */
static void make(int T) {
    uint64_t random = random_seed(SEED);
    pb = {};
    pb.T = T;
    pb.n = max(1, min(16, T / BLOCK));
    pb.blocks = (T + BLOCK - 1) / BLOCK;
    pb.chunk = max((int)MIN_CHUNK, (T + MAX_CHUNKS - 1) / MAX_CHUNKS);
    pb.chunks = (T + pb.chunk - 1) / pb.chunk;
    idx = (int32_t *)allocate((int64_t)T * pb.n, sizeof *idx);
    for (int t = 0; t < T; t++)
        draw_blocks(idx + (int64_t)t * pb.n, pb.n, t, &random);
    pb.idx = (int32_t *)copy_to_device(idx, (int64_t)T * pb.n, sizeof *idx);
    pb.count = (int32_t *)device_output(pb.blocks, sizeof *pb.count);
    pb.start = (int32_t *)device_output(result_ints(), sizeof *pb.start);
    pb.list = pb.start + pb.blocks + 1;
    pb.chunk_counts =
        (int32_t *)device_output((int64_t)pb.chunks * pb.blocks, sizeof *pb.chunk_counts);
}

static nsa_status run(int step) {
    return steps[step](&pb);
}

/* start and list; behind the last row of the last list it holds -1, as poison() left it. */
static void *result(int64_t *bytes) {
    *bytes = result_ints() * (int64_t)sizeof *pb.start;
    return pb.start;
}

/* How many of the integers differ. */
static double difference(const void *out, const void *first) {
    const int32_t *a = (const int32_t *)out, *b = (const int32_t *)first;
    int64_t unequal = 0;
    for (int64_t i = 0; i < result_ints(); i++)
        unequal += a[i] != b[i];
    return (double)unequal;
}

/* The same from a loop over blocks and rows. */
static double error(const void *first) {
    int32_t *start = (int32_t *)allocate(result_ints(), sizeof *start);
    int32_t *next = (int32_t *)allocate(pb.blocks, sizeof *next), *list = start + pb.blocks + 1;
    memset(start, 0xff, (size_t)result_ints() * sizeof *start);
    memset(start, 0, (size_t)(pb.blocks + 1) * sizeof *start);
    for (int64_t i = 0; i < (int64_t)pb.T * pb.n; i++) {
        if (idx[i] >= 0)
            start[idx[i] + 1]++;
    }
    for (int block = 0; block < pb.blocks; block++) {
        start[block + 1] += start[block];
        next[block] = start[block];
    }
    for (int64_t i = 0; i < (int64_t)pb.T * pb.n; i++) {
        if (idx[i] >= 0)
            list[next[idx[i]]++] = (int32_t)(i / pb.n);
    }
    return difference(start, first);
}

extern const chain chain_inverse_list = {
    "inverse_list", what,       sizeof steps / sizeof *steps, 65536, {0, 0}, make, run, result,
    error,          difference,
};
