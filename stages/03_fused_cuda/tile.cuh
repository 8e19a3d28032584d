/** @file
 *  @brief The matrix product of this stage: a warp multiplies 16 rows by tiles of 64 columns.
 *
 *      acc [16 rows, 64 columns a tile] += sum_k A^T [k][16 rows] B [k][64 columns a tile]
 *
 *  Rows are the heads of a group, or keys in backward; k is the summed dimension. A lane owns 8
 *  rows and 4 neighbouring columns of each tile:
 *
 *      lane        0   1   2   3  ..  30    31       a step of k:
 *      row group   0   1   0   1  ..   0     1       8 rows of A     2 x 16 bytes
 *      columns    0-3 0-3 4-7 4-7 .. 60-63 60-63     4 columns of B  1 x 16 bytes a tile
 *
 *  and a step is 32 multiply-adds a tile. A comes from shared memory, B from shared or global
 *  memory. Why this arrangement: shared memory delivers 128 bytes a clock, so a load of 16 bytes a
 *  lane takes four clocks, but two if every lane i reads the address of i^1 (here B) or of i^2
 *  (here A). So a step takes 6 clocks of shared memory, while the 128 lanes of a multiprocessor
 *  need 8 clocks for its multiply-adds. A row of B is 256 contiguous bytes. */
#ifndef TILE_CUH
#define TILE_CUH

#include <stdint.h>

enum {
    WARP_SIZE = 32,
    TILE_ROWS = 16, /* rows of a warp's tile */
    TILE_COLS = 64, /* columns of one tile: the keys of a block, or 64 columns of a value */
    LANE_ROWS = 8,  /* a lane's rows and columns of a tile */
    LANE_COLS = 4,
    PREFETCH_DEPTH = 8 /* rows of B that are loaded ahead; DIM_ALIGN is a multiple of it */
};

#define ALL_LANES 0xffffffffu

static __device__ __forceinline__ int lane_id(void) {
    return (int)threadIdx.x % WARP_SIZE;
}

static __device__ __forceinline__ int warp_id(void) {
    return (int)threadIdx.x / WARP_SIZE;
}

/* This lane's part of a tile: rows lane_row()..+7, columns lane_col()..+3. */
static __device__ __forceinline__ int lane_row(void) {
    return (lane_id() & 1) * LANE_ROWS;
}

static __device__ __forceinline__ int lane_col(void) {
    return lane_id() / 2 * LANE_COLS;
}

/* A lane's accumulators of a 16 x 64 tile. */
typedef struct acc_16x64 {
    float x[LANE_ROWS][LANE_COLS];
} acc_16x64;

static __device__ __forceinline__ void zero_acc_16x64(acc_16x64 *acc) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            acc->x[i][j] = 0;
    }
}

static __device__ __forceinline__ float4 load4(const float *at) {
    return *(const float4 *)at;
}

static __device__ __forceinline__ void store4(float *at, float a, float b, float c, float d) {
    *(float4 *)at = make_float4(a, b, c, d);
}

/* acc[i][j] += a[i] b[j]: 32 multiply-adds on 12 numbers. */
static __device__ __forceinline__ void outer_product(acc_16x64 *acc, float4 lo, float4 hi,
                                                     float4 b) {
    const float a[LANE_ROWS] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        acc->x[i][0] += a[i] * b.x;
        acc->x[i][1] += a[i] * b.y;
        acc->x[i][2] += a[i] * b.z;
        acc->x[i][3] += a[i] * b.w;
    }
}

/* C += A B with M = 16, N = 64 N_TILES and K a multiple of PREFETCH_DEPTH: `acc` holds C, a tile
 * for each 64 columns. A is given transposed, [K][16]; `a` is the lane's address in row k = 0 of
 * A^T (base + lane_row()), `b` in row 0 of B (base + lane_col()); lda and ldb are the floats from
 * one row to the next. Rows of B are loaded PREFETCH_DEPTH ahead, or half as far for wide tiles. */
template <int N_TILES>
static __device__ __forceinline__ void warp_matmul(acc_16x64 *acc, const float *a, int lda,
                                                   const float *b, int ldb, int K) {
    const int depth = N_TILES > 2 ? PREFETCH_DEPTH / 2 : PREFETCH_DEPTH; /* registers are few */
    float4 r_b[depth][N_TILES];
#pragma unroll
    for (int u = 0; u < depth; u++) {
#pragma unroll
        for (int n = 0; n < N_TILES; n++)
            r_b[u][n] = load4(b + u * ldb + n * TILE_COLS);
    }
#pragma unroll 2
    for (int k = 0; k < K; k += depth) {
        const bool more = k + depth < K;
        b += depth * ldb;
#pragma unroll
        for (int u = 0; u < depth; u++) {
            const float4 lo = load4(a + u * lda), hi = load4(a + u * lda + 4);
#pragma unroll
            for (int n = 0; n < N_TILES; n++) {
                outer_product(&acc[n], lo, hi, r_b[u][n]);
                if (more)
                    r_b[u][n] = load4(b + u * ldb + n * TILE_COLS);
            }
        }
        a += depth * lda;
    }
}

/* The first `rows` of the lane's rows to memory, ldc floats apart; `c` is the lane's address in row
 * 0 of C (base + lane_row() * ldc + lane_col()). */
static __device__ __forceinline__ void store_acc(float *c, int64_t ldc, const acc_16x64 *acc,
                                                 int rows) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        if (i < rows)
            store4(c + i * ldc, acc->x[i][0], acc->x[i][1], acc->x[i][2], acc->x[i][3]);
    }
}

static __device__ __forceinline__ float warp_reduce_sum(float x) {
#pragma unroll
    for (int lane = 1; lane < WARP_SIZE; lane *= 2)
        x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

/* Reductions over a row: its 64 columns lie in the 16 lanes of one row group. */
static __device__ __forceinline__ float row_reduce_sum(float x) {
#pragma unroll
    for (int lane = 2; lane < WARP_SIZE; lane *= 2)
        x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

static __device__ __forceinline__ float row_reduce_max(float x) {
#pragma unroll
    for (int lane = 2; lane < WARP_SIZE; lane *= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lane));
    return x;
}

/* The probabilities are the A of the second product: P^T [64 keys][16 rows] in shared memory, with
 * its rows permuted (swizzled). Key s lies in row 16 (s % 4) + s / 4, so that lanes that store
 * their four keys meet in few banks. */
static __device__ __forceinline__ int swizzled_offset(int s) {
    return (s % LANE_COLS * (TILE_COLS / LANE_COLS) + s / LANE_COLS) * TILE_ROWS;
}

/* Store a tile [16 rows, 64 keys] as P^T in s_p [64][16], which belongs to the warp. The caller
 * must call __syncwarp() before and after. */
static __device__ __forceinline__ void store_transposed(float *s_p, const acc_16x64 *p) {
    float *at = s_p + swizzled_offset(lane_col()) + lane_row();
#pragma unroll
    for (int j = 0; j < LANE_COLS; j++, at += TILE_COLS / LANE_COLS * TILE_ROWS) {
        store4(at, p->x[0][j], p->x[1][j], p->x[2][j], p->x[3][j]);
        store4(at + 4, p->x[4][j], p->x[5][j], p->x[6][j], p->x[7][j]);
    }
}

/* C += A B with M = 16, N = 64 N_TILES, K = `keys`, a multiple of 4: as warp_matmul(), but A^T is
 * P^T as store_transposed() leaves it, `a` the lane's address in the row of the first key. MASKED:
 * keys whose bit in `mask` is not set are left out, not multiplied by zero: 0 * NaN is NaN. */
template <int N_TILES, bool MASKED>
static __device__ __forceinline__ void matmul_keys(acc_16x64 *acc, const float *a, const float *b,
                                                   int ldb, int keys, uint64_t mask) {
    float4 r_b[LANE_COLS][N_TILES];
#pragma unroll
    for (int u = 0; u < LANE_COLS; u++) {
#pragma unroll
        for (int n = 0; n < N_TILES; n++)
            r_b[u][n] = load4(b + u * ldb + n * TILE_COLS);
    }
#pragma unroll 1
    for (int k = 0; k < keys; k += LANE_COLS, a += TILE_ROWS) {
        const bool more = k + LANE_COLS < keys;
        b += LANE_COLS * ldb;
#pragma unroll
        for (int u = 0; u < LANE_COLS; u++) {
            const float4 lo = load4(a + swizzled_offset(u)), hi = load4(a + swizzled_offset(u) + 4);
            const bool visible = !MASKED || (mask >> (k + u) & 1);
#pragma unroll
            for (int n = 0; n < N_TILES; n++) {
                if (visible)
                    outer_product(&acc[n], lo, hi, r_b[u][n]);
                if (more)
                    r_b[u][n] = load4(b + u * ldb + n * TILE_COLS);
            }
        }
    }
}

/* Some neighbouring keys of a block of 64, both numbers multiples of 4, and which of the block's
 * keys a row sees: bit s for key s. */
typedef struct key_run {
    int first, keys;
    uint64_t mask;
} key_run;

/* C += P B over the keys first..first+keys-1 of a block whose bit in the block's `mask` is set. s_p
 * [64][16] is P^T of the whole block; `b` is the lane's address in the row of key `first`. */
template <int N_TILES>
static __device__ __forceinline__ void matmul_masked(acc_16x64 *acc, const float *s_p,
                                                     const float *b, int ldb, key_run run) {
    const float *a = s_p + swizzled_offset(run.first) + lane_row();
    const uint64_t all = ~(uint64_t)0 >> (TILE_COLS - run.keys), mask = run.mask >> run.first & all;
    if (mask == all)
        matmul_keys<N_TILES, false>(acc, a, b, ldb, run.keys, mask);
    else if (mask)
        matmul_keys<N_TILES, true>(acc, a, b, ldb, run.keys, mask);
}

#endif
