/** @file blas.c
 *  @brief The only file that uses OpenBLAS. It is loaded when a bench first needs it, because it
 * starts threads of its own. Without it the dense baseline and the sgemm ceiling report
 * blas_missing() and are skipped. */
#include "bench/blas.h"

#include <stddef.h>

#ifdef NSA_WITH_OPENBLAS

#include <cblas.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { BYTES_PER_THREAD = 256 << 20 /* a heap of its own, and a buffer of 128 MiB in it */ };

/* The functions used, with the types of cblas.h. */
static struct {
    __typeof__(cblas_sgemm) *sgemm;
    __typeof__(openblas_set_num_threads) *set_threads;
    __typeof__(openblas_get_config) *get_config;
    char missing[160];
} blas;

/* ISO C has no cast from object to function pointer: copy its bits. */
static int find(void *library, const char *name, void *function) {
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

/* Load it, for good. Left alone it starts a thread for every core, and hangs if one cannot be
 * created; blas_threads() sets the number instead. */
static void load(void) {
    (void)setenv("OPENBLAS_NUM_THREADS", "1", 1);
    void *library = dlopen(NSA_OPENBLAS, RTLD_NOW | RTLD_LOCAL);
    if (!library || !find(library, "cblas_sgemm", (void *)&blas.sgemm) ||
        !find(library, "openblas_set_num_threads", (void *)&blas.set_threads) ||
        !find(library, "openblas_get_config", (void *)&blas.get_config))
        snprintf(blas.missing, sizeof blas.missing, "no OpenBLAS: %.140s", dlerror());
}

const char *blas_missing(void) {
    static int searched;
    if (!searched)
        load();
    searched = 1;
    return blas.missing[0] ? blas.missing : NULL;
}

const char *blas_name(void) {
    static char text[128];
    const char *missing = blas_missing();
    snprintf(text, sizeof text, "%.110s", missing ? missing : blas.get_config());
    return text;
}

/* An OpenBLAS thread that finds no memory for its buffer retries forever, so check first. */
static int has_address_space(int threads) {
    const size_t bytes = (size_t)threads * BYTES_PER_THREAD;
    void *trial = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return trial != MAP_FAILED && !munmap(trial, bytes);
}

void blas_threads(int threads) {
    if (blas_missing())
        return;
    if (has_address_space(threads))
        blas.set_threads(threads);
    else
        snprintf(blas.missing, sizeof blas.missing,
                 "no OpenBLAS: %d threads of it need %d MiB of address space each; ulimit -v?",
                 threads, BYTES_PER_THREAD >> 20);
}

static void product(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, const int64_t size[3], float alpha,
                    const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                    int64_t ldc) {
    blas.sgemm(CblasRowMajor, ta, tb, (blasint)size[0], (blasint)size[1], (blasint)size[2], alpha,
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
