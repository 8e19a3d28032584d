/** @file
 *  @brief Step 2, scatter in order: sums over the chunks become prefix sums, which say where in a
 *  block's list each chunk begins. So all chunks store at the same time, and lists stay ascending,
 *  which atomic counters would not give. */
#include "problem.cuh"

enum { THREADS = 64 };

/* Invert one chunk of rows, row after row. The first launch counts; the second, with `list`, stores
 * each row. Grid: chunks. Block: one thread. */
static __global__ void __launch_bounds__(1) invert_chunk(problem pb, int32_t *list) {
    const int from = (int)blockIdx.x * pb.chunk, to = min(from + pb.chunk, pb.T);
    int32_t *chunk_counts = pb.chunk_counts + (int64_t)blockIdx.x * pb.blocks;
    for (int t = from; t < to; t++) {
        const int32_t *idx = pb.idx + (int64_t)t * pb.n;
        for (int i = 0; i < pb.n && idx[i] >= 0; i++) {
            const int32_t rank = chunk_counts[idx[i]]++;
            if (list)
                list[pb.start[idx[i]] + rank] = t;
        }
    }
}

/* count, and prefix sums over the chunks: from counts to offsets. Grid and block: a thread a block
 * of keys. */
static __global__ void __launch_bounds__(THREADS) scan_chunks(problem pb) {
    const int block = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (block >= pb.blocks)
        return;
    int32_t count = 0;
    for (int chunk = 0; chunk < pb.chunks; chunk++) {
        int32_t *chunk_count = pb.chunk_counts + (int64_t)chunk * pb.blocks + block;
        const int32_t rows = *chunk_count;
        *chunk_count = count;
        count += rows;
    }
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

nsa_status inverse_list_2_scatter(const problem *pb) {
    const unsigned grid = (unsigned)((pb->blocks + THREADS - 1) / THREADS);
    NSA_CUDA(cudaMemsetAsync(pb->chunk_counts, 0,
                             (size_t)pb->chunks * (size_t)pb->blocks * sizeof(int32_t), 0));
    NSA_LAUNCH(invert_chunk, (unsigned)pb->chunks, 1, 0, 0, *pb, (int32_t *)NULL);
    NSA_LAUNCHED("invert_chunk");
    NSA_LAUNCH(scan_chunks, grid, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("scan_chunks");
    NSA_LAUNCH(scan_blocks, 1, 1, 0, 0, *pb);
    NSA_LAUNCHED("scan_blocks");
    NSA_LAUNCH(invert_chunk, (unsigned)pb->chunks, 1, 0, 0, *pb, pb->list);
    NSA_LAUNCHED("invert_chunk");
    return NSA_OK;
}
