/** @file gpu.cu
 *  @brief libnsa_gpu.so: the GPU's ceilings, its name, flushing its cache. For nvcc only. */
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <library_types.h>

#include <algorithm>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

extern "C" {
#include "bench/bench.h"
}

enum {
    REPEATS = 5,
    THREADS = 256,
    SIDE = 8192,            /* of the matrix products */
    CHAINS = 16,            /* independent multiply-adds of a thread */
    STEPS = 4096,           /* of each chain */
    BOX = 16384 / 16,       /* float4 of a box */
    BOXES = 512,            /* that one block reads */
    WORKING_SET = 32 << 20, /* bytes that boxes are read from: fits the second-level cache */
    HEAD_START = 2000000,   /* cycles, a millisecond */
    LATEST_CUBLAS = 13
};
static const size_t COPY_BYTES = (size_t)2 << 30; /* bytes that are read, or copied */

/* Chains of multiply-adds. The last condition never holds; without it there would be no loop. */
static __global__ void __launch_bounds__(THREADS) multiply_add(float x, float y, float *g_out) {
    float r_sum[CHAINS];
#pragma unroll
    for (int i = 0; i < CHAINS; i++)
        r_sum[i] = (float)(threadIdx.x + i);
#pragma unroll 4
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int i = 0; i < CHAINS; i++)
            r_sum[i] = fmaf(r_sum[i], x, y);
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < CHAINS; i++)
        sum += r_sum[i];
    if (sum == 12345.678f)
        *g_out = sum;
}

/* Read random boxes of 16 KiB, bypassing the first-level cache. */
static __global__ void __launch_bounds__(THREADS)
    read_boxes(const float4 *g_src, unsigned boxes, float *g_out) {
    unsigned state = blockIdx.x * 2654435761u + 12345u;
    float sum = 0;
    for (int box = 0; box < BOXES; box++) {
        state = state * 1664525u + 1013904223u;
        const float4 *g_box = g_src + (size_t)((state >> 8) % boxes) * BOX;
#pragma unroll
        for (int i = 0; i < BOX / THREADS; i++) {
            const float4 x = __ldcg(g_box + i * THREADS + threadIdx.x);
            sum += (x.x + x.y) + (x.z + x.w);
        }
    }
    if (sum == 12345.678f)
        *g_out = sum;
}

/* Read everything once. */
static __global__ void __launch_bounds__(THREADS)
    read_all(const float4 *g_src, size_t count, float *g_out) {
    const size_t all = (size_t)gridDim.x * THREADS;
    float sum = 0;
#pragma unroll 8
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += all) {
        const float4 x = __ldcs(g_src + i);
        sum += (x.x + x.y) + (x.z + x.w);
    }
    if (sum == 12345.678f)
        *g_out = sum;
}

/* Varied values in [-1,1): zeros run faster. */
template <class number>
static __global__ void __launch_bounds__(THREADS) fill(number *g_dst, size_t count) {
    const size_t all = (size_t)gridDim.x * THREADS;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += all) {
        unsigned x = (unsigned)i * 2654435761u;
        x = (x ^ x >> 15) * 2246822519u;
        g_dst[i] = (number)((float)(x >> 8) / (float)(1 << 23) - 1.0f);
    }
}

static int device;
static cudaDeviceProp prop; /* of it */

/* Nothing but a stage's own calls may leave an error behind for the stage to find. */
static int succeeds(cudaError_t error) {
    (void)cudaGetLastError();
    return error == cudaSuccess;
}

static const char *missing(void) {
    cudaError_t error = cudaGetDevice(&device);
    error = error == cudaSuccess ? cudaGetDeviceProperties(&prop, device) : error;
    return succeeds(error) ? NULL : cudaGetErrorString(error);
}

/* In MHz; 0 if the driver does not say. */
static int clock_of(cudaDeviceAttr which) {
    int khz = 0;
    return succeeds(cudaDeviceGetAttribute(&khz, which, device)) ? khz / 1000 : 0;
}

static void describe(char *text, size_t capacity) {
    int driver = 0, runtime = 0;
    char module[64] = "unknown", line[256] = "";
    FILE *f = fopen("/proc/driver/nvidia/version", "r");
    if (f && fgets(line, sizeof line, f) && strstr(line, "  "))
        /* "NVRM version: NVIDIA ... Module  580.1.2  ...": two spaces before the version */
        (void)sscanf(strstr(line, "  "), " %63[0-9.]", module);
    if (f)
        fclose(f);
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    snprintf(text, capacity,
             "%s, %d multiprocessors at %d MHz at most, memory at %d MHz, %.0f MB second-level "
             "cache, %.0f GiB; driver %s (CUDA %d.%d), runtime %d.%d",
             prop.name, prop.multiProcessorCount, clock_of(cudaDevAttrClockRate),
             clock_of(cudaDevAttrMemoryClockRate), (double)prop.l2CacheSize / 1e6,
             (double)prop.totalGlobalMem / 1073741824.0, module, driver / 1000, driver % 100 / 10,
             runtime / 1000, runtime % 100 / 10);
}

static void flush(void) {
    static void *memory;
    static size_t bytes;
    static int value;
    if (!bytes) {
        bytes = std::max((size_t)256 << 20, 4 * (size_t)prop.l2CacheSize);
        memory = succeeds(cudaMalloc(&memory, bytes)) ? memory : NULL;
    }
    if (memory)
        (void)cudaMemset(memory, ++value & 255, bytes);
    (void)succeeds(cudaDeviceSynchronize());
}

static void wait(void) {
    (void)succeeds(cudaDeviceSynchronize()); /* the stage's own calls report what went wrong */
}

static int64_t memory_used(void) {
    size_t left = 0, all = 0;
    return succeeds(cudaMemGetInfo(&left, &all)) ? (int64_t)(all - left) : 0;
}

/* As cublas_v2.h declares them, for 64-bit Linux; enums are int. */
static struct {
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*sgemm)(void *handle, int ta, int tb, int m, int n, int k, const float *alpha,
                 const float *a, int lda, const float *b, int ldb, const float *beta, float *c,
                 int ldc);
    int (*gemm_ex)(void *handle, int ta, int tb, int m, int n, int k, const void *alpha,
                   const void *a, cudaDataType ta_, int lda, const void *b, cudaDataType tb_,
                   int ldb, const void *beta, void *c, cudaDataType tc, int ldc, int compute,
                   int algorithm);
} blas;

enum { COMPUTE_32F = 68, ALGORITHM_DEFAULT = -1 }; /* CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT */

template <class type> static int find(void *library, const char *name, type *function) {
    *function = (type)dlsym(library, name);
    return *function != NULL;
}

/* Load cuBLAS at run time, so that everything else works without it. */
static int load_cublas(void) {
    void *library = NULL;
    char name[64];
    for (int v = LATEST_CUBLAS; v >= 11 && !library; v--) {
        snprintf(name, sizeof name, "libcublas.so.%d", v);
        library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        snprintf(name, sizeof name, "/usr/local/cuda/lib64/libcublas.so.%d", v);
        library = library ? library : dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (!library)
        fprintf(stderr, "nsa bench: no cuBLAS: %s (LD_LIBRARY_PATH?)\n", dlerror());
    return library && find(library, "cublasCreate_v2", &blas.create) &&
           find(library, "cublasDestroy_v2", &blas.destroy) &&
           find(library, "cublasSgemm_v2", &blas.sgemm) &&
           find(library, "cublasGemmEx", &blas.gemm_ex);
}

/* Keep the GPU busy, so that what is queued meanwhile does not wait for the host. */
static __global__ void head_start(long long cycles) {
    const long long from = clock64();
    while (clock64() - from < cycles) {
    }
}

static cudaEvent_t event[2];
static int started; /* 0 if start() failed */

static void start(void) {
    started = event[1] || (cudaEventCreate(&event[0]) == cudaSuccess &&
                           cudaEventCreate(&event[1]) == cudaSuccess);
    head_start<<<1, 1>>>(HEAD_START);
    started =
        started && cudaGetLastError() == cudaSuccess && cudaEventRecord(event[0]) == cudaSuccess;
}

/* 0 if anything failed since start(). */
static double stop(void) {
    float ms = 0;
    const int ok = started && cudaEventRecord(event[1]) == cudaSuccess &&
                   cudaEventSynchronize(event[1]) == cudaSuccess &&
                   cudaEventElapsedTime(&ms, event[0], event[1]) == cudaSuccess;
    return cudaGetLastError() == cudaSuccess && ok ? 1e-3 * ms : 0;
}

/* `what` over the median seconds of what `run` queues, in billions a second; 0 if that failed. */
template <class work> static double rate_of(double what, work run) {
    double seconds[REPEATS + 1];
    for (int i = 0; i <= REPEATS; i++) { /* the first warms up */
        start();
        const int failed = run();
        seconds[i] = stop();
        if (failed || !(seconds[i] > 0))
            return 0;
    }
    std::sort(seconds + 1, seconds + 1 + REPEATS);
    return 1e-9 * what / seconds[1 + REPEATS / 2];
}

static void measure_products(double *rate, char *memory) {
    const size_t count = (size_t)SIDE * SIDE;
    const double flops = 2.0 * SIDE * (double)count;
    const float one = 1, zero = 0;
    float *a = (float *)memory, *b = a + count, *c = b + count;
    __nv_bfloat16 *ha = (__nv_bfloat16 *)memory, *hb = ha + count, *hc = hb + count;
    static const int loaded = load_cublas(); /* once */
    void *handle;
    if (!loaded || blas.create(&handle))
        return;
    fill<<<1024, THREADS>>>(a, 2 * count);
    rate[BENCH_SGEMM] = rate_of(flops, [&]() {
        return blas.sgemm(handle, 0, 0, SIDE, SIDE, SIDE, &one, a, SIDE, b, SIDE, &zero, c, SIDE);
    });
    fill<<<1024, THREADS>>>(ha, 2 * count);
    rate[BENCH_BF16] = rate_of(flops, [&]() {
        return blas.gemm_ex(handle, 0, 0, SIDE, SIDE, SIDE, &one, ha, CUDA_R_16BF, SIDE, hb,
                            CUDA_R_16BF, SIDE, &zero, hc, CUDA_R_16BF, SIDE, COMPUTE_32F,
                            ALGORITHM_DEFAULT);
    });
    (void)blas.destroy(handle);
}

static void ceilings(double rate[GPU_CEILINGS]) {
    const unsigned sms = (unsigned)prop.multiProcessorCount;
    const unsigned blocks = sms * (unsigned)(prop.maxThreadsPerMultiProcessor / THREADS);
    char *memory = NULL;
    if (!succeeds(cudaMalloc((void **)&memory, 2 * COPY_BYTES)))
        return; /* the programs that are timed hold the memory */
    float *out = (float *)(memory + COPY_BYTES);
    measure_products(rate, memory);
    rate[BENCH_FMA] = rate_of(2.0 * CHAINS * STEPS * THREADS * blocks, [&]() {
        multiply_add<<<blocks, THREADS>>>(0.999f, 0.001f, out);
        return 0;
    });
    fill<<<1024, THREADS>>>((float *)memory, 2 * COPY_BYTES / sizeof(float));
    rate[BENCH_L2] = rate_of(16.0 * BOX * BOXES * blocks, [&]() {
        read_boxes<<<blocks, THREADS>>>((const float4 *)memory, WORKING_SET / (16 * BOX), out);
        return 0;
    });
    rate[BENCH_READ] = rate_of((double)COPY_BYTES, [&]() {
        read_all<<<blocks, THREADS>>>((const float4 *)memory, COPY_BYTES / sizeof(float4), out);
        return 0;
    });
    rate[BENCH_COPY] = rate_of(2.0 * (double)COPY_BYTES, [&]() {
        return cudaMemcpyAsync(memory + COPY_BYTES, memory, COPY_BYTES, cudaMemcpyDeviceToDevice) !=
               cudaSuccess;
    });
    (void)cudaFree(memory);
}

extern "C" NSA_EXPORT const gpu_table *nsa_gpu_get(void) {
    static const gpu_table table = {sizeof(gpu_table), missing, describe, flush, wait, start, stop,
                                    memory_used,       ceilings};
    return &table;
}
