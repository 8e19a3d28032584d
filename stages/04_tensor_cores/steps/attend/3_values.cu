/** @file
 *  @brief Step 3, values by the matrix unit: O [16 heads,8 columns] += P [16,16] V [16,8]. Two
 * tiles of S side by side lie, rounded, in the very lanes that want them as A, so P stays in
 * registers. The softmax follows the scores: a row is in 4 lanes, where it was in 16 (attend.cuh).
 */
#include "problem.cuh"

/* Shared memory of a CUDA block, 8 KiB: K or V of a block. */
typedef struct smem {
    bf16 block[BLOCK * D];
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

/* B of two tiles of P V, 16 keys from s_v on: here rows of V are the summed dimension, and a lane
 * wants two of them in one register. So ldmatrix loads four matrices of 8 x 8, whose rows the lanes
 * name, lane i row i % 8 of matrix i / 8, and transposes them. */
static __device__ __forceinline__ void load_rows_trans(frag_b (&b)[2], const bf16 *s_v, int n) {
    unsigned x[4];
    nsa_ldmatrix_x4_trans(x, s_v + lane_id() % 16 * D + n + lane_id() / 16 * 8);
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
}

/* S [16,64] = Q K^T. */
static __device__ __forceinline__ void add_scores(acc_tiles<KEY_TILES> *s,
                                                  const frag_a (&q)[D / TILE_K], const bf16 *s_k) {
#pragma unroll
    for (int k = 0; k < D / TILE_K; k++) {
        for (int n = 0; n < KEY_TILES; n++)
            mma(s->x[n], q[k], load_rows_b(s_k + n * TILE_N * D, k * TILE_K));
    }
}

/* O [16,D] += P V. Values that the row does not see are cleared: 0 * NaN is NaN. */
static __device__ __forceinline__ void add_values(acc_tiles<D / TILE_N> *o,
                                                  const acc_tiles<KEY_TILES> &p, const bf16 *s_v,
                                                  uint64_t mask) {
#pragma unroll
    for (int step = 0; step < KEY_STEPS; step++) {
        const frag_a a = a_of_acc(p.x[2 * step], p.x[2 * step + 1]);
        const frag_b visible = visible_halves(keys_of(mask, step));
        for (int n = 0; n < D / TILE_N; n += 2) {
            frag_b b[2];
            load_rows_trans(b, s_v + step * TILE_K * D, n * TILE_N);
            mma(o->x[n], a, masked(b[0], visible));
            mma(o->x[n + 1], a, masked(b[1], visible));
        }
    }
}

/* One block: S [16,64] = Q K^T, online softmax, O [16,D] += P V. */
static __device__ __forceinline__ void attend_block(softmax_state<D> *x, smem *m, const problem *pb,
                                                    const frag_a (&q)[D / TILE_K], int block,
                                                    uint64_t mask) {
    acc_tiles<KEY_TILES> s = {};
    load_shared(m->block, pb->k16 + block_offset(block), sizeof m->block, THREADS);
    add_scores(&s, q, m->block);
    online_softmax_update(x, &s, mask, pb->scale2);
    load_shared(m->block, pb->v16 + block_offset(block), sizeof m->block, THREADS);
    add_values(&x->o, s, m->block, mask);
}

/* Grid: a CUDA block for each 4 neighbouring queries. Block: a warp for each query; those past the
 * end repeat the last query and store nothing. */
static __global__ void __launch_bounds__(THREADS) attend_kernel(problem pb) {
    __shared__ __align__(16) smem m;
    const int first = first_query(WARPS), t = min(first + warp_id(), pb.T - 1);
    softmax_state<D> x;
    frag_a q[D / TILE_K];
    softmax_init(&x);
    for (int k = 0; k < D / TILE_K; k++)
        q[k] = load_rows_a(pb.q16 + query_offset(t), k * TILE_K);
    for (int block = 0; block <= first / BLOCK; block++)
        attend_block(&x, &m, &pb, q, block, visible_mask(t, block));
    softmax_finalize(&x);
    if (first + warp_id() < pb.T)
        store_acc(pb.out + query_offset(t), D, &x.o, TILE_ROWS);
}

nsa_status attend_3_values(const problem *pb) {
    NSA_LAUNCH(attend_kernel, (unsigned)((pb->T + WARPS - 1) / WARPS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("attend");
    return NSA_OK;
}
