/** @file
 *  @brief The chain `backward`: dq by queries, a warp a query, as steps 0 to 2 have it: S and dP
 * are computed once more. No step before 3 changes it. */
#include "float_rows.cuh"

/* Grid: queries. Block: a warp. Shared: Q^T and dO^T, dS^T. */
static __global__ void __launch_bounds__(WARP_SIZE) float32_kernel(problem pb) {
    __shared__ __align__(16) float s_q[2 * D * G], s_ds[BLOCK * G];
    const int t = (int)blockIdx.x;
    float_tile dq = {};
    float_load_rows(s_q, &pb, t);
    for (int block = first_block(&pb, t); block <= t / BLOCK; block++) {
        float_tile p, ds;
        float_recompute(&p, &ds, &pb, s_q, t, block);
        float_store_p(s_ds, &ds);
        float_add_keys(&dq, s_ds, pb.k + block_offset(block), visible_mask(&pb, t, block));
    }
    float_store_scaled(pb.dq + query_offset(t), &dq, pb.scale);
}

/* From S and dP of a query to dS in place of dP. Element i of a lane is row lane_row() + 8 (i / 2),
 * column lane_col() + i % 2 of tile n. */
static __device__ __forceinline__ void make_ds(acc_tiles<KEY_TILES> *dp,
                                               const acc_tiles<KEY_TILES> &s, const problem *pb,
                                               int t, uint64_t mask) {
#pragma unroll
    for (int i = 0; i < 4 * KEY_TILES; i++) {
        const row_terms term = pb->terms[(int64_t)t * G + lane_row() + 8 * (i % 4 / 2)];
        const bool visible = mask >> (i / 4 * TILE_N + lane_col() + i % 2) & 1;
        const float p = exp_score(pb->scale2, s.x[i / 4][i % 4], term.row_max) * term.weight;
        float *x = &dp->x[i / 4][i % 4];
        *x = visible ? p * (*x - term.dgate) : 0;
    }
}

/* Grid: queries. Block: a warp. Straight from global memory, as the stage's selected blocks. */
static __global__ void __launch_bounds__(WARP_SIZE) mma_kernel(problem pb) {
    const int t = (int)blockIdx.x, lane = mem_tile_lane();
    acc_tiles<D / TILE_N> dq = {};
    frags_a<D> q, dout;
    load_global_a(&q, pb.q_mem + query_offset(t) + lane);
    load_global_a(&dout, pb.dout_mem + query_offset(t) + lane);
    for (int block = first_block(&pb, t); block <= t / BLOCK; block++) {
        const uint64_t mask = visible_mask(&pb, t, block);
        acc_tiles<KEY_TILES> s, dp;
        frag_a ds[2][HALF_STEPS];
        half_block<D> k;
        global_scores(&s, q, pb.k_mem + block_offset(block) + lane);
        global_scores(&dp, dout, pb.v_mem + block_offset(block) + lane);
        make_ds(&dp, s, &pb, t, mask);
#pragma unroll
        for (int i = 0; i < KEY_STEPS; i++)
            ds[i / HALF_STEPS][i % HALF_STEPS] = a_of_acc(dp.x[2 * i], dp.x[2 * i + 1]);
        load_half(&k, pb.k_mem + block_offset(block) + lane);
        add_values<D, true>(&dq, ds, &k, pb.k_mem + block_offset(block) + lane, mask);
    }
    store_queries(&pb, t, &dq);
}

nsa_status queries_float32(const problem *pb) {
    NSA_LAUNCH(float32_kernel, (unsigned)pb->T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("dq");
    return NSA_OK;
}

nsa_status queries_mma(const problem *pb) {
    NSA_LAUNCH(mma_kernel, (unsigned)pb->T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("dq");
    return NSA_OK;
}
