/** @file
 *  @brief Step 0, float32: what stage 03 does. A CUDA block has a block of keys, and goes through
 *  the rows that see it, four queries at a time. Each warp makes gate P and dS of one query; then
 *  each sums dv and dk of 16 of the keys over all four. */
#include "float_rows.cuh"

/* dk and dv of one block of keys. Grid: blocks. Block: a warp for each row tile and each 16 keys.
 * Shared: 32 KiB, for each query its Q^T and dO^T, then gate P and dS in their place. */
static __global__ void __launch_bounds__(THREADS) dkv_kernel(problem pb) {
    __shared__ __align__(16) float s_tiles[TILES][2 * D * G];
    const int block = (int)blockIdx.x, end = end_query(&pb, block), key = warp_id() * TILE_ROWS;
    float *s_tile = s_tiles[warp_id()];
    float_tile dk = {}, dv = {};
    for (int first = block * BLOCK; first < end; first += TILES) {
        if (first + warp_id() < end) {
            float_tile p, ds;
            float_load_rows(s_tile, &pb, first + warp_id());
            float_recompute(&p, &ds, &pb, s_tile, first + warp_id(), block);
            __syncwarp(); /* all lanes have used Q^T and dO^T */
            float_store(s_tile, &p);
            float_store(s_tile + G * BLOCK, &ds);
        }
        __syncthreads();
        for (int i = 0; i < min((int)TILES, end - first); i++) {
            const float *s_p = s_tiles[i] + key, *s_ds = s_p + G * BLOCK;
            float_matmul<G>(&dv, s_p, BLOCK, pb.dout + query_offset(first + i)); /* += P^T dO */
            float_matmul<G>(&dk, s_ds, BLOCK, pb.q + query_offset(first + i));   /* += dS^T Q */
        }
        __syncthreads(); /* all warps have used the tiles */
    }
    float_store(pb.dv + block_offset(block) + key * D, &dv);
    float_store_scaled(pb.dk + block_offset(block) + key * D, &dk, pb.scale);
}

nsa_status backward_0_float32(const problem *pb) {
    NSA_LAUNCH(dkv_kernel, (unsigned)pb->blocks, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("dkv");
    return queries_float32(pb);
}
