/** @file matmul.c
 *  @brief cblas_sgemm() or cblas_dgemm() of OpenBLAS, loaded at run time as the bench does, because
 * it starts threads of its own. Without it the loops below: right, and several times slower. */
#include "train/matmul.h"

#include <dlfcn.h>
#include <stdlib.h>

#ifndef TRAIN_OPENBLAS /* make OPENBLAS=NAME */
#define TRAIN_OPENBLAS "libopenblas.so.0"
#endif
#ifdef TRAIN_DOUBLE
#define GEMM "cblas_dgemm"
#else
#define GEMM "cblas_sgemm"
#endif

enum { ROW_MAJOR = 101, AS_IT_IS = 111, TRANSPOSED = 112 /* as in cblas.h */ };

static struct {
    int searched;
    void (*gemm)(int order, int ta, int tb, int m, int n, int k, real alpha, const real *a, int lda,
                 const real *b, int ldb, real beta, real *c, int ldc);
    void (*set_threads)(int);
} blas;

static void search(void) {
    if (blas.searched++)
        return;
    (void)setenv("OPENBLAS_NUM_THREADS", "1", 1); /* set_threads says how many */
    void *library = dlopen(TRAIN_OPENBLAS, RTLD_NOW | RTLD_LOCAL);
    void *gemm = library ? dlsym(library, GEMM) : NULL;
    void *threads = library ? dlsym(library, "openblas_set_num_threads") : NULL;
    if (!gemm || !threads)
        return;
    *(void **)&blas.gemm = gemm;
    *(void **)&blas.set_threads = threads;
}

const char *matmul_name(void) {
    search();
    return blas.gemm ? "OpenBLAS" : "plain loops (no " TRAIN_OPENBLAS ")";
}

void matmul_threads(int threads) {
    search();
    if (blas.gemm)
        blas.set_threads(threads);
}

/* c[m,n] += a b, one row of c at a time. */
static void loops(const product *p) {
    for (int64_t i = 0; i < p->m; i++) {
        real *c = p->c + i * p->n;
        for (int64_t j = 0; j < p->n && !p->add; j++)
            c[j] = 0;
        for (int64_t l = 0; l < p->k; l++) {
            const real a = p->a_transposed ? p->a[l * p->m + i] : p->a[i * p->k + l];
            const real *b = p->b_transposed ? p->b + l : p->b + l * p->n;
            const int64_t stride = p->b_transposed ? p->k : 1;
            for (int64_t j = 0; j < p->n; j++)
                c[j] += a * b[j * stride];
        }
    }
}

void matmul(const product *p) {
    search();
    if (!blas.gemm) {
        loops(p);
        return;
    }
    blas.gemm(ROW_MAJOR, p->a_transposed ? TRANSPOSED : AS_IT_IS,
              p->b_transposed ? TRANSPOSED : AS_IT_IS, (int)p->m, (int)p->n, (int)p->k, 1, p->a,
              (int)(p->a_transposed ? p->m : p->k), p->b, (int)(p->b_transposed ? p->k : p->n),
              p->add ? 1 : 0, p->c, (int)p->n);
}
