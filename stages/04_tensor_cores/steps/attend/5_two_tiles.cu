/** @file
 *  @brief Step 5, two row tiles a warp: a fragment of K or V that is loaded from shared memory is
 *  multiplied twice, with the rows of two neighbouring queries. For 16 elements of the summed
 *  dimension and 64 keys a warp now reads 2 x 0.5 + 2 KiB, 24 clocks, for 16 instructions, 25: the
 *  matrix unit binds, and no more shared memory. This is the stage's attend_cmp. */
#include "problem.cuh"

enum { M = 2, QUERIES = WARPS * M }; /* row tiles of a warp; queries of a CUDA block */

/* Shared memory of a CUDA block, 32 KiB: Q of its queries, a block of keys and one of values. */
typedef struct smem {
    bf16 q[QUERIES * TILE_ROWS * D], k[BLOCK * D], v[BLOCK * D];
} smem;

/* S [16,64] = Q K^T of each row tile. */
static __device__ __forceinline__ void add_scores(acc_tiles<KEY_TILES> (&s)[M], const bf16 *s_q,
                                                  const bf16 *s_k) {
#pragma unroll
    for (int k = 0; k < D; k += TILE_K) {
        const frag_a q[M] = {load_a<D>(s_q, k), load_a<D>(s_q + TILE_ROWS * D, k)};
        for (int n = 0; n < KEY_TILES; n += 2) {
            frag_b b[2];
            load_b<D>(b, s_k + n * TILE_N * D, k);
            for (int i = 0; i < M; i++) {
                mma(s[i].x[n], q[i], b[0]);
                mma(s[i].x[n + 1], q[i], b[1]);
            }
        }
    }
}

/* O [16,D] += P V of each. Values that its row does not see are cleared: 0 * NaN is NaN. */
static __device__ __forceinline__ void add_values(softmax_state<D> (&x)[M],
                                                  const acc_tiles<KEY_TILES> (&p)[M],
                                                  const bf16 *s_v, const uint64_t (&mask)[M]) {
#pragma unroll
    for (int step = 0; step < KEY_STEPS; step++) {
        frag_a a[M];
        frag_b visible[M];
        for (int i = 0; i < M; i++) {
            a[i] = a_of_acc(p[i].x[2 * step], p[i].x[2 * step + 1]);
            visible[i] = visible_halves(keys_of(mask[i], step));
        }
        for (int n = 0; n < D / TILE_N; n += 2) {
            frag_b b[2];
            load_b_trans<D>(b, s_v + step * TILE_K * D, n * TILE_N);
            for (int i = 0; i < M; i++) {
                mma(x[i].o.x[n], a[i], masked(b[0], visible[i]));
                mma(x[i].o.x[n + 1], a[i], masked(b[1], visible[i]));
            }
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
static __device__ __forceinline__ void attend_block(softmax_state<D> (&x)[M], smem *m,
                                                    const problem *pb, int block,
                                                    const uint64_t (&mask)[M], bool more) {
    acc_tiles<KEY_TILES> s[M] = {};
    wait_for_copies();
    copy_block(m->v, pb->v_mem + block_offset(block));
    add_scores(s, m->q + warp_id() * M * TILE_ROWS * D, m->k);
#pragma unroll
    for (int i = 0; i < M; i++)
        online_softmax_update(&x[i], &s[i], mask[i], pb->scale2);
    wait_for_copies();
    if (more)
        copy_block(m->k, pb->k_mem + block_offset(block + 1));
    add_values(x, s, m->v, mask);
}

/* Grid: a CUDA block for each 8 neighbouring queries. Block: a warp for each two; those past the
 * end repeat the last query and store nothing. */
static __global__ void __launch_bounds__(THREADS) attend_kernel(problem pb) {
    __shared__ __align__(16) smem m;
    const int first = first_query(QUERIES), own = first + warp_id() * M;
    softmax_state<D> x[M];
#pragma unroll
    for (int i = 0; i < M; i++) {
        softmax_init(&x[i]);
        copy_rows_async<D, TILE_ROWS>(m.q + (warp_id() * M + i) * TILE_ROWS * D,
                                      pb.q_mem + query_offset(min(own + i, pb.T - 1)), lane_id(),
                                      WARP_SIZE);
    }
    copy_block(m.k, pb.k_mem);
    for (int block = 0; block <= first / BLOCK; block++) {
        const uint64_t mask[M] = {visible_mask(min(own, pb.T - 1), block),
                                  visible_mask(min(own + 1, pb.T - 1), block)};
        attend_block(x, &m, &pb, block, mask, block < first / BLOCK);
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        softmax_finalize(&x[i]);
        if (own + i < pb.T)
            store_acc(pb.out + query_offset(own + i), D, &x[i].o, TILE_ROWS);
    }
}

nsa_status attend_5_two_tiles(const problem *pb) {
    NSA_LAUNCH(attend_kernel, (unsigned)((pb->T + QUERIES - 1) / QUERIES), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("attend");
    return NSA_OK;
}
