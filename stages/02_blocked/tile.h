/** @file
 *  @brief The one matrix product of this stage, in register tiles, and its exponential.
 *
 *  C [M,N] (+)= A [M,K] B [K,N]. A row of B and of C is contiguous, N is a multiple of LANES. A
 * tile of C stays in registers while k runs:
 *
 *             n: VEC lanes | VEC | VEC | VEC      for each k: load NV vectors of B's row k,
 *        m    +------------+-----+-----+-----+     broadcast A[m,k] to all lanes, MR times,
 *     MR rows |    acc     |     |     |     |     MR * NV multiply-adds on NV + MR loads.
 *             +------------+-----+-----+-----+
 */
#ifndef TILE_H
#define TILE_H

#include <stddef.h>
#include <stdint.h>

enum { LANES = 16 }; /* N and all padding are multiples of it; a multiple of every VEC */

/* VEC floats are one register. A tile's accumulators leave registers for a row of B and an element
 * of A: 24 of 32 with AVX-512 and on 64-bit ARM, 12 of 16 with AVX. SSE has too few. */
enum { TILE_ROWS = 6 };
#if defined(__AVX512F__)
enum { VEC = 16, TILE_COLS = 64 };
#elif defined(__AVX__)
enum { VEC = 8, TILE_COLS = 16 };
#else
enum { VEC = 4, TILE_COLS = 16 };
#endif

typedef float vec __attribute__((vector_size(4 * VEC), aligned(4)));

/* A matrix operand: element (i,j) is at[i * row + j * col]. B and C have col = 1. A product
 * prefetches `next`, a matrix like its B that another product soon reads; NULL for none. */
typedef struct matrix {
    float *at;
    int64_t row, col;
    const float *next;
} matrix;

/* A matrix whose rows are `stride` floats apart, and the transpose of such a matrix. */
static inline matrix rows_of(float *at, int64_t stride) {
    return (matrix){at, stride, 1, NULL};
}

static inline matrix columns_of(float *at, int64_t stride) {
    return (matrix){at, 1, stride, NULL};
}

/* The same matrix; a product of which it is B prefetches `next`. */
static inline matrix prefetching(matrix b, const float *next) {
    b.next = next;
    return b;
}

/* C = A B, and C += A B. */
void matmul(int64_t M, int64_t N, int64_t K, matrix a, matrix b, matrix c);
void matmul_add(int64_t M, int64_t N, int64_t K, matrix a, matrix b, matrix c);

/* e^x for x <= 88 (a softmax has x <= 0), as 2^(x log2 e): the nearest whole power n, times a
 * polynomial on [-1/2,1/2] (minimax, relative error 7.5e-8). `shifted` holds n + 127 in its low
 * bits: 23 places to the left they are the exponent of 2^n, which is exact to multiply by. Below
 * 2^-125 the result stays there, small but normal; NaN stays NaN, as it does times any number. The
 * steps are the same in every lane, so equal scores give equal bits. */
static inline float exp_bounded(float x) {
    const float round = 12583039.0f; /* 1.5 * 2^23 + 127: adding it rounds to a whole number */
    const float y = 1.44269504f * x, z = -125.0f > y ? -125.0f : y; /* -125 only if y is no NaN */
    const float shifted = z + round, f = z - (shifted - round);
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
