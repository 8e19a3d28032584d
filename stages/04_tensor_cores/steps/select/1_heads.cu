/** @file
 *  @brief Step 1, the matrix unit, with heads as rows as in attention: S [16 heads,64 keys] = Q
 * K^T. A lane has two heads of a key, rows g and g+8, and eight lanes have the others: a sum over
 * the heads is 3 shuffles, for each of the lane's 16 keys. */
#include "problem.cuh"

/* Shared memory of a CUDA block, 16 KiB: a block of keys, and Q of each warp. */
typedef struct smem {
    bf16 k[BLOCK * D], q[WARPS * TILE_ROWS * D];
} smem;

/* The probabilities of a tile, summed over its rows, to g_p [64]. */
static __device__ __forceinline__ void sum_heads(float *g_p, const acc_tiles<KEY_TILES> &s,
                                                 const row_stats *g_stats, float scale2) {
#pragma unroll
    for (int i = 0; i < 2 * KEY_TILES; i++) { /* key 8 (i / 2) + lane_col() + i % 2 */
        float sum = 0;
        for (int j = 0; j < 2; j++)
            sum = add_p(sum, s.x[i / 2][2 * j + i % 2], g_stats[lane_row() + 8 * j], scale2);
        for (int lane = 4; lane < WARP_SIZE; lane *= 2)
            sum += __shfl_xor_sync(ALL_LANES, sum, lane);
        if (lane_row() == 0)
            g_p[i / 2 * TILE_N + lane_col() + i % 2] = sum;
    }
}

/* Grid: a CUDA block for each 4 neighbouring queries. Block: a warp for each. */
static __global__ void __launch_bounds__(THREADS) sums_kernel(problem pb) {
    __shared__ __align__(16) smem m;
    const int first = first_query(WARPS), t = min(first + warp_id(), pb.T - 1);
    const int end = last_visible(&pb, first, WARPS);
    copy_rows_async<D, TILE_ROWS>(m.q + warp_id() * TILE_ROWS * D, pb.q_mem + query_offset(t),
                                  lane_id(), WARP_SIZE);
    nsa_cp_async_commit();
    nsa_cp_async_wait<0>();
    for (int b = 0; b * BLOCK < end; b++) {
        acc_tiles<KEY_TILES> s[1] = {};
        load_shared(m.k, pb.k_mem + block_offset(b), sizeof m.k, THREADS);
        add_scores<D>(s, m.q + warp_id() * TILE_ROWS * D, m.k);
        if (first + warp_id() < pb.T)
            sum_heads(pb.p_group + (int64_t)t * pb.padded + b * BLOCK, s[0],
                      pb.stats + (int64_t)t * G, pb.scale2);
    }
}

nsa_status select_1_heads(const problem *pb) {
    NSA_LAUNCH(sums_kernel, (unsigned)((pb->T + WARPS - 1) / WARPS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("sums");
    return NSA_OK;
}
