/** @file
 *  @brief Step 4, scan: the prefix sums over the blocks by one CUDA block. A thread adds up a run
 *  of blocks, then the runs before its own. */
#include "problem.cuh"

enum { THREADS = 64, SCAN_THREADS = 1024 };

/* Invert one chunk of rows, row after row. The first launch counts; the second, with `list`, stores
 * each row. Grid: chunks. Block: one warp. */
static __global__ void __launch_bounds__(WARP_SIZE) invert_chunk(problem pb, int32_t *list) {
    const int from = (int)blockIdx.x * pb.chunk, to = min(from + pb.chunk, pb.T);
    int32_t *chunk_counts = pb.chunk_counts + (int64_t)blockIdx.x * pb.blocks;
    for (int t = from; t < to; t++) {
        const int32_t *idx = pb.idx + (int64_t)t * pb.n;
        for (int i = lane_id(); i < pb.n && idx[i] >= 0; i += WARP_SIZE) {
            const int32_t rank = chunk_counts[idx[i]]++;
            if (list)
                list[pb.start[idx[i]] + rank] = t;
        }
        __syncwarp(); /* the next row counts after this one */
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

/* start, the prefix sums of count. One CUDA block; each thread has a run of blocks. */
static __global__ void __launch_bounds__(SCAN_THREADS) scan_blocks(problem pb) {
    __shared__ int32_t s_rows[SCAN_THREADS];
    const int run = (pb.blocks + SCAN_THREADS - 1) / SCAN_THREADS;
    const int from = (int)threadIdx.x * run, to = min(from + run, pb.blocks);
    int32_t rows = 0;
    for (int block = from; block < to; block++)
        rows += pb.count[block];
    s_rows[threadIdx.x] = rows;
    __syncthreads();
    rows = 0;
    for (int i = 0; i < (int)threadIdx.x; i++)
        rows += s_rows[i];
    for (int block = from; block < to; block++) {
        pb.start[block] = rows;
        rows += pb.count[block];
    }
    if (threadIdx.x == SCAN_THREADS - 1)
        pb.start[pb.blocks] = rows;
}

nsa_status inverse_list_4_scan(const problem *pb) {
    const unsigned grid = (unsigned)((pb->blocks + THREADS - 1) / THREADS);
    NSA_CUDA(cudaMemsetAsync(pb->chunk_counts, 0,
                             (size_t)pb->chunks * (size_t)pb->blocks * sizeof(int32_t), 0));
    NSA_LAUNCH(invert_chunk, (unsigned)pb->chunks, WARP_SIZE, 0, 0, *pb, (int32_t *)NULL);
    NSA_LAUNCHED("invert_chunk");
    NSA_LAUNCH(scan_chunks, grid, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("scan_chunks");
    NSA_LAUNCH(scan_blocks, 1, SCAN_THREADS, 0, 0, *pb);
    NSA_LAUNCHED("scan_blocks");
    NSA_LAUNCH(invert_chunk, (unsigned)pb->chunks, WARP_SIZE, 0, 0, *pb, pb->list);
    NSA_LAUNCHED("invert_chunk");
    return NSA_OK;
}
