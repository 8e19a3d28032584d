/** @file
 *  @brief Step 0, a thread a block of keys: it asks every row whether the row selected its block,
 *  once to count and once to store. */
#include "problem.cuh"

enum { THREADS = 64 };

/* Did row t select `block`? */
static __device__ __forceinline__ bool selected(const problem *pb, int t, int block) {
    const int32_t *idx = pb->idx + (int64_t)t * pb->n;
    bool found = false;
    for (int i = 0; i < pb->n; i++)
        found |= idx[i] == block;
    return found;
}

/* count, from all rows. Grid and block: a thread a block of keys. */
static __global__ void __launch_bounds__(THREADS) count_rows(problem pb) {
    const int block = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (block >= pb.blocks)
        return;
    int32_t count = 0;
    for (int t = 0; t < pb.T; t++)
        count += selected(&pb, t, block);
    pb.count[block] = count;
}

/* start, the prefix sums of count. One thread. */
static __global__ void __launch_bounds__(1) scan_blocks(problem pb) {
    int32_t rows = 0;
    for (int block = 0; block < pb.blocks; block++) {
        pb.start[block] = rows;
        rows += pb.count[block];
    }
    pb.start[pb.blocks] = rows;
}

/* list, from all rows again. Grid and block: a thread a block of keys. */
static __global__ void __launch_bounds__(THREADS) store_rows(problem pb) {
    const int block = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (block >= pb.blocks)
        return;
    int32_t next = pb.start[block];
    for (int t = 0; t < pb.T; t++) {
        if (selected(&pb, t, block))
            pb.list[next++] = t;
    }
}

nsa_status inverse_list_0_thread_block(const problem *pb) {
    const unsigned grid = (unsigned)((pb->blocks + THREADS - 1) / THREADS);
    NSA_LAUNCH(count_rows, grid, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("count_rows");
    NSA_LAUNCH(scan_blocks, 1, 1, 0, 0, *pb);
    NSA_LAUNCHED("scan_blocks");
    NSA_LAUNCH(store_rows, grid, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("store_rows");
    return NSA_OK;
}
