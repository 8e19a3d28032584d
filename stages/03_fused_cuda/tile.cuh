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
    PREFETCH_DEPTH = 4, /* rows of B that are loaded ahead; every k count is a multiple of it */
    PREFETCH_DEPTH_GLOBAL = 8 /* the same if B is in global memory; DIM_ALIGN is a multiple of it */
};

/* This lane's part of a tile: rows lane_row()..+7, columns lane_col()..+3. */
static __device__ __forceinline__ int lane_row(void) {
    return ((int)threadIdx.x & 1) * LANE_ROWS;
}

static __device__ __forceinline__ int lane_col(void) {
    return ((int)threadIdx.x % WARP_SIZE / 2) * LANE_COLS;
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

/* acc[N_TILES] += sum over k < count of A^T's row k times B's. `a` is the lane's address in row 0
 * of A^T (base + lane_row()), `b` in row 0 of B (base + lane_col()); lda and ldb are the floats
 * from one row to the next. DEPTH rows of B are loaded ahead; count is a multiple of DEPTH. */
template <int N_TILES, int DEPTH = PREFETCH_DEPTH>
static __device__ __forceinline__ void warp_matmul(acc_16x64 *acc, const float *a, int lda,
                                                   const float *b, int ldb, int count) {
    float4 r_b[DEPTH][N_TILES];
#pragma unroll
    for (int u = 0; u < DEPTH; u++) {
#pragma unroll
        for (int s = 0; s < N_TILES; s++)
            r_b[u][s] = load4(b + u * ldb + s * TILE_COLS);
    }
#pragma unroll 1
    for (int k = 0; k < count; k += DEPTH) {
        const bool more = k + DEPTH < count;
        b += DEPTH * ldb;
#pragma unroll
        for (int u = 0; u < DEPTH; u++) {
            const float4 lo = load4(a + u * lda), hi = load4(a + u * lda + 4);
#pragma unroll
            for (int s = 0; s < N_TILES; s++) {
                outer_product(&acc[s], lo, hi, r_b[u][s]);
                if (more)
                    r_b[u][s] = load4(b + u * ldb + s * TILE_COLS);
            }
        }
        a += DEPTH * lda;
    }
}

/* Reductions over a row: its 64 columns lie in the 16 lanes of one row group. */
static __device__ __forceinline__ float row_reduce_sum(float x) {
#pragma unroll
    for (int lane = 2; lane < WARP_SIZE; lane *= 2)
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

static __device__ __forceinline__ float row_reduce_max(float x) {
#pragma unroll
    for (int lane = 2; lane < WARP_SIZE; lane *= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

/* The probabilities are the A of the second product: P^T [64 keys][16 rows] in shared memory, with
 * its rows permuted (swizzled). Key s lies in row 16 (s % 4) + s / 4, so that lanes that store
 * their four keys meet in few banks. */
static __device__ __forceinline__ int swizzled_row(int s) {
    return (s % LANE_COLS * (TILE_COLS / LANE_COLS) + s / LANE_COLS) * TILE_ROWS;
}

/* Store a tile [16 rows, 64 keys] as P^T in s_p [64][16], which belongs to the warp. The caller
 * must call __syncwarp() before and after. */
static __device__ __forceinline__ void store_transposed(float *s_p, const acc_16x64 *p) {
    float *at = s_p + swizzled_row(lane_col()) + lane_row();
#pragma unroll
    for (int j = 0; j < LANE_COLS; j++, at += TILE_COLS / LANE_COLS * TILE_ROWS) {
        store4(at, p->x[0][j], p->x[1][j], p->x[2][j], p->x[3][j]);
        store4(at + 4, p->x[4][j], p->x[5][j], p->x[6][j], p->x[7][j]);
    }
}

/* One key: acc[N_TILES] += P^T's row of key s times B's row s; a and b are the lane's addresses
 * there. */
template <int N_TILES>
static __device__ __forceinline__ void matmul_one_key(acc_16x64 *acc, const float *a,
                                                      const float *b) {
    const float4 lo = load4(a), hi = load4(a + 4);
#pragma unroll
    for (int s = 0; s < N_TILES; s++)
        outer_product(&acc[s], lo, hi, load4(b + s * TILE_COLS));
}

/* The same for 4 `quads` keys, the first a multiple of 4: warp_matmul() with P^T as A. */
template <int N_TILES>
static __device__ __forceinline__ void matmul_quads(acc_16x64 *acc, const float *a, const float *b,
                                                    int ldb, int quads) {
    const int key_stride =
        TILE_COLS / LANE_COLS * TILE_ROWS; /* floats from one key's row to the next key's */
    float4 r_b[LANE_COLS][N_TILES];
#pragma unroll
    for (int u = 0; u < LANE_COLS; u++) {
#pragma unroll
        for (int s = 0; s < N_TILES; s++)
            r_b[u][s] = load4(b + u * ldb + s * TILE_COLS);
    }
#pragma unroll 1
    for (int j = 0; j < quads; j++, a += TILE_ROWS) {
        const bool more = j + 1 < quads;
        b += LANE_COLS * ldb;
#pragma unroll
        for (int u = 0; u < LANE_COLS; u++) {
            const float4 lo = load4(a + u * key_stride), hi = load4(a + u * key_stride + 4);
#pragma unroll
            for (int s = 0; s < N_TILES; s++) {
                outer_product(&acc[s], lo, hi, r_b[u][s]);
                if (more)
                    r_b[u][s] = load4(b + u * ldb + s * TILE_COLS);
            }
        }
    }
}

/* acc[N_TILES] += P^T times B, over the keys 4 j0..4 j1-1 of a block whose bit in `mask` is set.
 * The others are left out, not multiplied by zero: 0 * NaN is NaN. s_p is as store_transposed()
 * leaves it; `b` is the lane's address in row 4 j0 of B. */
template <int N_TILES>
static __device__ __forceinline__ void matmul_masked(acc_16x64 *acc, const float *s_p,
                                                     const float *b, int ldb, uint64_t mask, int j0,
                                                     int j1) {
    const int s0 = j0 * LANE_COLS, s1 = j1 * LANE_COLS;
    int s = s0;
    while (s < s1) {
        const uint64_t left = mask >> s, holes = ~left;
        const int skip = left ? __ffsll((long long)left) - 1 : s1; /* to the next key */
        const int end = min(s1, holes ? s + __ffsll((long long)holes) - 1 : (int)TILE_COLS);
        if (skip) {
            s += skip;
        } else if (s % LANE_COLS || end - s < LANE_COLS) {
            matmul_one_key<N_TILES>(acc, s_p + swizzled_row(s) + lane_row(), b + (s - s0) * ldb);
            s++;
        } else { /* the common case: loads run ahead of their use */
            const int quads = (end - s) / LANE_COLS;
            matmul_quads<N_TILES>(acc, s_p + swizzled_row(s) + lane_row(), b + (s - s0) * ldb, ldb,
                                  quads);
            s += quads * LANE_COLS;
        }
    }
}

#endif
