/** @file
 *  @brief Step 1, dq apart: one kernel makes dq, another dk and dv, and both make P and dS: seven
 *  products for five. So the second may go another way than by queries. */
#include "problem.cuh"

/* Row tiles q and dout [G,D] of row t as Q^T and dO^T [D][G], one behind the other. */
static __device__ __forceinline__ void load_rows(float *s_q, const problem *pb, int t) {
    for (int i = lane_id(); i < G * D; i += WARP_SIZE) {
        s_q[i % D * G + i / D] = pb->q[(int64_t)t * G * D + i];
        s_q[(D + i % D) * G + i / D] = pb->dout[(int64_t)t * G * D + i];
    }
    __syncwarp();
}

/* From S to gate P, and from dP to dS, in place; 0 where a key is not visible. */
static __device__ __forceinline__ void softmax_backward(acc_16x64 *s, acc_16x64 *dp,
                                                        const problem *pb, int t, uint64_t mask) {
    const unsigned visible = (unsigned)(mask >> lane_col());
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const row_terms term = pb->terms[t * G + lane_row() + i];
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++) {
            const float p =
                exp2f(pb->scale2 * (s->x[i][j] - term.row_max)) * term.inv_sum * term.gate;
            s->x[i][j] = visible >> j & 1 ? p : 0;
            dp->x[i][j] = visible >> j & 1 ? pb->scale * p * (dp->x[i][j] - term.dgate) : 0;
        }
    }
}

/* S = Q K^T and dP = dO V^T [16,64] of row t against a block; they become gate P and dS. */
static __device__ __forceinline__ void recompute_p(acc_16x64 *p, acc_16x64 *ds, const problem *pb,
                                                   const float *s_q, int t, int block) {
    const int64_t at = (int64_t)block * D * BLOCK + lane_col();
    zero_acc_16x64(p);
    zero_acc_16x64(ds);
    warp_matmul<1>(p, s_q + lane_row(), G, pb->kt + at, BLOCK, D);
    warp_matmul<1>(ds, s_q + D * G + lane_row(), G, pb->vt + at, BLOCK, D);
    softmax_backward(p, ds, pb, t, visible_mask(t, block));
}

/* Store a tile [16 rows,64]. */
static __device__ __forceinline__ void store_rows(float *to, const acc_16x64 *x) {
    store_acc(to + lane_row() * TILE_COLS + lane_col(), TILE_COLS, x, LANE_ROWS);
}

/* to [64 keys,D] += P^T X, for dv or dk of a block: P or dS [16,64] in shared memory, X = dO or Q
 * [16,D]. */
static __device__ __forceinline__ void add_atomic(float *g_to, const float *s_p, const float *g_x) {
    for (int keys = 0; keys < BLOCK; keys += TILE_ROWS) {
        acc_16x64 acc;
        zero_acc_16x64(&acc);
        warp_matmul<1>(&acc, s_p + keys + lane_row(), BLOCK, g_x + lane_col(), D, G);
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
            for (int j = 0; j < LANE_COLS; j++)
                atomicAdd(g_to + (keys + lane_row() + i) * D + lane_col() + j, acc.x[i][j]);
        }
    }
}

/* dq of one row. Grid: rows. Block: a warp. Shared: Q^T and dO^T, dS^T. */
static __global__ void __launch_bounds__(WARP_SIZE) dq_kernel(problem pb) {
    __shared__ __align__(16) float s_q[2 * D * G], s_ds[BLOCK * G];
    const int t = (int)blockIdx.x;
    const int64_t row = (int64_t)t * G * D;
    acc_16x64 dq;
    zero_acc_16x64(&dq);
    load_rows(s_q, &pb, t);
    for (int i = 0; i < pb.n && pb.idx[t * pb.n + i] >= 0; i++) {
        const int block = pb.idx[t * pb.n + i];
        const int64_t at = (int64_t)block * BLOCK * D;
        acc_16x64 p, ds;
        recompute_p(&p, &ds, &pb, s_q, t, block);
        __syncwarp(); /* all lanes have used the last block's */
        store_transposed(s_ds, &ds);
        __syncwarp();
        matmul_masked<1>(&dq, s_ds, pb.k + at + lane_col(), D,
                         key_run{0, BLOCK, visible_mask(t, block)});
    }
    store_rows(pb.dq + row, &dq);
}

/* One row's share of dk and dv. Grid: rows. Block: a warp. Shared: Q^T and dO^T, gate P, dS. */
static __global__ void __launch_bounds__(WARP_SIZE) dkv_kernel(problem pb) {
    __shared__ __align__(16) float s_q[2 * D * G], s_p[G * BLOCK], s_ds[G * BLOCK];
    const int t = (int)blockIdx.x;
    const int64_t row = (int64_t)t * G * D;
    load_rows(s_q, &pb, t);
    for (int i = 0; i < pb.n && pb.idx[t * pb.n + i] >= 0; i++) {
        const int block = pb.idx[t * pb.n + i];
        const int64_t at = (int64_t)block * BLOCK * D;
        acc_16x64 p, ds;
        recompute_p(&p, &ds, &pb, s_q, t, block);
        __syncwarp(); /* all lanes have used the last block's */
        store_rows(s_p, &p);
        store_rows(s_ds, &ds);
        __syncwarp();
        add_atomic(pb.dv + at, s_p, pb.dout + row);
        add_atomic(pb.dk + at, s_ds, pb.q + row);
    }
}

nsa_status backward_1_dq(const problem *pb) {
    const size_t bytes = (size_t)pb->blocks * BLOCK * D * sizeof(float);
    NSA_CUDA(cudaMemsetAsync(pb->dk, 0, bytes, 0));
    NSA_CUDA(cudaMemsetAsync(pb->dv, 0, bytes, 0));
    NSA_LAUNCH(dq_kernel, (unsigned)pb->T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("dq");
    NSA_LAUNCH(dkv_kernel, (unsigned)pb->T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("dkv");
    return NSA_OK;
}
