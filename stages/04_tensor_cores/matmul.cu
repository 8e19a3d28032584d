/** @file
 *  @brief The matrix product of the compressors, for any M, N and K. */
#include "attend.cuh"
#include "compress.cuh"

enum {
    MATMUL_TILE = 64, /* rows and columns of C of a CUDA block */
    MATMUL_THREADS = MATMUL_TILE / TILE_ROWS * WARP_SIZE,
    MATMUL_K = 64,                                  /* step of k */
    LOADS = MATMUL_TILE * MATMUL_K / MATMUL_THREADS /* elements of an operand, of one thread */
};

/* Load a tile of an operand [I,K], where x is its first element, as rows of k, rounded to bfloat16.
 * Zero outside. Lanes of a warp read neighbours in memory, along k or along i. */
static __device__ __forceinline__ void load_operand(bf16 *s_x, const matrix *x, int64_t I,
                                                    int64_t K) {
    const int inner = (int)threadIdx.x % MATMUL_TILE, outer = (int)threadIdx.x / MATMUL_TILE;
    const bool along_k = x->col == 1;
#pragma unroll 8
    for (int j = 0; j < LOADS; j++) {
        const int other = outer + j * (MATMUL_THREADS / MATMUL_TILE);
        const int i = along_k ? other : inner, k = along_k ? inner : other;
        nsa_store_float(s_x + mem_offset(i, k, MATMUL_K),
                        i < I && k < K ? x->at[i * x->row + k * x->col] : 0);
    }
}

/* C = A B + D, see compress.cuh. Grid: M / 64 times N / 64, in x alone, for y ends at 65535 and
 * the mlp may have more hidden units. Block: 4 warps with 16 rows and 64 columns of C each. Shared:
 * 16 KiB, 64 elements of the summed dimension at a time. */
static __global__ void __launch_bounds__(MATMUL_THREADS)
    matmul_kernel(product_size size, matrix a, matrix b, matrix c, matrix d) {
    __shared__ __align__(128) bf16 s_a[MATMUL_TILE * MATMUL_K];
    __shared__ __align__(128) bf16 s_b[MATMUL_TILE * MATMUL_K];
    const unsigned m_tiles = (unsigned)((size.M + MATMUL_TILE - 1) / MATMUL_TILE);
    const int64_t m0 = (int64_t)(blockIdx.x % m_tiles) * MATMUL_TILE;
    const int64_t n0 = (int64_t)(blockIdx.x / m_tiles) * MATMUL_TILE;
    if (size.g_rows && m0 >= *size.g_rows)
        return;
    matrix bt = {b.at + n0 * b.col, b.col, b.row}; /* an operand (n,k), as a is one (m,k) */
    a.at += m0 * a.row;
    acc_tiles<MATMUL_TILE / TILE_N> acc[1] = {};
    for (int64_t K = size.K; K > 0; K -= MATMUL_K) {
        __syncthreads(); /* all warps have used the last step's operands */
        load_operand(s_a, &a, size.M - m0, K);
        load_operand(s_b, &bt, size.N - n0, K);
        __syncthreads();
        add_scores<MATMUL_K>(acc, s_a + warp_id() * TILE_ROWS * MATMUL_K, s_b);
        a.at += MATMUL_K * a.col;
        bt.at += MATMUL_K * bt.col;
    }
    for (int i = 0; i < MATMUL_TILE / TILE_N * 4; i++) {
        const int64_t m = m0 + warp_id() * TILE_ROWS + lane_row() + i % 4 / 2 * 8;
        const int64_t n = n0 + i / 4 * TILE_N + lane_col() + i % 2;
        if (m < size.M && n < size.N)
            c.at[m * c.row + n * c.col] =
                acc[0].x[i / 4][i % 4] + (d.at ? d.at[m * d.row + n * d.col] : 0);
    }
}

nsa_status matmul_plus(stage *st, product_size size, matrix a, matrix b, matrix c, matrix d) {
    const int64_t m_tiles = (size.M + MATMUL_TILE - 1) / MATMUL_TILE;
    const int64_t n_tiles = (size.N + MATMUL_TILE - 1) / MATMUL_TILE;
    LAUNCH(matmul_kernel, (unsigned)(m_tiles * n_tiles), MATMUL_THREADS, 0, st, size, a, b, c, d);
    return NSA_OK;
}
