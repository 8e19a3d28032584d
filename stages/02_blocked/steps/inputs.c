/** @file
 *  @brief What the chains' problems are made of: memory, random numbers, blocks.
 */
#include "steps.h"

#include "harness/random.h"

#include <stdio.h>
#include <stdlib.h>

static void *allocated[64];
static int n_allocated;

void *allocate(int64_t count, size_t size) {
    const size_t bytes = ((size_t)count * size + 63) / 64 * 64;
    void *at = n_allocated < 64 ? aligned_alloc(64, bytes) : NULL;
    if (!at) {
        fprintf(stderr, "steps: no memory for %zu bytes\n", bytes);
        exit(2);
    }
    allocated[n_allocated++] = at;
    return memset(at, 0, bytes);
}

void release(void) {
    while (n_allocated > 0)
        free(allocated[--n_allocated]);
}

real *draw(int64_t n, uint64_t *random) {
    real *x = allocate(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        while (x[i] == 0)
            x[i] = random_normal(random);
    }
    return x;
}

/* Knuth's algorithm S: block j is taken with chance (still wanted)/(still to come). */
void draw_blocks(int32_t *idx, int64_t count, int64_t t, uint64_t *random) {
    const int64_t own = t / BLOCK;
    int64_t wanted = own < count - 1 ? own : count - 1, n = 0;
    for (int64_t j = 0; j < own; j++) {
        if (random_uniform(random) * (real)(own - j) < (real)wanted && wanted > 0) {
            idx[n++] = (int32_t)j;
            wanted--;
        }
    }
    idx[n++] = (int32_t)own;
    while (n < count)
        idx[n++] = -1;
}

static int64_t whole_blocks(int64_t T) {
    return (T + BLOCK - 1) / BLOCK * BLOCK;
}

real *transposed_blocks(const real *x, int64_t T, int64_t D) {
    real *y = allocate(whole_blocks(T) * D, sizeof *y);
    for (int64_t t = 0; t < whole_blocks(T); t++) {
        for (int64_t c = 0; c < D; c++)
            y[t / BLOCK * BLOCK * D + c * BLOCK + t % BLOCK] = t < T ? x[t * D + c] : NAN;
    }
    return y;
}

real *natural_blocks(const real *x, int64_t T, int64_t D) {
    real *y = allocate(whole_blocks(T) * D, sizeof *y);
    for (int64_t i = 0; i < whole_blocks(T) * D; i++)
        y[i] = i < T * D ? x[i] : NAN;
    return y;
}

double relative_rms(const real *x, const double *reference, int64_t n) {
    double difference = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)x[i] - reference[i];
        difference += d * d;
        all += reference[i] * reference[i];
    }
    return sqrt(difference / all);
}
