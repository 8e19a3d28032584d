// A second device: what belongs to it, and what may not be mixed. On a GPU this needs two.
#include "test.cuh"

#include <pthread.h>

static __global__ void set(float *a, float to) {
    a[threadIdx.x] = to;
}

static void *device_of_thread(void *device) {
    EXPECT_OK(cudaGetDevice((int *)device));
    return nullptr;
}

// Each thread of the host has its own current device, which begins as 0.
static void test_current() {
    int device = -1, other = -1;
    pthread_t thread;
    EXPECT_OK(cudaSetDevice(1));
    EXPECT_OK(cudaGetDevice(&device));
    EXPECT(!pthread_create(&thread, nullptr, device_of_thread, &other), "no thread");
    pthread_join(thread, nullptr);
    EXPECT(device == 1 && other == 0, "current device: %d, in another thread %d", device, other);
    EXPECT(cudaSetDevice(1000) == cudaErrorInvalidDevice, "device 1000");
    expect_report("device 1000", "device 1000: there are devices 0 and 1", "");
    EXPECT_OK(cudaGetDevice(&device));
    EXPECT(device == 1, "current device: %d after a refused one", device);
    EXPECT_OK(cudaSetDevice(0));
}

// Memory, one array on each device. Copies may cross, kernels may not.
static void test_memory(float *g[2]) {
    float h[32] = {};
    cudaPointerAttributes a[2];
    for (int d = 0; d < 2; d++) {
        EXPECT_OK(cudaPointerGetAttributes(&a[d], g[d]));
        EXPECT(a[d].type == cudaMemoryTypeDevice && a[d].device == d, "memory of device %d: %d", d,
               a[d].device);
        EXPECT_OK(cudaSetDevice(d));
        NSA_LAUNCH(set, dim3(1), dim3(32), 0, (cudaStream_t)0, g[d], (float)(10 + d));
        EXPECT_OK(cudaGetLastError());
        EXPECT_OK(cudaDeviceSynchronize());
    }
    EXPECT_OK(cudaSetDevice(0));
    EXPECT_OK(cudaMemcpy(g[0], g[1], sizeof h, cudaMemcpyDefault));
    copy_to_host(h, g[0], 32);
    EXPECT(h[0] == 11 && h[31] == 11, "copy between devices: %g", (double)h[0]);
#ifdef NSA_SIMT // no call works after such a fault on a GPU
    float *pinned = nullptr;
    NSA_LAUNCH(set, dim3(1), dim3(32), 0, (cudaStream_t)0, g[1], 7.0f);
    expect_report("other memory", "kernel set, block (0,0,0)", "of device 1; the kernel runs on");
    EXPECT_OK(cudaSetDevice(1));
    NSA_LAUNCH(set, dim3(1), dim3(32), 0, (cudaStream_t)0, g[0], 7.0f);
    expect_report("other memory", "byte", "of device 0; the kernel runs on device 1");
    NSA_LAUNCH(set, dim3(1), dim3(1), 0, (cudaStream_t)0, g[1] + 32, 7.0f);
    expect_report("fence", "kernel set: wrote behind allocation", "(128 bytes, cudaMalloc)");
    EXPECT_OK(cudaMallocHost(&pinned, 4));
    EXPECT_OK(cudaPointerGetAttributes(&a[0], pinned));
    EXPECT(a[0].device == 1, "page-locked memory: of device %d", a[0].device);
    EXPECT_OK(cudaFreeHost(pinned));
    EXPECT_OK(cudaSetDevice(0));
    copy_to_host(h, g[1], 32);
    EXPECT(h[0] == 11, "a kernel wrote %g to the other device", (double)h[0]);
#endif
}

static void test_streams(float *g[2], cudaStream_t stream[2], cudaEvent_t event[2]) {
    float h[32], ms;
    NSA_LAUNCH(set, dim3(1), dim3(32), 0, stream[1], g[1], 3.0f);
    expect_report("launch", "kernel set: the stream belongs to device 1, the current device is 0",
                  "");
    EXPECT(cudaEventRecord(event[1], stream[0]) == cudaErrorInvalidResourceHandle, "event 1 in 0");
    expect_report("event", "cudaEventRecord: the event belongs to device 1, the stream to", "");
    EXPECT(cudaEventRecord(event[1], 0) == cudaErrorInvalidResourceHandle, "event 1 in default");
    expect_report("event", "cudaEventRecord: the event belongs to device 1, the stream to", "");
    EXPECT(cudaEventRecord(event[0], stream[1]) == cudaErrorInvalidResourceHandle, "event 0 in 1");
    expect_report("event", "the event belongs to device 0, the stream to device 1", "");
    // allowed with any current device
    EXPECT_OK(cudaEventRecord(event[1], stream[1]));
    EXPECT_OK(cudaEventRecord(event[0], stream[0]));
    EXPECT_OK(cudaStreamWaitEvent(stream[0], event[1], 0));
    EXPECT_OK(cudaMemcpyAsync(g[0], g[1], sizeof h, cudaMemcpyDefault, stream[1]));
    EXPECT_OK(cudaStreamSynchronize(stream[1]));
    EXPECT_OK(cudaEventSynchronize(event[1]));
    EXPECT(cudaEventElapsedTime(&ms, event[0], event[1]) == cudaErrorInvalidResourceHandle,
           "time between two devices");
    expect_report("time", "cudaEventElapsedTime: the events belong to two devices", "");
    EXPECT_OK(cudaSetDevice(1));
    NSA_LAUNCH(set, dim3(1), dim3(32), 0, stream[1], g[1], 3.0f);
    EXPECT_OK(cudaGetLastError());
    EXPECT_OK(cudaStreamSynchronize(stream[1]));
    copy_to_host(h, g[1], 32);
    EXPECT(h[31] == 3, "stream of device 1: %g", (double)h[31]);
    EXPECT_OK(cudaSetDevice(0));
}

static void test_two() {
    float *g[2];
    cudaStream_t stream[2];
    cudaEvent_t event[2];
    for (int d = 0; d < 2; d++) {
        EXPECT_OK(cudaSetDevice(d));
        EXPECT_OK(cudaMalloc(&g[d], 32 * sizeof(float)));
        EXPECT_OK(cudaStreamCreate(&stream[d]));
        EXPECT_OK(cudaEventCreate(&event[d]));
    }
    EXPECT_OK(cudaSetDevice(0));
    test_memory(g);
    test_streams(g, stream, event);
    for (int d = 0; d < 2; d++) {
        EXPECT_OK(cudaFree(g[d]));
        EXPECT_OK(cudaStreamDestroy(stream[d]));
        EXPECT_OK(cudaEventDestroy(event[d]));
    }
}

void test_devices() {
    int count = 0;
#ifdef NSA_SIMT
    unsetenv("NSA_SIMT_DEVICES");
    EXPECT_OK(cudaGetDeviceCount(&count));
    EXPECT(count == 1, "%d devices without NSA_SIMT_DEVICES", count);
    EXPECT(cudaSetDevice(1) == cudaErrorInvalidDevice, "device 1 of 1");
    expect_report("device 1 of 1", "device 1: there is only device 0", "");
    setenv("NSA_SIMT_DEVICES", "2", 1);
#endif
    EXPECT_OK(cudaGetDeviceCount(&count));
    if (count < 2) {
        printf("SKIP devices: a second one is needed\n");
        return;
    }
    test_current();
    test_two();
#ifdef NSA_SIMT
    unsetenv("NSA_SIMT_DEVICES");
#endif
}
