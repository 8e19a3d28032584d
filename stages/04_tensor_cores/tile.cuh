/** @file
 *  @brief The matrix product of this stage: a warp multiplies 16 rows by 8 columns, 16 elements of
 *  the summed dimension at a time, in one instruction (mma.m16n8k16).
 *
 *      acc [16 rows, 8 columns] += A [16 rows][16] B [16][8 columns]
 *
 *  Rows are the heads of a group, or keys in backward. The operands are bfloat16, two in a register
 *  and spread over the warp as the instruction wants them, a fragment. With g = lane / 4 and t =
 *  lane % 4, a lane holds
 *
 *      A    rows g and g+8, of the summed dimension 2t, 2t+1, 2t+8, 2t+9       4 registers
 *      B    column g, the same elements                                        2 registers
 *      acc  rows g and g+8, columns 2t, 2t+1                                   4 floats
 *
 *  So a row lies in the 4 lanes of one g, and two accumulators side by side, rounded, are the A of
 *  the next product: P needs no way through memory.
 *
 *  Rows of operands lie in memory as mem tiles of 8 rows and 32 columns, 512 bytes on end: four
 *  pieces, 16 bytes each, of every row. What a warp loads at a time is a mem tile, and a copy from
 *  global to shared memory is a copy of bytes. In it piece p of row r stands at place
 *
 *      4 r + (p ^ r / 2)        row 0: 0 1 2 3   row 2: 1 0 3 2   row 4: 2 3 0 1   row 6: 3 2 1 0
 *                               row 1: 0 1 2 3   row 3: 1 0 3 2   row 5: 2 3 0 1   row 7: 3 2 1 0
 *
 *  (swizzled): the eight pieces p of its rows, which one ldmatrix reads, lie in different banks. */
#ifndef TILE_CUH
#define TILE_CUH

#include "common/device_mma.h"

#include <stdint.h>

typedef __nv_bfloat16 bf16; /* what is multiplied */

enum {
    WARP_SIZE = 32,
    TILE_ROWS = 16, /* rows of an mma tile, */
    TILE_N = 8,     /* its columns, */
    TILE_K = 16,    /* and elements of the summed dimension */
    PAD_COLS = 64,  /* rows are padded to multiples of this, or to 32 columns */
    MEM_ROWS = 8,   /* rows of a mem tile, */
    MEM_COLS = 32,  /* and its columns */
    PIECE = 8       /* elements of 16 bytes */
};

#define ALL_LANES 0xffffffffu

static __device__ __forceinline__ int lane_id(void) {
    return (int)threadIdx.x % WARP_SIZE;
}

static __device__ __forceinline__ int warp_id(void) {
    return (int)threadIdx.x / WARP_SIZE;
}

/* This lane's part of an accumulator: rows lane_row() and lane_row() + 8, columns lane_col() and
 * the next. */
static __device__ __forceinline__ int lane_row(void) {
    return lane_id() / 4;
}

static __device__ __forceinline__ int lane_col(void) {
    return lane_id() % 4 * 2;
}

/* N tiles of 16 x 8 side by side: a lane's accumulators. Element i of a tile is row lane_row() + 8
 * (i / 2), column lane_col() + i % 2. They are registers, so loops over them must be unrolled. The
 * compiler does so with short loops to a constant; the others say so. */
template <int N> struct acc_tiles { float x[N][4]; };

template <int N> static __device__ __forceinline__ void zero_acc(acc_tiles<N> *acc) {
    for (int i = 0; i < 4 * N; i++)
        acc->x[i / 4][i % 4] = 0;
}

/* Multiply the lane's rows, each by its own factor. */
template <int N>
static __device__ __forceinline__ void scale_rows(acc_tiles<N> *acc, const float (&by)[2]) {
    for (int i = 0; i < 4 * N; i++)
        acc->x[i / 4][i % 4] *= by[i % 4 / 2];
}

/* The first `rows` rows of the first `tiles` tiles to memory, rows `ld` floats apart. */
template <int N>
static __device__ __forceinline__ void store_acc(float *to, int64_t ld, const acc_tiles<N> *acc,
                                                 int rows, int tiles = N) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = lane_row() + 8 * i;
        float2 *at = (float2 *)(to + row * ld + lane_col());
        for (int n = 0; n < tiles && row < rows; n++)
            at[n * (TILE_N / 2)] = make_float2(acc->x[n][2 * i], acc->x[n][2 * i + 1]);
    }
}

/* A and B of one instruction. */
template <int N> struct fragment { unsigned x[N]; };
typedef fragment<4> frag_a;
typedef fragment<2> frag_b;

static __device__ __forceinline__ void mma(float (&acc)[4], const frag_a &a, const frag_b &b) {
    nsa_mma_m16n8k16_bf16(acc, a.x, b.x);
}

/* The two bfloat16 of a register as floats: the first is in the lower half. */
static __device__ __forceinline__ float low_half(unsigned pair) {
    return __uint_as_float(pair << 16);
}

static __device__ __forceinline__ float high_half(unsigned pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

/* Two tiles side by side, [16 rows][16], as the A of a product that sums over their columns. */
static __device__ __forceinline__ frag_a a_of_acc(const float (&left)[4], const float (&right)[4]) {
    return {{nsa_pack_bf16(left[0], left[1]), nsa_pack_bf16(left[2], left[3]),
             nsa_pack_bf16(right[0], right[1]), nsa_pack_bf16(right[2], right[3])}};
}

/* --------------------------------------------------------------- mem tiles */

/* Where element c of row `row` is in an array of rows of D elements, in mem tiles. */
static __host__ __device__ __forceinline__ int64_t mem_offset(int64_t row, int c, int D) {
    const int r = (int)(row % MEM_ROWS), piece = c / PIECE % 4 ^ r / 2;
    return (row / MEM_ROWS * (D / MEM_COLS) + c / MEM_COLS) * (MEM_ROWS * MEM_COLS) + r * MEM_COLS +
           piece * PIECE + c % PIECE;
}

/* Start copying ROWS rows of D elements, both in mem tiles, by `threads` threads (a power of two)
 * of which this is number `thread`. The caller commits, waits and places the barrier. */
template <int D, int ROWS>
static __device__ __forceinline__ void copy_rows_async(bf16 *s_rows, const bf16 *g_rows, int thread,
                                                       int threads) {
    const int pieces = ROWS * D / PIECE;
    bf16 *s_first = s_rows + thread * PIECE;
    const bf16 *g_first = g_rows + thread * PIECE;
#pragma unroll
    for (int i = 0; i < pieces; i += threads) {
        if (pieces >= threads || thread < pieces) /* narrow heads have less than one a thread */
            nsa_cp_async_16(s_first + i * PIECE, g_first + i * PIECE);
    }
}

/* Of ldmatrix: lane i gives the address of row i % 8 of matrix i / 8. The matrices are twice 8
 * rows by two neighbouring pieces; DOWN: the second is below the first, else beside it. */
template <int D, bool DOWN> static __device__ __forceinline__ int lane_offset(void) {
    const int r = lane_id() % 8, second = lane_id() / 8 % 2, third = lane_id() / 16;
    return (DOWN ? second : third) * MEM_ROWS * D + r * MEM_COLS +
           ((DOWN ? third : second) ^ r / 2) * PIECE;
}

/* Offset of the same in a row's columns from `col` on, a multiple of 16: of a mem tile's four
 * pieces the first two or the last two, whose numbers differ in one bit, and so do their swizzled
 * places.
 */
static __device__ __forceinline__ int at_column(int offset, int col) {
    return (offset ^ col % MEM_COLS) + col / MEM_COLS * (MEM_ROWS * MEM_COLS);
}

/* A = s_rows [16][16], 16 elements from column k on. */
template <int D> static __device__ __forceinline__ frag_a load_a(const bf16 *s_rows, int k) {
    frag_a a;
    nsa_ldmatrix_x4(a.x, s_rows + at_column(lane_offset<D, true>(), k));
    return a;
}

/* B of two tiles, where the summed dimension is along the rows: B^T = s_rows [16 columns][16]. */
template <int D>
static __device__ __forceinline__ void load_b(frag_b (&b)[2], const bf16 *s_rows, int k) {
    unsigned x[4];
    nsa_ldmatrix_x4(x, s_rows + at_column(lane_offset<D, false>(), k));
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
}

/* B of two tiles, where rows are the summed dimension: B = s_rows [16][16 columns from n on]. */
template <int D>
static __device__ __forceinline__ void load_b_trans(frag_b (&b)[2], const bf16 *s_rows, int n) {
    unsigned x[4];
    nsa_ldmatrix_x4_trans(x, s_rows + at_column(lane_offset<D, true>(), n));
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
}

/* ------------------------------------------------- straight from global memory */

/* What one warp alone needs is loaded into registers, a mem tile with one load: lane 4g + t takes
 * piece t of row g, 8 elements. The order of the summed dimension is free if A and B have the same,
 * so these are two fragments: the piece's first four elements as elements 2t, 2t+1, 2t+8, 2t+9 of
 * one instruction, the others of the next. No warp waits for another. */
static __device__ __forceinline__ int mem_tile_lane(void) {
    return lane_row() * MEM_COLS + (lane_id() % 4 ^ lane_row() / 2) * PIECE;
}

/* This lane's piece of the mem tile at row `row`, column `col`, multiples of 8 and 32; `at` points
 * to its piece of the first. Before it there are row / 8 times 8 rows of D elements, and col / 32
 * mem tiles of its own 8 rows. */
template <int D>
static __device__ __forceinline__ uint4 load_mem_tile(const bf16 *at, int row, int col) {
    return *(const uint4 *)(at + row * D + col * MEM_ROWS);
}

/* A = [16][D], for the two instructions of every 32 columns. */
template <int D> struct frags_a { frag_a x[D / TILE_K]; };

template <int D>
static __device__ __forceinline__ void load_global_a(frags_a<D> *a, const bf16 *at) {
    for (int k = 0; k < D / MEM_COLS; k++) {
        const uint4 lo = load_mem_tile<D>(at, 0, k * MEM_COLS),
                    hi = load_mem_tile<D>(at, MEM_ROWS, k * MEM_COLS);
        a->x[2 * k] = frag_a{{lo.x, hi.x, lo.y, hi.y}};
        a->x[2 * k + 1] = frag_a{{lo.z, hi.z, lo.w, hi.w}};
    }
}

/* B of four tiles, where rows are the summed dimension: 16 of them, mem tiles `lo` and `hi`.
 * movmatrix transposes 8 x 8 elements between lanes: word w of all pieces, where column 2t + i is
 * element 8t + 2w + i of the row. So in tile w a lane's accumulators are columns 8t + 2w, 8t + 2w +
 * 1: eight neighbours in four tiles. */
static __device__ __forceinline__ void transpose_mem_tiles(frag_b (&b)[4], const uint4 &lo,
                                                           const uint4 &hi) {
    b[0] = {{nsa_movmatrix_trans(lo.x), nsa_movmatrix_trans(hi.x)}};
    b[1] = {{nsa_movmatrix_trans(lo.y), nsa_movmatrix_trans(hi.y)}};
    b[2] = {{nsa_movmatrix_trans(lo.z), nsa_movmatrix_trans(hi.z)}};
    b[3] = {{nsa_movmatrix_trans(lo.w), nsa_movmatrix_trans(hi.w)}};
}

/* ------------------------------------------------------------ reductions */

static __device__ __forceinline__ float warp_reduce_sum(float x) {
    for (int lane = 1; lane < WARP_SIZE; lane *= 2)
        x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

/* Reductions over a row, which lies in 4 lanes. */
static __device__ __forceinline__ float row_reduce_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

static __device__ __forceinline__ float row_reduce_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

/* ------------------------------------------------------------ masked keys */

/* 0 * NaN is NaN: a key that a row does not see must not even be multiplied by zero where keys are
 * the summed dimension. The bits of a fragment of B that stay: `keys` has a bit for each of its 16
 * rows. */
static __device__ __forceinline__ frag_b visible_halves(unsigned keys) {
    frag_b mask;
    for (int i = 0; i < 2; i++) {
        const unsigned two = keys >> (lane_col() + 8 * i) & 3;
        mask.x[i] = (two & 1 ? 0xffffu : 0) | (two & 2 ? 0xffff0000u : 0);
    }
    return mask;
}

static __device__ __forceinline__ frag_b masked(const frag_b &b, const frag_b &mask) {
    return {{b.x[0] & mask.x[0], b.x[1] & mask.x[1]}};
}

#endif
