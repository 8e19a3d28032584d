/** @file
 *  @brief The matrix product of the compressors, for any M, N and K. */
#include "compress.cuh"

enum {
    MATMUL_TILE = 64, /* rows and columns of C of a CUDA block */
    MATMUL_THREADS = MATMUL_TILE / TILE_ROWS * WARP_SIZE,
    MATMUL_K = 16,                                  /* step of k */
    MATMUL_LD = MATMUL_TILE + 4,                    /* 4 more, against bank conflicts */
    LOADS = MATMUL_TILE * MATMUL_K / MATMUL_THREADS /* floats of an operand, of one thread */
};

/* A thread's elements of an operand's tile [MATMUL_TILE,MATMUL_K]: (i + j*di, k + j*dk), j < LOADS.
 * Its warp reads whole sectors of 32 bytes: if neighbours in k are contiguous in memory, 8 of each
 * of 4 rows, which it stores to 32 banks; else 32 neighbours in i. */
typedef struct tile_part {
    int i, k, di, dk;
} tile_part;

static __device__ __forceinline__ tile_part part_of_thread(const matrix *x) {
    const int thread = (int)threadIdx.x;
    if (x->col == 1)
        return {thread / 8 % 4 + thread / 64 * 4, thread % 8 + thread / 32 % 2 * 8, 8, 0};
    return {thread % MATMUL_TILE, thread / MATMUL_TILE, 0, MATMUL_THREADS / MATMUL_TILE};
}

/* Load the part; x is the operand from the tile's first element on, where [I,K] elements are left.
 * Zero outside. */
static __device__ __forceinline__ void load_operand(float *r_x, const matrix *x, tile_part part,
                                                    int I, int K) {
    const int left = part.di ? I - part.i : K - part.k, stride = part.di + part.dk;
    const bool inside = part.di ? part.k < K : part.i < I;
    const real *g_x = x->at + part.i * x->row + part.k * x->col;
    const int64_t step = part.di * x->row + part.dk * x->col;
#pragma unroll
    for (int j = 0; j < LOADS; j++)
        r_x[j] = inside && j * stride < left ? g_x[j * step] : 0;
}

/* Store the part in s_x [MATMUL_K][MATMUL_LD]: k is the row, as the product wants both A and B. */
static __device__ __forceinline__ void store_operand(float *s_x, tile_part part, const float *r_x) {
#pragma unroll
    for (int j = 0; j < LOADS; j++)
        s_x[(part.k + j * part.dk) * MATMUL_LD + part.i + j * part.di] = r_x[j];
}

/* C = A B + D, see compress.cuh. Grid: M / 64 times N / 64, in x alone, for y ends at 65535 and
 * the mlp may have more hidden units. Block: 4 warps with 16 rows and 64 columns of C each. Shared:
 * 9 KiB, 16 elements of the summed dimension at a time, while the next 16 are loaded into
 * registers. */
static __global__ void __launch_bounds__(MATMUL_THREADS)
    matmul_kernel(product_size size, matrix a, matrix b, matrix c, matrix d) {
    __shared__ __align__(16) float s_a[MATMUL_K * MATMUL_LD];
    __shared__ __align__(16) float s_b[MATMUL_K * MATMUL_LD];
    const unsigned m_tiles = (unsigned)((size.M + MATMUL_TILE - 1) / MATMUL_TILE);
    const int64_t m0 = (int64_t)(blockIdx.x % m_tiles) * MATMUL_TILE;
    const int64_t n0 = (int64_t)(blockIdx.x / m_tiles) * MATMUL_TILE;
    if (size.g_rows && m0 >= *size.g_rows)
        return;
    const int M = (int)(size.M - m0), N = (int)(size.N - n0); /* that are left */
    const int row = (int)threadIdx.x / WARP_SIZE * TILE_ROWS + lane_row();
    matrix bt = {b.at + n0 * b.col, b.col, b.row}; /* an operand (n,k), as a is one (m,k) */
    a.at += m0 * a.row;
    const tile_part part_a = part_of_thread(&a), part_b = part_of_thread(&bt);
    float r_a[LOADS], r_b[LOADS];
    acc_16x64 acc;
    zero_acc_16x64(&acc);
    load_operand(r_a, &a, part_a, M, (int)size.K);
    load_operand(r_b, &bt, part_b, N, (int)size.K);
#pragma unroll 1
    for (int K = (int)size.K; K > 0; K -= MATMUL_K) {
        __syncthreads(); /* all warps have used the last step's operands */
        store_operand(s_a, part_a, r_a);
        store_operand(s_b, part_b, r_b);
        __syncthreads();
        a.at += MATMUL_K * a.col;
        bt.at += MATMUL_K * bt.col;
        load_operand(r_a, &a, part_a, M, K - MATMUL_K); /* nothing in the last step */
        load_operand(r_b, &bt, part_b, N, K - MATMUL_K);
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
    const int64_t m_tiles = (size.M + MATMUL_TILE - 1) / MATMUL_TILE;
    const int64_t n_tiles = (size.N + MATMUL_TILE - 1) / MATMUL_TILE;
    LAUNCH(matmul_kernel, (unsigned)(m_tiles * n_tiles), MATMUL_THREADS, 0, st, size, a, b, c, d);
    return NSA_OK;
}
