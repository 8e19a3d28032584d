// The simulated device: its properties, and which launches it accepts.
//
// NSA_SIMT_DEVICE names the architecture. Only limits differ: what a kernel computes is the same.
// NSA_SIMT_DEVICES=2 makes a second device of the same kind.
#include "engine.h"

#include <map>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

namespace simt {

struct Profile {
    const char *name;
    int major, minor, processors, threads, blocks; // the last two for each multiprocessor
    int shared, optin; // KiB of a multiprocessor, and of a block at most
};

static const Profile profiles[] = {
    {"sm_75", 7, 5, 40, 1024, 16, 64, 64},    {"sm_80", 8, 0, 108, 2048, 32, 164, 163},
    {"sm_86", 8, 6, 82, 1536, 16, 100, 99},   {"sm_89", 8, 9, 128, 1536, 24, 100, 99},
    {"sm_90", 9, 0, 132, 2048, 32, 228, 227},
};
static const size_t DEFAULT_SHARED = 48 << 10;

// Code that includes device_mma.h has no use for an older device than this: the default is then the
// one with the least shared memory of those that can run it.
static bool tensor_cores;

bool use_tensor_cores() {
    return tensor_cores = true;
}

static const Profile &profile() {
    const char *wanted = setting("NSA_SIMT_DEVICE", tensor_cores ? "sm_86" : "sm_75");
    for (const Profile &p : profiles)
        if (!strcmp(p.name, wanted))
            return p;
    return profiles[0];
}

int device_major() {
    return profile().major;
}

// The current device of each thread of the host. Not thread_local: that is shared memory here.
static pthread_key_t current_key() {
    static const pthread_key_t key = [] {
        pthread_key_t k;
        if (pthread_key_create(&k, nullptr))
            abort();
        return k;
    }();
    return key;
}

int device_current() {
    return (int)(intptr_t)pthread_getspecific(current_key());
}

static int device_count() {
    return strcmp(setting("NSA_SIMT_DEVICES", "1"), "2") ? 1 : MAX_DEVICES;
}

static std::map<const void *, int> dynamic_limits; // of kernels with a larger limit

static size_t shared_limit(const void *kernel) {
    auto at = dynamic_limits.find(kernel);
    return at == dynamic_limits.end() ? DEFAULT_SHARED : (size_t)at->second;
}

cudaError_t function_set(const void *kernel, cudaFuncAttribute attr, int value) {
    Guard guard(lock);
    if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess;
    if (value < 0 || value > profile().optin << 10)
        return report(cudaErrorInvalidValue,
                      "cudaFuncSetAttribute: %d bytes of dynamic shared memory, a block of %s can "
                      "have %d",
                      value, profile().name, profile().optin << 10);
    dynamic_limits[kernel] = value;
    return cudaSuccess;
}

cudaError_t function_get(const void *kernel, cudaFuncAttributes *attr) {
    Guard guard(lock);
    *attr = cudaFuncAttributes();
    attr->maxThreadsPerBlock = MAX_THREADS;
    attr->numRegs = 64;
    attr->ptxVersion = attr->binaryVersion = profile().major * 10 + profile().minor;
    attr->maxDynamicSharedSizeBytes = (int)shared_limit(kernel);
    return cudaSuccess;
}

// From threads and dynamic shared memory alone; registers are not known.
cudaError_t occupancy(const void *, int *blocks, int threads, size_t dynamic) {
    Guard guard(lock);
    const Profile &p = profile();
    *blocks = 0;
    if (threads < 1 || threads > MAX_THREADS)
        return report(cudaErrorInvalidValue, "occupancy: %d threads a block", threads);
    int n = p.threads / ((threads + 31) / 32 * 32);
    int by_shared = (int)(((size_t)p.shared << 10) / (dynamic + (p.major >= 8 ? 1024 : 0) + 1));
    n = n > by_shared ? by_shared : n;
    *blocks = n > p.blocks ? p.blocks : n;
    return cudaSuccess;
}

// -------------------------------------------------------------------- launches

static bool launch_check(const char *name, dim3 grid, dim3 block, size_t shared, size_t limit) {
    size_t threads = (size_t)block.x * block.y * block.z;
    const char *wrong = nullptr;
    if (!grid.x || !grid.y || !grid.z || !threads)
        wrong = "a dimension is 0";
    else if (block.x > 1024 || block.y > 1024 || block.z > 64 || threads > MAX_THREADS)
        wrong = "a block has at most 1024 threads, 64 in z";
    else if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        wrong = "a grid has at most 2147483647 blocks in x, 65535 in y and z";
    else if (shared > limit)
        wrong = "too much dynamic shared memory";
    if (!wrong)
        return true;
    report(shared > limit ? cudaErrorInvalidValue : cudaErrorInvalidConfiguration,
           "kernel %s: grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of dynamic shared memory, %zu "
           "allowed: %s",
           name, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared, limit, wrong);
    return false;
}

void launch_submit(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared,
                   cudaStream_t stream, std::function<void()> body) {
    Guard guard(lock);
    if (!launch_check(name, grid, block, shared, shared_limit(kernel)))
        return;
    if (!stream_known(stream)) {
        report(cudaErrorInvalidResourceHandle, "kernel %s: no such stream", name);
        return;
    }
    int device = device_current();
    if (stream_device(stream) != device) {
        report(cudaErrorInvalidResourceHandle,
               "kernel %s: the stream belongs to device %d, the current device is %d", name,
               stream_device(stream), device);
        return;
    }
    if (!capturing(stream)) { // run now, without a copy of the arguments
        Launch now = {name, grid, block, shared, device, std::move(body)};
        submit(stream, [&now] { return launch_run(now) ? cudaSuccess : cudaErrorLaunchFailure; });
        return;
    }
    Launch later = {name, grid, block, shared, device, std::move(body)};
    submit(stream, [later] { return launch_run(later) ? cudaSuccess : cudaErrorLaunchFailure; });
}

} // namespace simt

// --------------------------------------------------------- what the device says

using namespace simt;

static cudaError_t known_device(int device) {
    int count = device_count();
    return device >= 0 && device < count
               ? cudaSuccess
               : report(cudaErrorInvalidDevice, "device %d: there %s", device,
                        count > 1 ? "are devices 0 and 1" : "is only device 0");
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = device_count();
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
    *device = device_current();
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    Guard guard(lock);
    cudaError_t error = known_device(device);
    if (!error && pthread_setspecific(current_key(), (void *)(intptr_t)device))
        abort();
    return error;
}

cudaError_t cudaDeviceReset() {
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device) {
    Guard guard(lock);
    const Profile &p = profile();
    size_t used;
    if (known_device(device))
        return cudaErrorInvalidDevice;
    *prop = cudaDeviceProp();
    snprintf(prop->name, sizeof prop->name, "simulator (%s)", p.name);
    prop->major = p.major, prop->minor = p.minor;
    prop->multiProcessorCount = p.processors;
    prop->warpSize = 32;
    prop->regsPerBlock = 65536;
    prop->clockRate = 1000000;
    prop->maxThreadsPerBlock = MAX_THREADS;
    prop->maxThreadsPerMultiProcessor = p.threads;
    prop->maxBlocksPerMultiProcessor = p.blocks;
    prop->maxThreadsDim[0] = prop->maxThreadsDim[1] = 1024, prop->maxThreadsDim[2] = 64;
    prop->maxGridSize[0] = 0x7fffffff, prop->maxGridSize[1] = prop->maxGridSize[2] = 65535;
    arena_usage(device, &used, &prop->totalGlobalMem);
    prop->sharedMemPerBlock = DEFAULT_SHARED;
    prop->sharedMemPerBlockOptin = (size_t)p.optin << 10;
    prop->sharedMemPerMultiprocessor = (size_t)p.shared << 10;
    prop->reservedSharedMemPerBlock = p.major >= 8 ? 1024 : 0;
    prop->totalConstMem = 65536;
    prop->l2CacheSize = 4 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device) {
    cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error)
        return error;
    switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)p.sharedMemPerBlock;
        return cudaSuccess;
    case cudaDevAttrWarpSize:
        *value = p.warpSize;
        return cudaSuccess;
    case cudaDevAttrMaxRegistersPerBlock:
        *value = p.regsPerBlock;
        return cudaSuccess;
    case cudaDevAttrClockRate:
        *value = p.clockRate;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        return cudaSuccess;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        return cudaSuccess;
    }
    return report(cudaErrorInvalidValue, "cudaDeviceGetAttribute: attribute %d", (int)attr);
}
