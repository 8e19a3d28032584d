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
 *  Where fragments come from. Shared memory holds rows of 64 elements (128 bytes) or a multiple;
 *  ldmatrix takes eight 16-byte pieces of eight rows, an 8 x 8 matrix, four of them at a time, and
 *  hands every lane its two elements of each; transposed, if rows are the summed dimension. Eight
 *  pieces one below the other would lie in the same banks, so piece c of row r is stored in place c
 *  ^ r % 8 (swizzled). What one warp alone needs comes straight from global memory: see
 *  load_fragments(). */
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
    TILE_COLS = 64, /* rows of memory are padded to multiples of this: 128 bytes */
    PIECE = 8       /* elements of 16 bytes */
};

#define ALL_LANES 0xffffffffu

static __device__ __forceinline__ int lane_id(void) {
    return (int)threadIdx.x % WARP_SIZE;
}

static __device__ __forceinline__ int warp_id(void) {
    return (int)threadIdx.x / WARP_SIZE;
}

/* This lane's part of a tile: rows lane_row() and lane_row() + 8, columns lane_col() and the
 * next. */
static __device__ __forceinline__ int lane_row(void) {
    return lane_id() / 4;
}

static __device__ __forceinline__ int lane_col(void) {
    return lane_id() % 4 * 2;
}

/* N tiles of 16 x 8 side by side: a lane's accumulators. Element i of a tile is row lane_row() + 8
 * (i / 2), column lane_col() + i % 2. */
template <int N> struct acc_tiles {
    float x[N][4];
};

template <int N> static __device__ __forceinline__ void zero_acc(acc_tiles<N> *acc) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            acc->x[n][i] = 0;
    }
}

template <int N> static __device__ __forceinline__ void scale_acc(acc_tiles<N> *acc, float by) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            acc->x[n][i] *= by;
    }
}

/* The first `rows` rows of the tiles to memory, rows `ld` floats apart. */
template <int N>
static __device__ __forceinline__ void store_acc(float *to, int64_t ld, const acc_tiles<N> *acc,
                                                 int rows) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = lane_row() + 8 * i;
#pragma unroll
        for (int n = 0; n < N && row < rows; n++)
            *(float2 *)(to + row * ld + n * TILE_N + lane_col()) =
                make_float2(acc->x[n][2 * i], acc->x[n][2 * i + 1]);
    }
}

/* A and B of one instruction. */
typedef struct frag_a {
    unsigned x[4];
} frag_a;

typedef struct frag_b {
    unsigned x[2];
} frag_b;

static __device__ __forceinline__ void mma(float (&acc)[4], const frag_a &a, const frag_b &b) {
    nsa_mma_m16n8k16_bf16(acc, a.x, b.x);
}

/* Two tiles side by side, [16 rows][16], as the A of a product that sums over their columns. */
static __device__ __forceinline__ frag_a a_of_acc(const float (&left)[4], const float (&right)[4]) {
    return {{nsa_pack_bf16(left[0], left[1]), nsa_pack_bf16(left[2], left[3]),
             nsa_pack_bf16(right[0], right[1]), nsa_pack_bf16(right[2], right[3])}};
}

/* ----------------------------------------------------- from shared memory */

/* Address of piece `piece` of row `row`, in rows of D elements. */
template <int D>
static __device__ __forceinline__ bf16 *swizzled(bf16 *s_rows, int row, int piece) {
    return s_rows + row * D + (piece ^ (row & 7)) * PIECE;
}

/* Start copying `rows` rows of D elements from global memory, by `threads` threads of which this is
 * number `thread`. The caller commits, waits and places the barrier. */
template <int D>
static __device__ __forceinline__ void copy_rows_async(bf16 *s_rows, const bf16 *g_rows, int rows,
                                                       int thread, int threads) {
    enum { PIECES = D / PIECE };
    for (int i = thread; i < rows * PIECES; i += threads)
        nsa_cp_async_16(swizzled<D>(s_rows, i / PIECES, i % PIECES), g_rows + (int64_t)i * PIECE);
}

/* A = s_rows [16][16], 16 elements from column k on. */
template <int D> static __device__ __forceinline__ frag_a load_a(bf16 *s_rows, int k) {
    frag_a a;
    nsa_ldmatrix_x4(a.x, swizzled<D>(s_rows, lane_id() % 16, k / PIECE + lane_id() / 16));
    return a;
}

/* B of two tiles, where the summed dimension is along the rows: B^T = s_rows [16 columns][16]. */
template <int D>
static __device__ __forceinline__ void load_b(frag_b (&b)[2], bf16 *s_rows, int k) {
    unsigned x[4];
    nsa_ldmatrix_x4(x, swizzled<D>(s_rows, lane_id() % 8 + lane_id() / 16 * 8,
                                   k / PIECE + lane_id() / 8 % 2));
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
}

/* B of two tiles, where rows are the summed dimension: B = s_rows [16][16 columns from n on]. */
template <int D>
static __device__ __forceinline__ void load_b_trans(frag_b (&b)[2], bf16 *s_rows, int n) {
    unsigned x[4];
    nsa_ldmatrix_x4_trans(x, swizzled<D>(s_rows, lane_id() % 16, n / PIECE + lane_id() / 16));
    b[0] = {{x[0], x[1]}};
    b[1] = {{x[2], x[3]}};
}

/* ----------------------------------------------------- from global memory */

/* The order of the summed dimension is free, if A and B have the same. So a lane may take 16 bytes
 * of its row, elements 8t..8t+7 of 32, and use them as two fragments: the first four as elements
 * 2t, 2t+1, 2t+8, 2t+9 of one instruction, the others of the next. Nothing passes through shared
 * memory, and a warp waits for no other. */
typedef struct frags_a {
    uint4 lo, hi; /* of rows g and g+8 */
} frags_a;

static __device__ __forceinline__ uint4 load16(const bf16 *at) {
    return *(const uint4 *)at;
}

/* A = g_rows [16][32], rows `ld` apart. */
static __device__ __forceinline__ frags_a load_fragments(const bf16 *g_rows, int ld) {
    const bf16 *at = g_rows + lane_row() * ld + lane_id() % 4 * PIECE;
    return {load16(at), load16(at + 8 * ld)};
}

/* acc += A [16][32] B, B^T = [8][32]: `b` has 16 bytes of row g. */
static __device__ __forceinline__ void mma_32(float (&acc)[4], const frags_a &a, uint4 b) {
    mma(acc, frag_a{{a.lo.x, a.hi.x, a.lo.y, a.hi.y}}, frag_b{{b.x, b.y}});
    mma(acc, frag_a{{a.lo.z, a.hi.z, a.lo.w, a.hi.w}}, frag_b{{b.z, b.w}});
}

/* 16 rows of 64 elements as the B of 8 tiles, where rows are the summed dimension: a lane has 16
 * bytes, elements 8g..8g+7, of rows 2t, 2t+1, 2t+8, 2t+9. Element 8g + i is column g of tile i, so
 * column lane_col() + j of tile i is element 8 (lane_col() + j) + i: a lane's accumulators are 16
 * neighbours. */
typedef struct frags_b {
    uint4 row[4];
} frags_b;

static __device__ __forceinline__ frags_b load_row_fragments(const bf16 *g_rows, int ld) {
    const bf16 *at = g_rows + lane_col() * ld + lane_row() * PIECE;
    return {{load16(at), load16(at + ld), load16(at + 8 * ld), load16(at + 9 * ld)}};
}

/* Word w of 16 bytes; w is a constant. */
static __device__ __forceinline__ unsigned word(const uint4 &x, int w) {
    return w == 0 ? x.x : w == 1 ? x.y : w == 2 ? x.z : x.w;
}

/* B of tile i: elements of two rows are paired. */
static __device__ __forceinline__ frag_b b_of_rows(const frags_b &x, int i) {
    const unsigned halves = i % 2 ? 0x7632 : 0x5410;
    return {{__byte_perm(word(x.row[0], i / 2), word(x.row[1], i / 2), halves),
             __byte_perm(word(x.row[2], i / 2), word(x.row[3], i / 2), halves)}};
}

/* ------------------------------------------------------------ reductions */

static __device__ __forceinline__ float warp_reduce_sum(float x) {
#pragma unroll
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
#pragma unroll
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
