/**
 * @file gpu.h
 * @brief The GPU, if there is one: its name, its ceilings, flushing its cache.
 *
 * The part that needs nvcc is a shared object of its own, libnsa_gpu.so beside the command or in
 * ../lib, built from gpu.cu with CUDA=gpu. Without it, or without a GPU, these functions do
 * nothing, and gpu_missing() says why.
 */
#ifndef BENCH_GPU_H
#define BENCH_GPU_H

#include "bench/bench.h"

/** What libnsa_gpu.so exports, by nsa_gpu_get(). On a failure they return 0 or do nothing. */
typedef struct gpu_table {
    uint32_t size; /**< sizeof(gpu_table): another size is refused */
    /** @return NULL if a GPU answers, else why not */
    const char *(*missing)(void);
    /** Name, multiprocessors, clock, cache, memory, driver and CUDA's version. */
    void (*describe)(char *text, size_t capacity);
    /** Write 256 MB or four times the cache, and wait. */
    void (*flush)(void);
    /** Wait until all queued work is done. */
    void (*wait)(void);
    /** @return bytes of the GPU's memory that are taken */
    int64_t (*memory)(void);
    /** Measure once: the median of five runs each after one that warms up. 0 on a failure. */
    void (*ceilings)(double rate[BENCH_CEILINGS]);
} gpu_table;

/** @return NULL if there is a GPU and the part that drives it, else why not. */
const char *gpu_missing(void);

/** Describe the GPU; "" without one. */
void gpu_describe(char *text, size_t capacity);

/** Flush the second-level cache. */
void gpu_flush(void);

/** Keep the GPU busy for some time, so that it leaves its idle clock. */
void gpu_warm(double seconds);

/** Wait until all queued work is done. */
void gpu_wait(void);

/** @return bytes of its memory that are taken, 0 without a GPU. */
int64_t gpu_memory(void);

/** Measure the ceilings, in the order of bench_ceiling: float32 multiply-adds in registers; sgemm
 * and a bfloat16 product of 8192 cubed by cuBLAS, TF32 off; random 16 KiB boxes out of 32 MiB; a
 * sum over 2 GB; a copy of 2 GB. */
void gpu_ceilings(double rate[BENCH_CEILINGS]);

#endif
