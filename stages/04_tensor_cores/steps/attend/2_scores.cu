/** @file
 *  @brief Step 2, scores by the matrix unit: S [16 heads,8 keys] += Q [16,16] K^T [16,8] is one
 *  instruction of the warp, where each lane took 64 multiply-adds. Its operands are fragments,
 *  registers spread over the lanes (tile.cuh). The sums come out in other lanes than the lanes' own
 *  tile has them, so they go through shared memory; step 3 ends that. */
#include "problem.cuh"
#include "../float_tile.cuh"

/* Shared memory of a CUDA block, 40 KiB: K or V of a block, and of each warp S and P^T. */
typedef struct smem {
    bf16 block[BLOCK * D];
    float s[WARPS][G * BLOCK], p[WARPS][BLOCK * G];
} smem;

/* Two neighbouring elements of a row: one register of a fragment. */
static __device__ __forceinline__ unsigned load_pair(const bf16 *at) {
    return *(const unsigned *)at;
}

/* A: rows g and g+8 of Q, elements 2t, 2t+1, 2t+8, 2t+9 from k on; g = lane / 4, t = lane % 4. */
static __device__ __forceinline__ frag_a load_rows_a(const bf16 *g_q, int k) {
    const bf16 *at = g_q + lane_row() * D + k + lane_col();
    return {{load_pair(at), load_pair(at + 8 * D), load_pair(at + 8), load_pair(at + 8 * D + 8)}};
}

/* B: column g of K^T, that is row g of K, the same elements. The eight rows lie 128 bytes apart, in
 * the same four banks, so shared memory gives them one after another. */
static __device__ __forceinline__ frag_b load_rows_b(const bf16 *s_k, int k) {
    const bf16 *at = s_k + lane_row() * D + k + lane_col();
    return {{load_pair(at), load_pair(at + 8)}};
}

/* S [16,64] = Q K^T, by way of s_s to where the lanes' own tile has it. */
static __device__ __forceinline__ void add_scores(float_tile *s, const frag_a (&q)[D / TILE_K],
                                                  const bf16 *s_k, float *s_s) {
    acc_tiles<KEY_TILES> acc = {};
#pragma unroll
    for (int k = 0; k < D / TILE_K; k++) {
        for (int n = 0; n < KEY_TILES; n++)
            mma(acc.x[n], q[k], load_rows_b(s_k + n * TILE_N * D, k * TILE_K));
    }
    store_acc(s_s, BLOCK, &acc, TILE_ROWS);
    __syncwarp();
    float_load(s, s_s);
    __syncwarp();
}

/* One block: S [16,64] = Q K^T, online softmax, O [16,D] += P V. */
static __device__ __forceinline__ void attend_block(float_softmax *x, smem *m, const problem *pb,
                                                    const frag_a (&q)[D / TILE_K], int block,
                                                    uint64_t mask) {
    float_tile s;
    load_shared(m->block, pb->k16 + block_offset(block), sizeof m->block, THREADS);
    add_scores(&s, q, m->block, m->s[warp_id()]);
    float_softmax_update(x, &s, mask, pb->scale2);
    float_store_p(m->p[warp_id()], &s);
    load_shared(m->block, pb->v16 + block_offset(block), sizeof m->block, THREADS);
    float_add_keys(&x->o, m->p[warp_id()], m->block, mask);
}

/* Grid: a CUDA block for each 4 neighbouring queries. Block: a warp for each query; those past the
 * end repeat the last query and store nothing. */
static __global__ void __launch_bounds__(THREADS) attend_kernel(problem pb) {
    __shared__ __align__(16) smem m;
    const int first = first_query(WARPS), t = min(first + warp_id(), pb.T - 1);
    float_softmax x;
    frag_a q[D / TILE_K];
    float_softmax_init(&x);
    for (int k = 0; k < D / TILE_K; k++)
        q[k] = load_rows_a(pb.q16 + query_offset(t), k * TILE_K);
    for (int block = 0; block <= first / BLOCK; block++)
        attend_block(&x, &m, &pb, q, block, visible_mask(t, block));
    float_softmax_finalize(&x);
    if (first + warp_id() < pb.T)
        float_store(pb.out + query_offset(t), &x.o);
}

nsa_status attend_2_scores(const problem *pb) {
    NSA_LAUNCH(attend_kernel, (unsigned)((pb->T + WARPS - 1) / WARPS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("attend");
    return NSA_OK;
}
