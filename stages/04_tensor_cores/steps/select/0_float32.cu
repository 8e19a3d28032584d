/** @file
 *  @brief Step 0, float32: what stage 03 does. A warp has the 16 heads of a query as rows and makes
 *  S once more. A lane has 8 heads of a key, and its neighbour the others: a sum over the heads is
 * 8 in the lane and one shuffle. */
#include "problem.cuh"
#include "../float_tile.cuh"

/* Shared memory of a CUDA block, 32 KiB: K^T of a block, and Q^T of each warp. */
typedef struct smem {
    float k[BLOCK * D], q[WARPS][D * G];
} smem;

/* The probabilities of a tile, summed over its rows, to g_p [64]. */
static __device__ __forceinline__ void sum_heads(float *g_p, const float_tile &s,
                                                 const row_stats *g_stats, float scale2) {
#pragma unroll
    for (int j = 0; j < FLOAT_COLS; j++) {
        float sum = 0;
        for (int i = 0; i < FLOAT_ROWS; i++)
            sum = add_p(sum, s.x[i][j], g_stats[float_row() + i], scale2);
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        if (float_row() == 0)
            g_p[float_col() + j] = sum;
    }
}

/* Grid: a CUDA block for each 4 neighbouring queries. Block: a warp for each. */
static __global__ void __launch_bounds__(THREADS) sums_kernel(problem pb) {
    __shared__ __align__(16) smem m;
    const int first = first_query(WARPS), t = min(first + warp_id(), pb.T - 1);
    const int end = last_visible(&pb, first, WARPS);
    float_load_query(m.q[warp_id()], pb.q + query_offset(t));
    for (int b = 0; b * BLOCK < end; b++) {
        float_tile s = {};
        load_shared(m.k, pb.kt + block_offset(b), sizeof m.k, THREADS);
        float_matmul<D>(&s, m.q[warp_id()], G, m.k);
        if (first + warp_id() < pb.T)
            sum_heads(pb.p_group + (int64_t)t * pb.padded + b * BLOCK, s,
                      pb.stats32 + (int64_t)t * G, pb.scale2);
    }
}

nsa_status select_0_float32(const problem *pb) {
    NSA_LAUNCH(sums_kernel, (unsigned)((pb->T + WARPS - 1) / WARPS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("sums");
    return NSA_OK;
}
