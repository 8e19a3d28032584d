/** @file
 *  @brief Stage 03's tile in short, with which the chains begin: a warp multiplies 16 rows by 64
 *  columns in float32 multiply-adds, and each lane owns 8 rows and 4 neighbouring columns.
 *
 *      acc [16 rows, 64 columns] += sum_k A^T [k][16 rows] B [k][64 columns]
 *
 *  A^T lies in shared memory; B, float32 or bfloat16, too or in global memory. */
#ifndef FLOAT_TILE_CUH
#define FLOAT_TILE_CUH

#include "steps.cuh"

enum { FLOAT_ROWS = 8, FLOAT_COLS = 4 }; /* a lane's rows and columns */

static __device__ __forceinline__ int float_row(void) {
    return lane_id() % 2 * FLOAT_ROWS;
}

static __device__ __forceinline__ int float_col(void) {
    return lane_id() / 2 * FLOAT_COLS;
}

typedef struct float_tile {
    float x[FLOAT_ROWS][FLOAT_COLS];
} float_tile;

static __device__ __forceinline__ float4 load_four(const float *at) {
    return *(const float4 *)at;
}

static __device__ __forceinline__ float4 load_four(const bf16 *at) {
    const uint2 x = *(const uint2 *)at;
    return make_float4(low_half(x.x), high_half(x.x), low_half(x.y), high_half(x.y));
}

/* One element of the summed dimension: 32 multiply-adds on 12 numbers. */
static __device__ __forceinline__ void outer_product(float_tile *acc, const float *s_a, float4 b) {
    const float4 lo = load_four(s_a + float_row()), hi = load_four(s_a + float_row() + 4);
    const float a[FLOAT_ROWS] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
#pragma unroll
    for (int i = 0; i < FLOAT_ROWS; i++) {
        acc->x[i][0] += a[i] * b.x;
        acc->x[i][1] += a[i] * b.y;
        acc->x[i][2] += a[i] * b.z;
        acc->x[i][3] += a[i] * b.w;
    }
}

/* acc += A B over K elements; rows of A^T are `lda` floats apart. */
template <int K, class T>
static __device__ __forceinline__ void float_matmul(float_tile *acc, const float *s_a, int lda,
                                                    const T *b) {
#pragma unroll 8
    for (int k = 0; k < K; k++)
        outer_product(acc, s_a + k * lda, load_four(b + k * D + float_col()));
}

/* The tile's part of the lane out of memory, rows of 64 floats, and back. */
static __device__ __forceinline__ void float_load(float_tile *x, const float *from) {
#pragma unroll
    for (int i = 0; i < FLOAT_ROWS; i++) {
        const float4 four = load_four(from + (float_row() + i) * D + float_col());
        x->x[i][0] = four.x;
        x->x[i][1] = four.y;
        x->x[i][2] = four.z;
        x->x[i][3] = four.w;
    }
}

static __device__ __forceinline__ void float_store(float *to, const float_tile *x) {
#pragma unroll
    for (int i = 0; i < FLOAT_ROWS; i++)
        *(float4 *)(to + (float_row() + i) * D + float_col()) =
            make_float4(x->x[i][0], x->x[i][1], x->x[i][2], x->x[i][3]);
}

/* The G rows of a query, [G,D], as Q^T [D][G], by one warp. */
template <class T>
static __device__ __forceinline__ void float_load_query(float *s_q, const T *g_q) {
    for (int i = lane_id(); i < G * D; i += WARP_SIZE)
        s_q[i % D * G + i / D] = nsa_load_float(g_q + i);
    __syncwarp();
}

/* Key s of P^T lies in row 16 (s % 4) + s / 4 of s_p [64][16]: lanes that store their four keys
 * then meet in few banks. */
static __device__ __forceinline__ int float_p_row(int s) {
    return (s % FLOAT_COLS * (BLOCK / FLOAT_COLS) + s / FLOAT_COLS) * TILE_ROWS;
}

/* P^T of a tile to shared memory of the warp: the A of the next product. */
static __device__ __forceinline__ void float_store_p(float *s_p, const float_tile *p) {
    __syncwarp(); /* the last one is used */
#pragma unroll
    for (int i = 0; i < FLOAT_ROWS * FLOAT_COLS; i++)
        s_p[float_p_row(float_col() + i / FLOAT_ROWS) + float_row() + i % FLOAT_ROWS] =
            p->x[i % FLOAT_ROWS][i / FLOAT_ROWS];
    __syncwarp();
}

/* acc += P B over the keys of `mask`; the others are left out, for 0 * NaN is NaN. */
template <class T>
static __device__ __forceinline__ void float_add_keys(float_tile *acc, const float *s_p, const T *b,
                                                      uint64_t mask) {
#pragma unroll 4
    for (int k = 0; k < BLOCK; k++) {
        if (mask >> k & 1)
            outer_product(acc, s_p + float_p_row(k), load_four(b + k * D + float_col()));
    }
}

/* ------------------------------------------------------------ online softmax */

/* What a row carries from block to block. row_sum: of the lane's own keys, until
 * float_softmax_finalize(). */
typedef struct float_softmax {
    float_tile o;
    float row_max[FLOAT_ROWS], row_sum[FLOAT_ROWS];
} float_softmax;

static __device__ __forceinline__ void float_softmax_init(float_softmax *x) {
    *x = {};
    for (int i = 0; i < FLOAT_ROWS; i++)
        x->row_max[i] = -INFINITY;
}

/* One block of keys: if m and m' are the row maximum before and after it, o = o 2^(m-m') + sum_j
 * 2^(s_j-m') v_j, and the same for the sum. The scores become 2^(s-m'); the product with the values
 * follows. A row is in 16 lanes. */
static __device__ __forceinline__ void float_softmax_update(float_softmax *x, float_tile *s,
                                                            uint64_t mask, float scale2) {
    const uint64_t visible = mask >> float_col();
#pragma unroll
    for (int i = 0; i < FLOAT_ROWS; i++) {
        float new_max = x->row_max[i];
        for (int j = 0; j < FLOAT_COLS; j++) {
            s->x[i][j] = visible >> j & 1 ? scale2 * s->x[i][j] : -INFINITY;
            new_max = fmaxf(new_max, s->x[i][j]);
        }
        for (int lane = 2; lane < WARP_SIZE; lane *= 2)
            new_max = fmaxf(new_max, __shfl_xor_sync(ALL_LANES, new_max, lane));
        const float rescale = exp2f(x->row_max[i] - new_max);
        x->row_max[i] = new_max;
        x->row_sum[i] *= rescale;
        for (int j = 0; j < FLOAT_COLS; j++) {
            s->x[i][j] = exp2f(s->x[i][j] - new_max);
            x->row_sum[i] += s->x[i][j];
            x->o.x[i][j] *= rescale;
        }
    }
}

/* Divide by the sums. */
static __device__ __forceinline__ void float_softmax_finalize(float_softmax *x) {
#pragma unroll
    for (int i = 0; i < FLOAT_ROWS; i++) {
        float total = x->row_sum[i];
        for (int lane = 2; lane < WARP_SIZE; lane *= 2)
            total += __shfl_xor_sync(ALL_LANES, total, lane);
        for (int j = 0; j < FLOAT_COLS; j++)
            x->o.x[i][j] /= total;
    }
}

#endif
