/**
 * @file matmul.h
 * @brief Products of matrices on the CPU: OpenBLAS where it is installed, else plain loops.
 */
#ifndef TRAIN_MATMUL_H
#define TRAIN_MATMUL_H

#include "train/layers.h"

/** c = a b, or c += a b; all row-major. */
typedef struct product {
    int64_t m;        /**< rows of a and c */
    int64_t n;        /**< columns of b and c */
    int64_t k;        /**< columns of a, rows of b */
    const real *a;    /**< [m,k]; [k,m] if a_transposed */
    const real *b;    /**< [k,n]; [n,k] if b_transposed */
    real *c;          /**< [m,n] */
    int a_transposed; /**< a is stored as its transpose */
    int b_transposed; /**< b is stored as its transpose */
    int add;          /**< add to c, which is else overwritten */
} product;

/** Multiply. */
void matmul(const product *p);

/** Set the threads of later products. */
void matmul_threads(int threads);

/** @return "OpenBLAS", or why not. */
const char *matmul_name(void);

#endif
