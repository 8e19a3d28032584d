/** @file
 *  @brief Step 2, keys as rows: S^T [64 keys,16 heads] = K Q^T, with K as A and Q as B; both are
 *  where they were. Now a lane has four heads of a key, columns of its two tiles, and three lanes
 *  beside it the others: 2 shuffles, for each of 8 keys. */
#include "problem.cuh"

enum { KEY_ROWS = BLOCK / TILE_ROWS, HEAD_TILES = G / TILE_N };

/* Shared memory of a CUDA block, 16 KiB: a block of keys, and Q of each warp. */
typedef struct smem {
    bf16 k[BLOCK * D], q[WARPS * TILE_ROWS * D];
} smem;

/* The probabilities of a tile, summed over its columns, to g_p [64]. */
static __device__ __forceinline__ void sum_heads(float *g_p,
                                                 const acc_tiles<HEAD_TILES> (&s)[KEY_ROWS],
                                                 const row_stats *g_stats, float scale2) {
#pragma unroll
    for (int i = 0; i < 2 * KEY_ROWS; i++) { /* key 8 i + lane_row() */
        float sum = 0;
        for (int j = 0; j < 2 * HEAD_TILES; j++)
            sum = add_p(sum, s[i / 2].x[j / 2][i % 2 * 2 + j % 2],
                        g_stats[j / 2 * TILE_N + lane_col() + j % 2], scale2);
        for (int lane = 1; lane < 4; lane *= 2)
            sum += __shfl_xor_sync(ALL_LANES, sum, lane);
        if (lane_col() == 0)
            g_p[8 * i + lane_row()] = sum;
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
        acc_tiles<HEAD_TILES> s[KEY_ROWS] = {};
        load_shared(m.k, pb.k_mem + block_offset(b), sizeof m.k, THREADS);
        add_scores<D>(s, m.k, m.q + warp_id() * TILE_ROWS * D);
        if (first + warp_id() < pb.T)
            sum_heads(pb.p_group + (int64_t)t * pb.padded + b * BLOCK, s, pb.stats + (int64_t)t * G,
                      pb.scale2);
    }
}

nsa_status select_2_keys(const problem *pb) {
    NSA_LAUNCH(sums_kernel, (unsigned)((pb->T + WARPS - 1) / WARPS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("sums");
    return NSA_OK;
}
