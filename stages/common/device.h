/**
 * @file device.h
 * @brief The one header of a CUDA stage: it compiles with nvcc for a GPU, and with a C++ compiler
 * for the simulator of tests/simt.
 *
 * Everything else in a .cu file is CUDA's own language and names; docs/simulator.md lists what the
 * simulator knows of them. Three things that plain C++ has no syntax for are macros here:
 *
 *     NSA_LAUNCH(attend, grid, block, bytes, stream, q, out)
 *         nvcc:       attend<<<grid, block, bytes, stream>>>(q, out)
 *         simulator:  simt::launch("attend", attend, grid, block, bytes, stream, q, out)
 *     NSA_DYNAMIC_SHARED(float, s_keys)
 *         nvcc:       extern __shared__ __align__(16) unsigned char nsa_dynamic_shared[];
 *                     float *s_keys = (float *)nsa_dynamic_shared
 *         simulator:  float *s_keys = the block's dynamic shared memory
 *
 * and a kernel template with commas goes in parentheses: NSA_LAUNCH((k<4, true>), ...).
 */
#ifndef NSA_COMMON_DEVICE_H
#define NSA_COMMON_DEVICE_H

#include "nsa_stage.h"

#ifdef NSA_SIMT
#include "simt/simt.h"
#else
#include <cuda_runtime.h>
#endif

#ifdef NSA_SIMT
/** Launch a kernel; NSA_LAUNCHED() must follow. */
#define NSA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                 \
    simt::launch(#kernel, kernel, grid, block, shared_bytes, stream, ##__VA_ARGS__)
/** Inside a kernel: the dynamic shared memory of its block, 16-byte aligned. */
#define NSA_DYNAMIC_SHARED(type, name) type *name = (type *)simt::dynamic_shared()
#else
/** Launch a kernel; NSA_LAUNCHED() must follow. */
#define NSA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                 \
    kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
/** Inside a kernel: the dynamic shared memory of its block, 16-byte aligned. */
#define NSA_DYNAMIC_SHARED(type, name)                                                             \
    extern __shared__ __align__(16) unsigned char nsa_dynamic_shared[];                            \
    type *name = (type *)nsa_dynamic_shared
#endif

/** @return the error's text: the simulator's report if there is one, else CUDA's. Clears
 * cudaGetLastError(), so that the error is reported once. */
static inline const char *nsa_device_error(cudaError_t error) {
    (void)cudaGetLastError();
#ifdef NSA_SIMT
    if (*simt_last_report())
        return simt_last_report();
#endif
    return cudaGetErrorString(error);
}

/** In a function that returns nsa_status: make a call of CUDA's runtime, and return if it fails. */
#define NSA_CUDA(...)                                                                              \
    do {                                                                                           \
        cudaError_t nsa_error_ = (__VA_ARGS__);                                                    \
        if (nsa_error_ != cudaSuccess)                                                             \
            return nsa_fail(NSA_ERR_DEVICE, "%s: %s", #__VA_ARGS__, nsa_device_error(nsa_error_)); \
    } while (0)

/** In a function that returns nsa_status, after NSA_LAUNCH: return if the launch was refused, and
 * in the simulator also if the kernel did something wrong. */
#define NSA_LAUNCHED(kernel_name)                                                                  \
    do {                                                                                           \
        cudaError_t nsa_error_ = cudaGetLastError();                                               \
        if (nsa_error_ != cudaSuccess)                                                             \
            return nsa_fail(NSA_ERR_DEVICE, "%s: %s", (kernel_name),                               \
                            nsa_device_error(nsa_error_));                                         \
    } while (0)

/** Kernels with one element a thread: threads of a CUDA block, and the most CUDA blocks. */
enum { NSA_THREADS = 256, NSA_MAX_GRID = 1 << 20 };

/** @return CUDA blocks for `count` elements. Each thread has one, and every element that is a whole
 * number of grids later: for (i = nsa_first(); i < count; i += nsa_grid_threads()) */
static inline unsigned nsa_grid(int64_t count) {
    const int64_t blocks = (count + NSA_THREADS - 1) / NSA_THREADS;
    return (unsigned)(blocks < 1 ? 1 : blocks > NSA_MAX_GRID ? (int64_t)NSA_MAX_GRID : blocks);
}

/** In a kernel: @return the first element of this thread. */
static __device__ __forceinline__ int64_t nsa_first(void) {
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

/** In a kernel: @return threads of the grid. */
static __device__ __forceinline__ int64_t nsa_grid_threads(void) {
    return (int64_t)gridDim.x * blockDim.x;
}

/** Allow a kernel the device's maximum of dynamic shared memory per block. The attribute belongs to
 * the kernel, not to a context: a smaller value for one context would break another.
 *  @return NSA_ERR_DEVICE if the device refuses */
template <class kernel> static inline nsa_status nsa_allow_shared(kernel *kernel_function) {
    cudaFuncAttributes attributes;
    int device = 0, limit = 0;
    NSA_CUDA(cudaGetDevice(&device));
    NSA_CUDA(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    NSA_CUDA(cudaFuncGetAttributes(&attributes, kernel_function));
    NSA_CUDA(cudaFuncSetAttribute(kernel_function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  limit - (int)attributes.sharedSizeBytes));
    return NSA_OK;
}

/** For nsa_stage.free_memory: @return free bytes of the device in use; 0 if it cannot be asked. */
static inline size_t nsa_free_memory(void) {
    size_t available = 0, total = 0;
    return cudaMemGetInfo(&available, &total) == cudaSuccess ? available : 0;
}

/** For nsa_stage.device: @return where the stage runs, "simulator" or the name of the GPU in
 * use. */
static inline const char *nsa_device_name(void) {
#ifdef NSA_SIMT
    return "simulator";
#else
    static cudaDeviceProp prop;
    int device = 0;
    if (cudaGetDevice(&device) == cudaSuccess &&
        cudaGetDeviceProperties(&prop, device) == cudaSuccess)
        return prop.name;
    (void)cudaGetLastError();
    return "no GPU";
#endif
}

#endif
