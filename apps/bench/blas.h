/**
 * @file blas.h
 * @brief OpenBLAS, if the program was built with it: three shapes of sgemm.
 */
#ifndef BENCH_BLAS_H
#define BENCH_BLAS_H

#include <stdint.h>

/** @return NULL if OpenBLAS is there, else why not; the first call loads it. */
const char *blas_missing(void);

/** @return OpenBLAS's own description of itself, or blas_missing(). */
const char *blas_name(void);

/** Set OpenBLAS's own threads; if there is no memory for them, blas_missing() says so from then
 * on. */
void blas_threads(int threads);

/** C [m,n] = alpha A [m,k] B^T, B [n,k], + beta C; lda, ldb, ldc are row strides. */
void blas_nt(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
             const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/** C [m,n] = alpha A [m,k] B [k,n] + beta C. */
void blas_nn(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
             const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/** C [m,n] = alpha A^T B, A [k,m], B [k,n], + beta C. */
void blas_tn(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
             const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

#endif
