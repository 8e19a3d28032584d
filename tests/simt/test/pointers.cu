// What a caller's pointer points to, page-locked memory, and copies in graphs.
#include "test.cuh"

static __global__ void add(float *a, float by) {
    a[threadIdx.x] += by;
}

// Type and device of a pointer. The call never fails, whatever the pointer is.
static void expect_pointer(const char *what, const void *address, cudaMemoryType type) {
    cudaPointerAttributes a;
    memset(&a, 0x55, sizeof a);
    EXPECT_OK(cudaPointerGetAttributes(&a, address));
    EXPECT(a.type == type, "%s: type %d, not %d", what, (int)a.type, (int)type);
    EXPECT(a.device == (type == cudaMemoryTypeUnregistered ? cudaInvalidDeviceId : 0),
           "%s: device %d", what, a.device);
    EXPECT(type == cudaMemoryTypeUnregistered || a.devicePointer == address, "%s: device pointer",
           what);
    EXPECT(a.hostPointer == (type == cudaMemoryTypeDevice ? nullptr : address), "%s: host pointer",
           what);
}

static void test_attributes() {
    float *g, *pinned, plain[4];
    EXPECT_OK(cudaMalloc(&g, 100 * sizeof *g));
    EXPECT_OK(cudaMallocHost(&pinned, 100 * sizeof *pinned));
    expect_pointer("first", g, cudaMemoryTypeDevice);
    expect_pointer("last", g + 99, cudaMemoryTypeDevice);
    expect_pointer("pinned", pinned + 99, cudaMemoryTypeHost);
    expect_pointer("plain", plain, cudaMemoryTypeUnregistered);
    expect_pointer("null", nullptr, cudaMemoryTypeUnregistered);
    EXPECT(cudaPointerGetAttributes(nullptr, g) == cudaErrorInvalidValue, "no attributes");
    (void)cudaGetLastError();
#ifdef NSA_SIMT // CUDA rounds the sizes of allocations up, and may keep freed memory mapped
    expect_pointer("behind", g + 100, cudaMemoryTypeUnregistered);
    expect_pointer("before", (char *)g - 1, cudaMemoryTypeUnregistered);
    expect_pointer("far", g + (1 << 28), cudaMemoryTypeUnregistered);
    expect_pointer("behind pinned", pinned + 100, cudaMemoryTypeUnregistered);
    expect_pointer("before pinned", (char *)pinned - 1, cudaMemoryTypeUnregistered);
#endif
    EXPECT_OK(cudaFree(g));
    EXPECT_OK(cudaFreeHost(pinned));
    EXPECT_OK(cudaFree(nullptr));
    EXPECT_OK(cudaFreeHost(nullptr));
#ifdef NSA_SIMT
    expect_pointer("freed", g, cudaMemoryTypeUnregistered);
    expect_pointer("freed pinned", pinned, cudaMemoryTypeUnregistered);
    EXPECT(cudaFreeHost(plain) != cudaSuccess, "cudaFreeHost: of a local array");
    expect_report("cudaFreeHost", "is not what cudaMallocHost gave", "");
#endif
}

// A graph of a copy in, a kernel and copies out. It reads and writes the host's memory when it
// runs, and so does a kernel that is given page-locked memory.
static void test_graph_copies() {
    const int n = 32;
    float *in, *out, plain[n], *g = device<float>(n);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    EXPECT_OK(cudaHostAlloc(&in, n * sizeof *in, cudaHostAllocDefault));
    EXPECT_OK(cudaHostAlloc(&out, n * sizeof *out, cudaHostAllocMapped));
    EXPECT_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    in[n - 1] = out[n - 1] = plain[n - 1] = -1;
    EXPECT_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    EXPECT_OK(cudaMemcpyAsync(g, in, n * sizeof *g, cudaMemcpyHostToDevice, stream));
    NSA_LAUNCH(add, dim3(1), dim3(n), 0, stream, g, 1.0f);
    EXPECT_OK(cudaMemcpyAsync(out, g, n * sizeof *g, cudaMemcpyDeviceToHost, stream));
    NSA_LAUNCH(add, dim3(1), dim3(n), 0, stream, out, 10.0f);
    EXPECT_OK(cudaMemcpyAsync(plain, g, n * sizeof *g, cudaMemcpyDeviceToHost, stream));
    EXPECT_OK(cudaGetLastError());
    EXPECT_OK(cudaStreamEndCapture(stream, &graph));
    EXPECT_OK(cudaGraphInstantiate(&exec, graph, 0));
    EXPECT(out[n - 1] == -1 && plain[n - 1] == -1, "graph copies: they ran in the capture");
    for (int turn = 1; turn <= 2; turn++) {
        for (int i = 0; i < n; i++)
            in[i] = (float)(100 * turn + i);
        EXPECT_OK(cudaGraphLaunch(exec, stream));
        EXPECT_OK(cudaStreamSynchronize(stream));
        float want = (float)(100 * turn + n);
        EXPECT(out[n - 1] == want + 10, "graph copies: pinned %g", (double)out[n - 1]);
        EXPECT(plain[n - 1] == want, "graph copies: plain %g", (double)plain[n - 1]);
    }
    free_all();
#ifdef NSA_SIMT
    EXPECT(cudaGraphLaunch(exec, stream) != cudaSuccess, "graph copies: of freed memory");
    expect_report("graph copies", "cudaMemcpyAsync: the destination, 128 bytes from",
                  "is not inside an allocation");
#endif
    EXPECT_OK(cudaGraphExecDestroy(exec));
    EXPECT_OK(cudaGraphDestroy(graph));
    EXPECT_OK(cudaStreamDestroy(stream));
    EXPECT_OK(cudaFreeHost(in));
    EXPECT_OK(cudaFreeHost(out));
}

// The default stream next to both kinds of streams, and the question whether one is captured.
static void test_default_stream() {
    float h[32] = {}, *g = device(32, h);
    cudaStream_t streams[2];
    cudaStreamCaptureStatus status;
    cudaGraph_t graph;
    EXPECT_OK(cudaStreamCreate(&streams[0]));
    EXPECT_OK(cudaStreamCreateWithFlags(&streams[1], cudaStreamNonBlocking));
    for (cudaStream_t stream : streams) {
        EXPECT_OK(cudaStreamIsCapturing(stream, &status));
        EXPECT(status == cudaStreamCaptureStatusNone, "default stream: %d", (int)status);
        EXPECT_OK(cudaStreamIsCapturing(0, &status));
        EXPECT_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        NSA_LAUNCH(add, dim3(1), dim3(32), 0, stream, g, 1.0f);
        EXPECT_OK(cudaStreamIsCapturing(stream, &status));
        EXPECT(status == cudaStreamCaptureStatusActive, "default stream: %d", (int)status);
        cudaError_t error = cudaStreamIsCapturing(0, &status);
        EXPECT(error == (stream == streams[0] ? cudaErrorStreamCaptureImplicit : cudaSuccess),
               "default stream, while another is captured: %s", cudaGetErrorName(error));
        (void)cudaGetLastError();
        EXPECT_OK(cudaStreamEndCapture(stream, &graph)); // the question did not harm it
        EXPECT_OK(cudaGraphDestroy(graph));
        NSA_LAUNCH(add, dim3(1), dim3(32), 0, (cudaStream_t)0, g, 1.0f);
        EXPECT_OK(cudaStreamSynchronize(0));
    }
    copy_to_host(h, g, 32);
    EXPECT(h[31] == 2, "default stream: %g", (double)h[31]);
    EXPECT_OK(cudaStreamDestroy(streams[0]));
    EXPECT_OK(cudaStreamDestroy(streams[1]));
#ifdef NSA_SIMT // CUDA reads through the pointer
    EXPECT(cudaStreamIsCapturing(streams[1], &status) != cudaSuccess, "a destroyed stream");
    expect_report("capturing", "cudaStreamIsCapturing: no such stream", "");
    NSA_LAUNCH(add, dim3(1), dim3(32), 0, streams[1], g, 1.0f);
    expect_report("launch", "kernel add: no such stream", "");
    EXPECT(cudaEventRecord(nullptr, 0) != cudaSuccess, "no event");
    expect_report("event", "cudaEventRecord: no such event", "");
#endif
    free_all();
}

// A captured stream may wait for work of its own capture, for nothing outside of it.
static void test_capture_waits() {
    float h[32] = {}, *g = device(32, h);
    cudaStream_t origin, joined;
    cudaEvent_t inside, outside;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    EXPECT_OK(cudaStreamCreateWithFlags(&origin, cudaStreamNonBlocking));
    EXPECT_OK(cudaStreamCreateWithFlags(&joined, cudaStreamNonBlocking));
    EXPECT_OK(cudaEventCreateWithFlags(&inside, cudaEventDisableTiming));
    EXPECT_OK(cudaEventCreateWithFlags(&outside, cudaEventDisableTiming));
    EXPECT_OK(cudaEventRecord(outside, joined));
    EXPECT_OK(cudaStreamBeginCapture(origin, cudaStreamCaptureModeGlobal));
    EXPECT(cudaStreamWaitEvent(origin, outside, 0) == cudaErrorStreamCaptureIsolation, "isolation");
    expect_report("isolation", "waits for an event that was recorded outside", "");
    EXPECT(cudaStreamEndCapture(origin, &graph) == cudaErrorStreamCaptureInvalidated, "isolation");
    (void)cudaGetLastError();
    EXPECT_OK(cudaStreamBeginCapture(origin, cudaStreamCaptureModeGlobal));
    EXPECT_OK(cudaEventRecord(inside, origin));
    EXPECT_OK(cudaStreamWaitEvent(joined, inside, 0));
    NSA_LAUNCH(add, dim3(1), dim3(32), 0, joined, g, 1.0f);
    EXPECT_OK(cudaEventRecord(outside, joined));
    EXPECT_OK(cudaStreamWaitEvent(origin, outside, 0));
    EXPECT_OK(cudaStreamEndCapture(origin, &graph));
    EXPECT_OK(cudaGraphInstantiate(&exec, graph, 0));
    EXPECT_OK(cudaGraphLaunch(exec, origin));
    EXPECT_OK(cudaStreamSynchronize(origin));
    copy_to_host(h, g, 32);
    EXPECT(h[31] == 1, "joined: %g", (double)h[31]);
    EXPECT_OK(cudaEventRecord(inside, origin)); // the capture has left both
    EXPECT_OK(cudaStreamWaitEvent(joined, inside, 0));
    EXPECT_OK(cudaStreamSynchronize(joined));
    EXPECT_OK(cudaGraphExecDestroy(exec));
    EXPECT_OK(cudaGraphDestroy(graph));
    EXPECT_OK(cudaEventDestroy(inside));
    EXPECT_OK(cudaEventDestroy(outside));
    EXPECT_OK(cudaStreamDestroy(origin));
    EXPECT_OK(cudaStreamDestroy(joined));
    free_all();
}

void test_pointers() {
    test_attributes();
    test_graph_copies();
    test_default_stream();
    test_capture_waits();
}
