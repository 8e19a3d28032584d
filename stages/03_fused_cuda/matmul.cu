/** @file
 *  @brief The matrix product of the compressors, for any M, N and K. */
#include "compress.cuh"

enum {
    MATMUL_TILE = 64, /* rows and columns of C of a CUDA block */
    MATMUL_WARPS = MATMUL_TILE / TILE_ROWS,
    MATMUL_K = 32,               /* step of k */
    MATMUL_LD = MATMUL_TILE + 4, /* 4 more, against bank conflicts */
    MATMUL_THREADS = MATMUL_WARPS * WARP_SIZE,
    QUADS = MATMUL_TILE * MATMUL_K / 4 / MATMUL_THREADS /* float4s of an operand, of one thread */
};

/* Coordinates in a tile [MATMUL_TILE][MATMUL_K] of an operand. */
typedef struct tile_index {
    int i, k;
} tile_index;

/* Where a thread's quad number q begins. Quads run along k if neighbours in k are contiguous in
 * memory, else along i. A warp reads 64 bytes of each of 8 rows, or 256 bytes of each of 2. */
static __device__ __forceinline__ tile_index quad_index(bool along_k, int q) {
    const int e = (int)threadIdx.x + q * MATMUL_THREADS;
    return along_k ? tile_index{e / 4 % MATMUL_TILE, (e / (4 * MATMUL_TILE) * 4 + e % 4) * 4}
                   : tile_index{e % (MATMUL_TILE / 4) * 4, e / (MATMUL_TILE / 4)};
}

/* Load a thread's quads of the elements (i0..,k0..) of an operand [I,K]; zero outside. */
static __device__ __forceinline__ void load_operand(float4 *r_x, matrix x, int64_t i0, int64_t I,
                                                    int64_t k0, int64_t K) {
    const bool along_k = x.col == 1;
    const int64_t step = along_k ? 1 : x.row;
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const tile_index at = quad_index(along_k, q);
        const int64_t i = i0 + at.i, k = k0 + at.k, left = along_k ? K - k : I - i;
        const real *g_x = x.at + i * x.row + k * x.col;
        if (i >= I || k >= K)
            r_x[q] = make_float4(0, 0, 0, 0);
        else if (left >= 4 && step == 1 && (uintptr_t)g_x % sizeof(float4) == 0)
            r_x[q] = load4(g_x);
        else
            r_x[q] = make_float4(g_x[0], left > 1 ? g_x[step] : 0, left > 2 ? g_x[2 * step] : 0,
                                 left > 3 ? g_x[3 * step] : 0);
    }
}

/* Store the quads in s_x [MATMUL_K][MATMUL_LD]: k is the row, as the product wants both A and B. */
static __device__ __forceinline__ void store_operand(float *s_x, bool along_k, const float4 *r_x) {
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const tile_index at = quad_index(along_k, q);
        float *s_quad = s_x + at.k * MATMUL_LD + at.i;
        if (along_k) {
            s_quad[0] = r_x[q].x;
            s_quad[MATMUL_LD] = r_x[q].y;
            s_quad[2 * MATMUL_LD] = r_x[q].z;
            s_quad[3 * MATMUL_LD] = r_x[q].w;
        } else {
            *(float4 *)s_quad = r_x[q];
        }
    }
}

/* C = A B + D, see compress.cuh. Grid: (M / 64, N / 64). Block: 4 warps with 16 rows and 64 columns
 * of C each. Shared: 17 KiB, 32 elements of the summed dimension at a time, while the next 32 are
 * loaded into registers. */
static __global__ void __launch_bounds__(MATMUL_THREADS)
    matmul_kernel(product_size size, matrix a, matrix b, matrix c, matrix d) {
    __shared__ __align__(16) float s_a[MATMUL_K * MATMUL_LD];
    __shared__ __align__(16) float s_b[MATMUL_K * MATMUL_LD];
    const matrix bt = {b.at, b.col, b.row}; /* an operand (n,k), as a is one (m,k) */
    const int64_t m0 = (int64_t)blockIdx.x * MATMUL_TILE, n0 = (int64_t)blockIdx.y * MATMUL_TILE;
    const int row = (int)threadIdx.x / WARP_SIZE * TILE_ROWS + lane_row();
    float4 r_a[QUADS], r_b[QUADS];
    acc_16x64 acc;
    zero_acc_16x64(&acc);
    load_operand(r_a, a, m0, size.M, 0, size.K);
    load_operand(r_b, bt, n0, size.N, 0, size.K);
    for (int64_t k = 0; k < size.K; k += MATMUL_K) {
        __syncthreads(); /* all warps have used the last step's operands */
        store_operand(s_a, a.col == 1, r_a);
        store_operand(s_b, bt.col == 1, r_b);
        __syncthreads();
        if (k + MATMUL_K < size.K) {
            load_operand(r_a, a, m0, size.M, k + MATMUL_K, size.K);
            load_operand(r_b, bt, n0, size.N, k + MATMUL_K, size.K);
        }
        warp_matmul<1>(&acc, s_a + row, MATMUL_LD, s_b + lane_col(), MATMUL_LD, MATMUL_K);
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++) {
            const int64_t m = m0 + row + i, n = n0 + lane_col() + j;
            if (m < size.M && n < size.N)
                c.at[m * c.row + n * c.col] =
                    acc.x[i][j] + (d.at ? d.at[m * d.row + n * d.col] : 0);
        }
    }
}

nsa_status matmul_plus(stage *st, product_size size, matrix a, matrix b, matrix c, matrix d) {
    const dim3 grid((unsigned)((size.M + MATMUL_TILE - 1) / MATMUL_TILE),
                    (unsigned)((size.N + MATMUL_TILE - 1) / MATMUL_TILE));
    NSA_LAUNCH(matmul_kernel, grid, MATMUL_THREADS, 0, st->stream, size, a, b, c, d);
    NSA_LAUNCHED("matmul");
    return NSA_OK;
}
