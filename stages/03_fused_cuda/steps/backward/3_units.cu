/** @file
 *  @brief Step 3, work units: the first blocks have much longer inverse lists than the last, so
 * long lists are cut into units, a CUDA block each. A second kernel adds the units' sums in their
 * order. */
#include "problem.cuh"

enum { TILES = 4 }; /* row tiles at a time, a warp each; each warp sums 16 of the keys */

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

/* One unit of dk and dv of one block of keys. Grid: units (x), blocks (y). Block: TILES warps.
 * Shared: 32 KiB, for each warp Q^T and dO^T of its row, then gate P and dS in their place. */
static __global__ void __launch_bounds__(TILES *WARP_SIZE) dkv_kernel(problem pb) {
    __shared__ __align__(16) float s_tiles[TILES][2 * D * G];
    const int block = (int)blockIdx.y, from = pb.start[block] + (int)blockIdx.x * pb.unit_rows;
    const int to = min(from + pb.unit_rows, pb.start[block + 1]);
    const int keys = warp_id() * TILE_ROWS;
    float *s_tile = s_tiles[warp_id()];
    float *g_dv = pb.partial + ((int64_t)block * pb.max_units + blockIdx.x) * 2 * BLOCK * D;
    acc_16x64 dk, dv;
    if (from >= to)
        return; /* no such unit */
    zero_acc_16x64(&dk);
    zero_acc_16x64(&dv);
    for (int first = from; first < to; first += TILES) {
        if (first + warp_id() < to) {
            const int t = pb.list[first + warp_id()];
            acc_16x64 p, ds;
            load_rows(s_tile, &pb, t);
            recompute_p(&p, &ds, &pb, s_tile, t, block);
            __syncwarp(); /* all lanes have used Q^T and dO^T */
            store_rows(s_tile, &p);
            store_rows(s_tile + G * BLOCK, &ds);
        }
        __syncthreads();
        for (int i = 0; i < min(TILES, to - first); i++) {
            const int64_t row = (int64_t)pb.list[first + i] * G * D + lane_col();
            const float *s_p = s_tiles[i] + keys + lane_row(), *s_ds = s_p + G * BLOCK;
            warp_matmul<1>(&dv, s_p, BLOCK, pb.dout + row, D, G); /* += P^T dO */
            warp_matmul<1>(&dk, s_ds, BLOCK, pb.q + row, D, G);   /* += dS^T Q */
        }
        __syncthreads(); /* all warps have used the tiles */
    }
    store_rows(g_dv + keys * D, &dv);
    store_rows(g_dv + (BLOCK + keys) * D, &dk);
}

/* dk and dv of a block: sums over its units, in their order. Grid: blocks. */
static __global__ void __launch_bounds__(256) reduce_partials(problem pb) {
    const int block = (int)blockIdx.x, rows = pb.start[block + 1] - pb.start[block];
    const int units = (rows + pb.unit_rows - 1) / pb.unit_rows;
    for (int i = (int)threadIdx.x; i < 2 * BLOCK * D; i += 256) {
        const float *g_unit = pb.partial + (int64_t)block * pb.max_units * 2 * BLOCK * D + i;
        float total = 0;
        for (int unit = 0; unit < units; unit++)
            total += g_unit[(int64_t)unit * 2 * BLOCK * D];
        if (i < BLOCK * D)
            pb.dv[(int64_t)block * BLOCK * D + i] = total;
        else
            pb.dk[(int64_t)block * BLOCK * D + i - BLOCK * D] = total;
    }
}

nsa_status backward_3_units(const problem *pb) {
    NSA_LAUNCH(dq_kernel, (unsigned)pb->T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("dq");
    NSA_LAUNCH(dkv_kernel, dim3((unsigned)pb->max_units, (unsigned)pb->blocks), TILES * WARP_SIZE,
               0, 0, *pb);
    NSA_LAUNCHED("dkv");
    NSA_LAUNCH(reduce_partials, (unsigned)pb->blocks, 256, 0, 0, *pb);
    NSA_LAUNCHED("reduce_partials");
    return NSA_OK;
}
