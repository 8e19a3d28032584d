/** @file
 *  @brief Step 1, keys as rows: each warp has 16 keys as the rows of matrix tiles, and makes of
 * each query S^T [16 keys,16 heads] = K Q^T and dP^T = V dO^T. Rounded, these become P^T and dS^T
 * as A where they are, for dV [16 keys,D] += P^T dO and dK += dS^T Q. */
#include "problem.cuh"

/* Shared memory of a CUDA block, 33 KiB. */
typedef struct smem {
    bf16 k[BLOCK * D], v[BLOCK * D];
    row_step step;
} smem;

/* From S^T of a row tile, 16 keys by 16 heads, to gate P^T. Element i of a lane is key lane_row() +
 * 8 (i % 4 / 2), head 8 (i / 4) + lane_col() + i % 2. */
static __device__ __forceinline__ frag_a make_p(acc_tiles<2> *s, const row_terms *terms,
                                                float scale2, unsigned mask) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const row_terms &term = terms[i / 4 * TILE_N + lane_col() + i % 2];
        const bool visible = mask >> (lane_row() + i % 4 / 2 * 8) & 1;
        float *x = &s->x[i / 4][i % 4];
        *x = visible ? exp_score(scale2, *x, term.row_max) * term.weight : 0;
    }
    return a_of_acc(s->x[0], s->x[1]);
}

/* From dP^T and gate P^T, rounded, to dS^T. */
static __device__ __forceinline__ frag_a make_ds(acc_tiles<2> *dp, const frag_a &p,
                                                 const row_terms *terms, unsigned mask) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const row_terms &term = terms[i / 4 * TILE_N + lane_col() + i % 2];
        const bool visible = mask >> (lane_row() + i % 4 / 2 * 8) & 1;
        const unsigned two = p.x[i / 4 * 2 + i % 4 / 2];
        float *x = &dp->x[i / 4][i % 4];
        *x = visible ? (i % 2 ? high_half(two) : low_half(two)) * (*x - term.dgate) : 0;
    }
    return a_of_acc(dp->x[0], dp->x[1]);
}

/* Row tile i of the step: to dv and dk of the warp's 16 keys. */
static __device__ __forceinline__ void add_row_tile(acc_tiles<D / TILE_N> (&dv)[1],
                                                    acc_tiles<D / TILE_N> (&dk)[1], const smem *m,
                                                    const problem *pb, int i, uint64_t mask) {
    const int key = warp_id() * TILE_ROWS;
    const bf16 *s_q = m->step.q + i * TILE_ROWS * D, *s_dout = m->step.dout + i * TILE_ROWS * D;
    const row_terms *terms = m->step.terms + i * TILE_ROWS;
    acc_tiles<2> s[1] = {}, dp[1] = {};
    frag_a p[1];
    add_scores<D>(s, m->k + key * D, s_q);
    add_scores<D>(dp, m->v + key * D, s_dout);
    p[0] = make_p(&s[0], terms, pb->scale2, (unsigned)(mask >> key));
    add_rows(dv, p, s_dout);
    p[0] = make_ds(&dp[0], p[0], terms, (unsigned)(mask >> key));
    add_rows(dk, p, s_q);
}

/* dk and dv of one block of keys. Grid: blocks. Block: a warp for each 16 keys. */
static __global__ void __launch_bounds__(THREADS) dkv_kernel(problem pb) {
    __shared__ __align__(16) smem m;
    const int block = (int)blockIdx.x, end = end_query(&pb, block), key = warp_id() * TILE_ROWS;
    acc_tiles<D / TILE_N> dk[1] = {}, dv[1] = {};
    copy_rows_async<D, BLOCK>(m.k, pb.k_mem + block_offset(block), (int)threadIdx.x, THREADS);
    copy_rows_async<D, BLOCK>(m.v, pb.v_mem + block_offset(block), (int)threadIdx.x, THREADS);
    for (int first = block * BLOCK; first < end; first += TILES) {
        copy_step(&m.step, &pb, first, min((int)TILES, end - first));
        wait_for_copies();
        for (int i = 0; i < min((int)TILES, end - first); i++)
            add_row_tile(dv, dk, &m, &pb, i, visible_mask(&pb, first + i, block));
        __syncthreads(); /* all warps have used the row tiles */
    }
    scale_rows(&dk[0], {pb.scale, pb.scale});
    store_acc(pb.dv + block_offset(block) + key * D, D, &dv[0], TILE_ROWS);
    store_acc(pb.dk + block_offset(block) + key * D, D, &dk[0], TILE_ROWS);
}

nsa_status backward_1_keys(const problem *pb) {
    NSA_LAUNCH(dkv_kernel, (unsigned)pb->blocks, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("dkv");
    return queries_mma(pb);
}
