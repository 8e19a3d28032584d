/** @file blas.c
 *  @brief The one file that knows whether OpenBLAS is there. Without it nothing calls these
 * products: the dense baseline and the ceiling say blas_missing() and are skipped. */
#include "bench/blas.h"

#include <stddef.h>

#ifdef NSA_WITH_OPENBLAS

#include <cblas.h>
#include <stdio.h>

const char *blas_missing(void) {
    return NULL;
}

const char *blas_name(void) {
    static char text[128];
    snprintf(text, sizeof text, "%.110s", openblas_get_config());
    return text;
}

void blas_threads(int threads) {
    openblas_set_num_threads(threads);
}

static void product(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, const int64_t size[3], float alpha,
                    const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                    int64_t ldc) {
    cblas_sgemm(CblasRowMajor, ta, tb, (blasint)size[0], (blasint)size[1], (blasint)size[2], alpha,
                a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}

#else

typedef enum { CblasNoTrans, CblasTrans } CBLAS_TRANSPOSE;

const char *blas_missing(void) {
    return "built without OpenBLAS";
}

const char *blas_name(void) {
    return blas_missing();
}

void blas_threads(int threads) {
    (void)threads;
}

static void product(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, const int64_t size[3], float alpha,
                    const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                    const float *c, int64_t ldc) {
    (void)ta, (void)tb, (void)size, (void)alpha, (void)a, (void)lda, (void)b, (void)ldb;
    (void)beta, (void)c, (void)ldc;
}

#endif

void blas_nt(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
             const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    product(CblasNoTrans, CblasTrans, (int64_t[]){m, n, k}, alpha, a, lda, b, ldb, beta, c, ldc);
}

void blas_nn(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
             const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    product(CblasNoTrans, CblasNoTrans, (int64_t[]){m, n, k}, alpha, a, lda, b, ldb, beta, c, ldc);
}

void blas_tn(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
             const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    product(CblasTrans, CblasNoTrans, (int64_t[]){m, n, k}, alpha, a, lda, b, ldb, beta, c, ldc);
}
