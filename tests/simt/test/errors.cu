// Wrong kernels and calls: each must be reported, with a text that says what and where.
#include "test.cuh"

#ifdef NSA_SIMT

#include "common/device_bf16.h"

#include "common/fence.h"

#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

// -------------------------------------------------------------------- barriers

static __global__ void some_return(float *a) {
    if (threadIdx.x < 100)
        __syncthreads();
    a[threadIdx.x] = 0;
}
static __global__ void two_barriers(float *a) {
    if (threadIdx.x & 1)
        __syncthreads();
    else
        a[0] = (float)__syncthreads_or(1);
}
static __global__ void barrier_and_shuffle(float *a) {
    if (threadIdx.x == 5)
        a[0] = __shfl_sync(0xffffffffu, a[1], 0);
    else
        __syncthreads();
}
// Reads what its neighbour wrote without a barrier: the result depends on the order.
static __global__ void no_barrier(float *a) {
    __shared__ float s_a[64];
    s_a[threadIdx.x] = (float)threadIdx.x;
    a[threadIdx.x] = s_a[(threadIdx.x + 1) % 64];
}

static void test_barriers() {
    float *g = device<float>(128);
    NSA_LAUNCH(some_return, dim3(2, 2), dim3(128), 0, (cudaStream_t)0, g);
    expect_report("some_return", "thread (100,0,0): __syncthreads", "28 of 128 threads did not");
    NSA_LAUNCH(two_barriers, dim3(1), dim3(128), 0, (cudaStream_t)0, g);
    expect_report("two_barriers", "__syncthreads_or", "other threads of the block wait at");
    NSA_LAUNCH(barrier_and_shuffle, dim3(1), dim3(32), 0, (cudaStream_t)0, g);
    expect_report("barrier_and_shuffle", "thread (5,0,0)", "this one waits at __shfl_sync");
    NSA_LAUNCH(no_barrier, dim3(1), dim3(64), 0, (cudaStream_t)0, g);
    float a[64];
    int wrong = 0;
    copy_to_host(a, g, 64);
    nsa_show(a, sizeof a);
    for (int i = 0; i < 64; i++)
        wrong += !(a[i] == (float)((i + 1) % 64));
    EXPECT(wrong > 0, "no_barrier: the missing barrier does not show");
    free_all();
}

// -------------------------------------------------------------- warp collectives

static __global__ void lane_absent(float *a) {
    if (threadIdx.x != 3)
        a[threadIdx.x] = __shfl_xor_sync(0xffffffffu, a[threadIdx.x], 16);
}
static __global__ void not_in_mask(float *a) {
    a[threadIdx.x] = __shfl_sync(0x0000ffffu, a[threadIdx.x], 0);
}
static __global__ void reads_outside_mask(float *a) {
    if (threadIdx.x < 16)
        a[threadIdx.x] = __shfl_down_sync(0x0000ffffu, a[threadIdx.x], 8);
}
static __global__ void two_collectives(float *a) {
    if (threadIdx.x < 8)
        __syncwarp();
    else
        a[0] = (float)__any_sync(0xffffffffu, 1);
}
static __global__ void half_warp(float *a) {
    a[threadIdx.x] = __shfl_xor_sync(0xffffffffu, a[threadIdx.x], 1);
}

static void test_collectives() {
    float *g = device<float>(32);
    NSA_LAUNCH(lane_absent, dim3(1), dim3(32), 0, (cudaStream_t)0, g);
    expect_report("lane_absent", "__shfl_xor_sync", "lane 3 has returned");
    NSA_LAUNCH(not_in_mask, dim3(1), dim3(32), 0, (cudaStream_t)0, g);
    expect_report("not_in_mask", "kernel not_in_mask", "the calling lane is not in the mask");
    NSA_LAUNCH(reads_outside_mask, dim3(1), dim3(32), 0, (cudaStream_t)0, g);
    expect_report("reads_outside_mask", "which is not in the mask 0000ffff", "reads lane");
    NSA_LAUNCH(two_collectives, dim3(1), dim3(32), 0, (cudaStream_t)0, g);
    expect_report("two_collectives", "__any_sync", "other lanes of the warp wait at");
    NSA_LAUNCH(half_warp, dim3(1), dim3(16), 0, (cudaStream_t)0, g);
    expect_report("half_warp", "16 lanes of the mask", "lane 16 is not part of the block");
    free_all();
}

// ---------------------------------------------------------------------- memory

static __global__ void misaligned(float *a) {
    float4 v = *(const float4 *)(a + threadIdx.x + 4);
    a[threadIdx.x] = v.x;
}
template <class T> static __global__ void misaligned_load(const T *from, float *to) {
    *to = nsa_load_float(from + threadIdx.x);
}
template <class T> static __global__ void misaligned_store(T *to) {
    to[threadIdx.x] = T(1.0f);
}
// Vectors are copied; each by a load, a store, and from one place to another.
template <class T> static __global__ void misaligned_vector(T *to, const T *from) {
    T v = *from;
    if (blockDim.x == 1)
        *to = v;
    else
        *to = *from;
}
template <class T> static __global__ void misaligned_copy(T *to, const T *from) {
    to[threadIdx.x] = from[threadIdx.x];
}
static __global__ void behind(float *a, int n) {
    a[n + (int)threadIdx.x] = 1;
}
[[maybe_unused]] static __global__ void nowhere(float *a) {
    a[threadIdx.x] = 1;
}
static __global__ void unwritten(float *a) {
    __shared__ float s_static[32];
    NSA_DYNAMIC_SHARED(float, s_dynamic);
    a[threadIdx.x] = s_static[threadIdx.x];
    a[32 + threadIdx.x] = s_dynamic[threadIdx.x];
    __syncwarp();
    s_static[threadIdx.x] = s_dynamic[threadIdx.x] = 1; // the next block must not see this
}
static __global__ void behind_shared(float *a) {
    NSA_DYNAMIC_SHARED(float, s_a);
    s_a[threadIdx.x] = a[threadIdx.x];
}
static __global__ void deep(float *a, int i) {
    volatile float big[110 << 10];
    big[i] = a[0];
    a[0] = big[i];
}

// A load, a store and a copy of one element, one byte off its alignment; loads and stores of bytes
// that are aligned pass.
template <class T> static void test_misaligned(const char *type) {
    char *g = device<char>(64);
    float *g_out = device<float>(1);
    T *wrong = (T *)(g + 1), *right = (T *)(g + 32);
    NSA_LAUNCH(misaligned_load<T>, dim3(1), dim3(1), 0, (cudaStream_t)0, wrong, g_out);
    expect_report("misaligned load", "thread (0,0,0): misaligned access to", type);
    NSA_LAUNCH(misaligned_store<T>, dim3(1), dim3(1), 0, (cudaStream_t)0, wrong);
    expect_report("misaligned store", "thread (0,0,0): misaligned access to", type);
    NSA_LAUNCH(misaligned_copy<T>, dim3(1), dim3(1), 0, (cudaStream_t)0, right, wrong);
    expect_report("misaligned source", "thread (0,0,0): misaligned access to", type);
    NSA_LAUNCH(misaligned_copy<T>, dim3(1), dim3(1), 0, (cudaStream_t)0, wrong, right);
    expect_report("misaligned destination", "thread (0,0,0): misaligned access to", type);
    NSA_LAUNCH(misaligned_store<T>, dim3(1), dim3(2), 0, (cudaStream_t)0, right);
    NSA_LAUNCH(misaligned_load<T>, dim3(1), dim3(1), 0, (cudaStream_t)0, right, g_out);
    EXPECT_OK(cudaGetLastError());
    free_all();
}

template <class T> static void test_vector(const char *type) {
    char *g = device<char>(128);
    T *right = (T *)g, *wrong = (T *)(g + 64 + sizeof(T) / 2);
    for (unsigned threads = 1; threads <= 2; threads++) {
        NSA_LAUNCH(misaligned_vector<T>, dim3(1), dim3(threads), 0, (cudaStream_t)0, right, wrong);
        expect_report("misaligned source", "misaligned access to", type);
        NSA_LAUNCH(misaligned_vector<T>, dim3(1), dim3(threads), 0, (cudaStream_t)0, wrong, right);
        expect_report("misaligned destination", "misaligned access to", type);
        NSA_LAUNCH(misaligned_vector<T>, dim3(1), dim3(threads), 0, (cudaStream_t)0, right, right);
        EXPECT_OK(cudaGetLastError());
    }
    free_all();
}

static void test_memory() {
    float *g = device<float>(100), h[100];
    NSA_LAUNCH(misaligned, dim3(1), dim3(2), 0, (cudaStream_t)0, g);
    expect_report("misaligned", "thread (1,0,0): misaligned access to", "float4");
    NSA_LAUNCH(behind, dim3(1), dim3(1), 0, (cudaStream_t)0, g, 100);
    expect_report("behind", "kernel behind: wrote behind allocation", "(400 bytes, cudaMalloc)");
    NSA_LAUNCH(behind, dim3(1), dim3(1), 0, (cudaStream_t)0, g, -1);
    expect_report("before", "kernel behind: wrote before allocation", "from byte -4");
#ifndef NSA_VALGRIND // valgrind reports these itself
    NSA_LAUNCH(nowhere, dim3(1), dim3(1), 0, (cudaStream_t)0, (float *)nullptr);
    expect_report("nowhere", "kernel nowhere, block (0,0,0), thread (0,0,0)", "null");
    NSA_LAUNCH(nowhere, dim3(1), dim3(1), 0, (cudaStream_t)0, g + (size_t)(1 << 28));
    expect_report("far", "thread (0,0,0): touched address", "device memory that is not allocated");
#endif
    NSA_LAUNCH(behind_shared, dim3(1), dim3(33), 32 * sizeof(float), (cudaStream_t)0, g);
    expect_report("behind_shared", "wrote byte 128 of its 128 bytes of dynamic shared memory", "");
    NSA_LAUNCH(deep, dim3(1), dim3(1), 0, (cudaStream_t)0, g, 0);
    expect_report("deep", "the thread's stack is full", "");
    NSA_LAUNCH(unwritten, dim3(3), dim3(32), 32 * sizeof(float), (cudaStream_t)0, g);
    EXPECT_OK(cudaGetLastError());
    copy_to_host(h, g, 100);
    nsa_show(h, sizeof h); // valgrind: read on purpose, though never written
    int numbers = 0;
    for (int i = 0; i < 64; i++)
        numbers += h[i] == h[i];
    EXPECT(numbers == 0, "unwritten: %d of 64 reads of shared memory are not NaN", numbers);
    float *fresh = device<float>(4);
    copy_to_host(h, fresh, 4);
    nsa_show(h, sizeof h);
    EXPECT(h[0] != h[0] && h[3] != h[3], "unwritten: fresh device memory is not NaN");
    EXPECT(cudaMemcpy(h, g, 404, cudaMemcpyDeviceToHost) != cudaSuccess, "copy beyond the end");
    expect_report("copy", "cudaMemcpy: the source, 404 bytes from byte 0", "(400 bytes");
    EXPECT(cudaMemcpy(h, g, 4, cudaMemcpyHostToDevice) != cudaSuccess, "copy the wrong way");
    expect_report("copy", "the destination is not device memory", "");
    EXPECT(cudaFree(g + 1) != cudaSuccess, "free of what was not allocated");
    expect_report("free", "is not what cudaMalloc gave", "");
    free_all();
}

// A child process touches device memory: it must print the address and die.
static void test_host_touch() {
    float *g = device<float>(100);
    int ends[2], status = 0;
    char text[400] = "";
    fflush(stdout);
    if (pipe(ends))
        return;
    pid_t child = fork();
    if (!child) {
        alarm(60); // a handler that calls itself never ends
        dup2(ends[1], 2);
        *(volatile float *)(g + 2) = 1;
        _exit(0);
    }
    close(ends[1]);
    size_t have = 0;
    for (ssize_t n; have < sizeof text - 1 && (n = read(ends[0], text + have, 399 - have)) > 0;)
        have += (size_t)n;
    waitpid(child, &status, 0);
    close(ends[0]);
    EXPECT(!(WIFEXITED(status) && WEXITSTATUS(status) == 0), "host_touch: it went unnoticed");
    EXPECT(!(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM), "host_touch: it did not end");
    EXPECT(strstr(text, "host code touched") && strstr(text, "byte 8 of allocation"),
           "host_touch: it says: %s", text);
    free_all();
}

// -------------------------------------------------------------------- launches

static __global__ void nothing(int) {
}
static __global__ void spin(volatile int *flag) {
    while (!*flag)
        __threadfence();
}
static __global__ void selector(unsigned *a) {
    a[0] = __byte_perm(a[0], a[1], 0x3218u);
}

static void test_launches() {
    int zero = 0, *g_flag = device(1, &zero);
    NSA_LAUNCH(nothing, dim3(1), dim3(2048), 0, (cudaStream_t)0, 0);
    expect_report("2048 threads", "kernel nothing", "a block has at most 1024 threads");
    NSA_LAUNCH(nothing, dim3(1, 70000), dim3(32), 0, (cudaStream_t)0, 0);
    expect_report("grid.y 70000", "grid (1,70000,1)", "65535 in y and z");
    NSA_LAUNCH(nothing, dim3(0), dim3(32), 0, (cudaStream_t)0, 0);
    expect_report("no blocks", "a dimension is 0", "");
    NSA_LAUNCH(nothing, dim3(1), dim3(32), 60 << 10, (cudaStream_t)0, 0);
    expect_report("60 KiB", "too much dynamic shared memory", "49152 allowed");
    EXPECT_OK(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 60 << 10));
    NSA_LAUNCH(nothing, dim3(1), dim3(32), 60 << 10, (cudaStream_t)0, 0);
    EXPECT_OK(cudaGetLastError());
    EXPECT_OK(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 << 10));
    EXPECT(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 300 << 10) !=
               cudaSuccess,
           "300 KiB are allowed");
    expect_report("300 KiB", "cudaFuncSetAttribute", "sm_80");
    NSA_LAUNCH(spin, dim3(1), dim3(2), 0, (cudaStream_t)0, g_flag);
    expect_report("spin", "turns without progress", "kernel spin");
    NSA_LAUNCH(selector, dim3(1), dim3(1), 0, (cudaStream_t)0, device<unsigned>(2));
    expect_report("selector", "__byte_perm: selector 3218", "thread (0,0,0)");
    free_all();
}

static void test_captures() {
    cudaStream_t stream;
    cudaGraph_t graph;
    float *p = nullptr;
    EXPECT_OK(cudaStreamCreate(&stream));
    EXPECT_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    EXPECT(cudaMalloc(&p, 4) == cudaErrorStreamCaptureUnsupported, "cudaMalloc in a capture");
    expect_report("capture", "cudaMalloc", "not while a stream is being captured");
    EXPECT(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated,
           "invalidated");
    expect_report("capture", "cudaStreamEndCapture", "invalidated");
    EXPECT(cudaStreamEndCapture(stream, &graph) != cudaSuccess, "the end of no capture");
    expect_report("capture", "no capture began", "");
    EXPECT_OK(cudaStreamDestroy(stream));
}

// What a stage's functions return after an error.
static nsa_status through_macros(float *g) {
    NSA_CUDA(cudaMemset(g, 0, 4));
    NSA_LAUNCH(some_return, dim3(1), dim3(128), 0, (cudaStream_t)0, g);
    NSA_LAUNCHED("some_return");
    return NSA_OK;
}

static void test_macros() {
    EXPECT(through_macros(device<float>(128)) == NSA_ERR_DEVICE, "NSA_LAUNCHED: no error");
    EXPECT(strstr(nsa_last_error(), "28 of 128 threads"), "NSA_LAUNCHED: %s", nsa_last_error());
    free_all();
}

void test_errors() {
    test_barriers();
    test_collectives();
    test_memory();
    test_misaligned<__nv_bfloat16>("bfloat16");
    test_misaligned<double>("double");
    test_vector<float2>("float2");
    test_vector<float4>("float4");
    test_vector<uint4>("uint4");
    test_vector<__nv_bfloat162>("bfloat162");
    test_host_touch();
    test_launches();
    test_captures();
    test_macros();
}

#endif
