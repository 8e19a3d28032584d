/** @file
 *  @brief The one matrix product of this stage: C [M,N] (+)= A [M,K] B [K,N], in register tiles.
 *
 *  A row of B and of C is contiguous, N is a multiple of LANES. A tile of C stays in registers
 * while k runs:
 *
 *             n: 16 lanes | 16 | 16 | 16        for each k: load NV vectors of B's row k,
 *        m    +----------+----+----+----+       broadcast A[m,k] to all lanes, MR times,
 *     MR rows |   acc    |    |    |    |       MR * NV multiply-adds on NV + MR loads.
 *             +----------+----+----+----+
 *
 *  A block that comes from far takes as long as its product, and the processor does not look beyond
 * a block's end. So with each step of k the first tiles ask for what the next product will read
 * there: half of the row by each of two tiles, for more lines at a time than can be under way would
 * make the loads wait; the whole row by a tile that is alone.
 */
#ifndef TILE_H
#define TILE_H

#include <stddef.h>
#include <stdint.h>

enum {
    LANES = 16
}; /* floats of a vector: one AVX-512 register, two of AVX2, four of SSE or NEON */

/* As many accumulators as the registers hold, less NV for B and one for A. */
#ifdef __AVX512F__
enum { TILE_ROWS = 6, TILE_VECS = 4 };
#else
enum { TILE_ROWS = 6, TILE_VECS = 1 };
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));

/* A matrix operand: element (i,j) is at[i * row + j * col]. */
typedef struct operand {
    const float *at;
    int64_t row, col;
} operand;

/* One tile of MR rows and NV vectors; both are constants at every call, so acc is registers. */
static inline __attribute__((always_inline)) void tile(int MR, int NV, int64_t K, operand a,
                                                       const float *b, int64_t ldb, float *c,
                                                       int64_t ldc, int add, const float *next,
                                                       int64_t lines) {
    vec acc[TILE_ROWS][TILE_VECS];
#pragma GCC unroll 6
    for (int m = 0; m < MR; m++) {
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++)
            acc[m][n] = add ? *(const vec *)(c + m * ldc + n * LANES) : (vec){0};
    }
    for (int64_t k = 0; k < K; k++) {
        vec row[TILE_VECS];
        for (int64_t line = 0; line < lines; line++)
            __builtin_prefetch(next + k * ldb + line * LANES, 0, 2);
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++)
            row[n] = *(const vec *)(b + k * ldb + n * LANES);
#pragma GCC unroll 6
        for (int m = 0; m < MR; m++) {
            const float s = a.at[m * a.row + k * a.col];
#pragma GCC unroll 4
            for (int n = 0; n < NV; n++)
                acc[m][n] += s * row[n];
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < MR; m++) {
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++)
            *(vec *)(c + m * ldc + n * LANES) = acc[m][n];
    }
}

/* NV vectors of all M rows: whole tiles, then the rows that are left. Every element of C is the
 * same sum over k in the same order, whichever tile it falls into: equal rows give equal bits. */
static inline __attribute__((always_inline)) void column(int NV, int64_t M, int64_t K, operand a,
                                                         const float *b, int64_t ldb, float *c,
                                                         int64_t ldc, int add, const float *next) {
    const int64_t all = next ? NV : 0, each = M < TILE_ROWS + 4 ? NV : (NV + 1) / 2;
    int64_t prefetched = 0; /* lines of next's rows, by the tiles so far */
    for (int64_t rows; M > 0; M -= rows, a.at += rows * a.row, c += rows * ldc) {
        const int64_t lines = all - prefetched < each ? all - prefetched : each;
        const float *prefetch = next ? next + prefetched * LANES : NULL;
        rows = M >= TILE_ROWS ? TILE_ROWS : M >= 4 ? 4 : 1;
        if (rows == TILE_ROWS)
            tile(TILE_ROWS, NV, K, a, b, ldb, c, ldc, add, prefetch, lines);
        else if (rows == 4)
            tile(4, NV, K, a, b, ldb, c, ldc, add, prefetch, lines);
        else
            tile(1, NV, K, a, b, ldb, c, ldc, add, prefetch, lines);
        prefetched += lines;
    }
}

/* C [M,N] = A B, or += with `add`. */
void matmul(int64_t M, int64_t N, int64_t K, operand a, const float *b, int64_t ldb, float *c,
            int64_t ldc, int add);

/* The same, and asks for the whole columns of `next`, a matrix like B that a product soon reads, to
 * come nearer; NULL for none: near ones cost more to ask for than to read. */
void matmul_prefetch(int64_t M, int64_t N, int64_t K, operand a, const float *b, int64_t ldb,
                     float *c, int64_t ldc, int add, const float *next);

/* 2^x for x <= 64: the nearest whole power n, times a polynomial on [-1/2,1/2] (minimax, relative
 * error 7.5e-8). shifted holds n + 127 in its low bits: 23 places further left nothing else is left
 * of it, and it has become the exponent of 2^n, which is exact to multiply by. Below 2^-125 it
 * stays there, small but normal; NaN stays NaN, as it does times any number. The same steps
 * in every lane, so equal scores give equal bits. */
static inline float exp2_bounded(float x) {
    const float round = 12583039.0f; /* 1.5 * 2^23 + 127: adding it rounds to a whole number */
    x = -125.0f > x ? -125.0f : x;
    const float shifted = x + round, f = x - (shifted - round);
    float p = 1.327647217e-3f, power;
    p = p * f + 9.675541331e-3f;
    p = p * f + 5.550713273e-2f;
    p = p * f + 2.402211972e-1f;
    p = p * f + 6.931469671e-1f;
    p = p * f + 1.0f;
    uint32_t bits;
    __builtin_memcpy(&bits, &shifted, 4);
    bits <<= 23;
    __builtin_memcpy(&power, &bits, 4);
    return p * power;
}

#endif
