/** @file
 *  @brief Step 3, four queries: S^T [64 keys,64 columns], where column 8 n + c is head 2 n + c % 2
 *  of query c / 2. A lane has the columns 2 (lane % 4) and the next of each tile n: all 16 heads of
 *  one query. The sum needs no other lane, and every fragment of K is multiplied eight times. This
 *  is the product of the stage's importance. */
#include "problem.cuh"

enum { KEY_ROWS = BLOCK / TILE_ROWS, WARP_QUERIES = 4, QUERIES = WARPS * WARP_QUERIES };

/* Shared memory of a CUDA block, 42 KiB: a block of keys; Q of each warp, a row for each column;
 * statistics, 17 for each query, so that four queries' lie in different banks. */
typedef struct smem {
    bf16 k[BLOCK * D], q[WARPS][WARP_QUERIES * G * D];
    row_stats stats[QUERIES][G + 1];
} smem;

/* Head g of the warp's query i to row 8 (g / 2) + 2 i + g % 2; a query past the end is the last. */
static __device__ __forceinline__ void load_columns(smem *m, const problem *pb, int first) {
    bf16 *s_q = m->q[warp_id()];
    for (int k = lane_id(); k < WARP_QUERIES * G * (D / PIECE); k += WARP_SIZE) {
        const int col = k % (D / PIECE) * PIECE, g = k / (D / PIECE) % G, i = k / (D / PIECE) / G;
        const bf16 *g_q = pb->q_mem + query_offset(min(first + i, pb->T - 1));
        *(uint4 *)(s_q + mem_offset(g / 2 * TILE_N + 2 * i + g % 2, col, D)) =
            *(const uint4 *)(g_q + mem_offset(g, col, D));
    }
    for (int k = lane_id(); k < WARP_QUERIES * G; k += WARP_SIZE)
        m->stats[warp_id() * WARP_QUERIES + k / G][k % G] =
            pb->stats[(int64_t)min(first + k / G, pb->T - 1) * G + k % G];
}

/* The probabilities of the lane's query, summed over its heads, to g_p [64]. */
static __device__ __forceinline__ void sum_heads(float *g_p,
                                                 const acc_tiles<KEY_TILES> (&s)[KEY_ROWS],
                                                 const row_stats *s_stats, float scale2) {
#pragma unroll
    for (int i = 0; i < 2 * KEY_ROWS; i++) { /* key 8 i + lane_row() */
        float sum = 0;
        for (int g = 0; g < G; g++)
            sum = add_p(sum, s[i / 2].x[g / 2][i % 2 * 2 + g % 2], s_stats[g], scale2);
        g_p[8 * i + lane_row()] = sum;
    }
}

/* Grid: a CUDA block for each 16 neighbouring queries. Block: a warp for each 4. */
static __global__ void __launch_bounds__(THREADS) sums_kernel(problem pb) {
    __shared__ __align__(16) smem m;
    const int first = first_query(QUERIES), own = warp_id() * WARP_QUERIES + lane_id() % 4;
    const int end = last_visible(&pb, first, QUERIES), t = first + own;
    load_columns(&m, &pb, first + warp_id() * WARP_QUERIES);
    for (int b = 0; b * BLOCK < end; b++) {
        acc_tiles<KEY_TILES> s[KEY_ROWS] = {};
        load_shared(m.k, pb.k_mem + block_offset(b), sizeof m.k, THREADS);
        add_scores<D>(s, m.k, m.q[warp_id()]);
        if (t < pb.T)
            sum_heads(pb.p_group + (int64_t)t * pb.padded + b * BLOCK, s, m.stats[own], pb.scale2);
    }
}

nsa_status select_3_queries(const problem *pb) {
    NSA_LAUNCH(sums_kernel, (unsigned)((pb->T + QUERIES - 1) / QUERIES), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("sums");
    return NSA_OK;
}
