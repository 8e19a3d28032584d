/** @file
 *  @brief What the chains' problems are made of: memory, random numbers, blocks. */
#include "steps.cuh"

#include "harness/random.h"

#include <stdio.h>
#include <stdlib.h>
enum { MAX_ARRAYS = 64 };

/* The memory of one chain: on the host, or on the device, there with what steps write. */
static struct array {
    void *at;
    size_t bytes;
    bool on_device, output;
} arrays[MAX_ARRAYS];
static int n_arrays;

static void *keep(void *at, size_t bytes, bool on_device, bool output) {
    if (!at || n_arrays == MAX_ARRAYS) {
        fprintf(stderr, "steps: no memory for %zu bytes\n", bytes);
        exit(2);
    }
    arrays[n_arrays++] = {at, bytes, on_device, output};
    return at;
}

static void *device_memory(int64_t count, size_t size, bool output) {
    void *at = NULL;
    const size_t bytes = (size_t)count * size;
    if (cudaMalloc(&at, bytes) != cudaSuccess)
        at = NULL;
    return keep(at, bytes, true, output);
}

void *allocate(int64_t count, size_t size) {
    return keep(calloc((size_t)count, size), (size_t)count * size, false, false);
}

void *copy_to_device(const void *from, int64_t count, size_t size) {
    void *at = device_memory(count, size, false);
    if (cudaMemcpy(at, from, (size_t)count * size, cudaMemcpyHostToDevice) != cudaSuccess) {
        fprintf(stderr, "steps: a copy to the device failed\n");
        exit(2);
    }
    return at;
}

void *device_output(int64_t count, size_t size) {
    return device_memory(count, size, true);
}

/* On a GPU this also leaves little else in the caches. */
nsa_status poison(void) {
    for (int i = 0; i < n_arrays; i++) {
        if (arrays[i].output)
            NSA_CUDA(cudaMemsetAsync(arrays[i].at, 0xff, arrays[i].bytes, 0));
    }
    return NSA_OK;
}

void release(void) {
    while (n_arrays > 0) {
        const struct array *x = &arrays[--n_arrays];
        if (x->on_device)
            (void)cudaFree(x->at);
        else
            free(x->at);
    }
}

float *draw(int64_t n, uint64_t *random) {
    float *x = (float *)allocate(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        while (x[i] == 0)
            x[i] = random_normal(random);
    }
    return x;
}

/* Knuth's algorithm S: block j is taken with probability (still needed)/(still to come). */
void draw_blocks(int32_t *idx, int count, int t, uint64_t *random) {
    const int own = t / BLOCK;
    int left = own < count - 1 ? own : count - 1, n = 0;
    for (int j = 0; j < own; j++) {
        if (random_uniform(random) * (float)(own - j) < (float)left && left > 0) {
            idx[n++] = j;
            left--;
        }
    }
    idx[n++] = own;
    while (n < count)
        idx[n++] = -1;
}

static float *blocks_of(const float *x, int64_t T, bool transposed) {
    const int64_t padded = (T + BLOCK - 1) / BLOCK * BLOCK;
    float *y = (float *)calloc((size_t)(padded * D), sizeof *y), *at;
    for (int64_t t = 0; t < padded && y; t++) {
        float *block = y + t / BLOCK * BLOCK * D;
        for (int64_t c = 0; c < D; c++)
            block[transposed ? c * BLOCK + t % BLOCK : t % BLOCK * D + c] =
                t < T ? x[t * D + c] : NAN;
    }
    if (!y)
        keep(NULL, (size_t)(padded * D) * sizeof *y, false, false);
    at = (float *)copy_to_device(y, padded * D, sizeof *y);
    free(y);
    return at;
}

float *transposed_blocks(const float *x, int64_t T) {
    return blocks_of(x, T, true);
}

float *natural_blocks(const float *x, int64_t T) {
    return blocks_of(x, T, false);
}

double dot_float64(const float *a, const float *b) {
    double sum = 0;
    for (int c = 0; c < D; c++)
        sum += (double)a[c] * (double)b[c];
    return sum;
}

void add_scaled_float64(double *y, double a, const float *x) {
    for (int c = 0; c < D; c++)
        y[c] += a * (double)x[c];
}

double relative_rms(const float *x, const double *reference, int64_t n) {
    double difference = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)x[i] - reference[i];
        difference += d * d;
        all += reference[i] * reference[i];
    }
    return sqrt(difference / all);
}

double relative_rms_float(const float *x, const float *reference, int64_t n) {
    double difference = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)x[i] - (double)reference[i];
        difference += d * d;
        all += (double)reference[i] * (double)reference[i];
    }
    return sqrt(difference / all);
}

double larger(double a, double b) {
    return a != a || a >= b ? a : b;
}
