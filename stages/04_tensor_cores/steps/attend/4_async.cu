/** @file
 *  @brief Step 4, asynchronous copies of mem tiles: rows lie swizzled, in device memory already, so
 *  that the eight rows of an ldmatrix are in different banks and a copy is a copy of bytes
 *  (tile.cuh). cp.async makes it, and no thread waits: while the scores are computed the values are
 *  on their way, and while these are multiplied the next block's keys. */
#include "problem.cuh"

/* Shared memory of a CUDA block, 24 KiB: Q of each warp, a block of keys and one of values. */
typedef struct smem {
    bf16 q[WARPS * TILE_ROWS * D], k[BLOCK * D], v[BLOCK * D];
} smem;

/* S [16,64] = Q K^T. */
static __device__ __forceinline__ void add_scores(acc_tiles<KEY_TILES> *s, const bf16 *s_q,
                                                  const bf16 *s_k) {
#pragma unroll
    for (int k = 0; k < D; k += TILE_K) {
        const frag_a q = load_a<D>(s_q, k);
        for (int n = 0; n < KEY_TILES; n += 2) {
            frag_b b[2];
            load_b<D>(b, s_k + n * TILE_N * D, k);
            mma(s->x[n], q, b[0]);
            mma(s->x[n + 1], q, b[1]);
        }
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
            load_b_trans<D>(b, s_v + step * TILE_K * D, n * TILE_N);
            mma(o->x[n], a, masked(b[0], visible));
            mma(o->x[n + 1], a, masked(b[1], visible));
        }
    }
}

/* Start copying a block of keys or values, by all threads. */
static __device__ __forceinline__ void copy_block(bf16 *s_to, const bf16 *g_from) {
    copy_rows_async<D, BLOCK>(s_to, g_from, (int)threadIdx.x, THREADS);
    nsa_cp_async_commit();
}

/* What has been started has arrived, and what lay there before is used, in all threads. */
static __device__ __forceinline__ void wait_for_copies(void) {
    nsa_cp_async_wait<0>();
    __syncthreads();
}

/* One block: S [16,64] = Q K^T, online softmax, O [16,D] += P V. The block's keys are on their way
 * already; those of the next are sent for, if there is `more`. */
static __device__ __forceinline__ void attend_block(softmax_state<D> *x, smem *m, const problem *pb,
                                                    int block, uint64_t mask, bool more) {
    acc_tiles<KEY_TILES> s = {};
    wait_for_copies();
    copy_block(m->v, pb->v_mem + block_offset(block));
    add_scores(&s, m->q + warp_id() * TILE_ROWS * D, m->k);
    online_softmax_update(x, &s, mask, pb->scale2);
    wait_for_copies();
    if (more)
        copy_block(m->k, pb->k_mem + block_offset(block + 1));
    add_values(&x->o, s, m->v, mask);
}

/* Grid: a CUDA block for each 4 neighbouring queries. Block: a warp for each query; those past the
 * end repeat the last query and store nothing. */
static __global__ void __launch_bounds__(THREADS) attend_kernel(problem pb) {
    __shared__ __align__(16) smem m;
    const int first = first_query(WARPS), t = min(first + warp_id(), pb.T - 1);
    softmax_state<D> x;
    softmax_init(&x);
    copy_rows_async<D, TILE_ROWS>(m.q + warp_id() * TILE_ROWS * D, pb.q_mem + query_offset(t),
                                  lane_id(), WARP_SIZE);
    copy_block(m.k, pb.k_mem);
    for (int block = 0; block <= first / BLOCK; block++)
        attend_block(&x, &m, &pb, block, visible_mask(t, block), block < first / BLOCK);
    softmax_finalize(&x);
    if (first + warp_id() < pb.T)
        store_acc(pb.out + query_offset(t), D, &x.o, TILE_ROWS);
}

nsa_status attend_4_async(const problem *pb) {
    NSA_LAUNCH(attend_kernel, (unsigned)((pb->T + WARPS - 1) / WARPS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("attend");
    return NSA_OK;
}
