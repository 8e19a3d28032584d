/** @file
 *  @brief Step 1, count: rows are cut into chunks, and every chunk counts its own for all blocks at
 *  the same time as the others. A row's n entries are read once, where every block's thread asked
 * all rows before. */
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

/* Count one chunk of rows, row after row. Grid: chunks. Block: one thread. */
static __global__ void __launch_bounds__(1) invert_chunk(problem pb) {
    const int from = (int)blockIdx.x * pb.chunk, to = min(from + pb.chunk, pb.T);
    int32_t *chunk_counts = pb.chunk_counts + (int64_t)blockIdx.x * pb.blocks;
    for (int t = from; t < to; t++) {
        const int32_t *idx = pb.idx + (int64_t)t * pb.n;
        for (int i = 0; i < pb.n && idx[i] >= 0; i++)
            chunk_counts[idx[i]]++;
    }
}

/* count, the sums over the chunks. Grid and block: a thread a block of keys. */
static __global__ void __launch_bounds__(THREADS) scan_chunks(problem pb) {
    const int block = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (block >= pb.blocks)
        return;
    int32_t count = 0;
    for (int chunk = 0; chunk < pb.chunks; chunk++)
        count += pb.chunk_counts[(int64_t)chunk * pb.blocks + block];
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

nsa_status inverse_list_1_count(const problem *pb) {
    const unsigned grid = (unsigned)((pb->blocks + THREADS - 1) / THREADS);
    NSA_CUDA(cudaMemsetAsync(pb->chunk_counts, 0,
                             (size_t)pb->chunks * (size_t)pb->blocks * sizeof(int32_t), 0));
    NSA_LAUNCH(invert_chunk, (unsigned)pb->chunks, 1, 0, 0, *pb);
    NSA_LAUNCHED("invert_chunk");
    NSA_LAUNCH(scan_chunks, grid, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("scan_chunks");
    NSA_LAUNCH(scan_blocks, 1, 1, 0, 0, *pb);
    NSA_LAUNCHED("scan_blocks");
    NSA_LAUNCH(store_rows, grid, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("store_rows");
    return NSA_OK;
}
