// The runtime's calls: streams, events, graphs, copies, device properties.
#include "test.cuh"

static __global__ void scale(float *a, float by, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        a[i] *= by;
}

static void test_streams() {
    const int n = 256;
    float *h, *g = device<float>(n), ms = -1;
    cudaStream_t one, two;
    cudaEvent_t start, stop;
    EXPECT_OK(cudaMallocHost(&h, n * sizeof *h));
    EXPECT_OK(cudaStreamCreate(&one));
    EXPECT_OK(cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking));
    EXPECT_OK(cudaEventCreate(&start));
    EXPECT_OK(cudaEventCreate(&stop));
    for (int i = 0; i < n; i++)
        h[i] = (float)i;
    EXPECT_OK(cudaEventRecord(start, one));
    EXPECT_OK(cudaMemcpyAsync(g, h, n * sizeof *h, cudaMemcpyHostToDevice, one));
    NSA_LAUNCH(scale, dim3(2), dim3(128), 0, one, g, 2.0f, n);
    EXPECT_OK(cudaEventRecord(stop, one));
    EXPECT_OK(cudaStreamWaitEvent(two, stop, 0));
    NSA_LAUNCH(scale, dim3(2), dim3(128), 0, two, g, 3.0f, n);
    EXPECT_OK(cudaGetLastError());
    EXPECT_OK(cudaMemcpyAsync(h, g, n * sizeof *h, cudaMemcpyDeviceToHost, two));
    EXPECT_OK(cudaStreamSynchronize(two));
    EXPECT_OK(cudaEventSynchronize(stop));
    EXPECT_OK(cudaEventElapsedTime(&ms, start, stop));
    EXPECT(h[1] == 6 && h[255] == 6 * 255, "streams: %g %g", (double)h[1], (double)h[255]);
    EXPECT(ms >= 0 && ms < 60000, "streams: %g ms", (double)ms);
    EXPECT_OK(cudaEventDestroy(start));
    EXPECT_OK(cudaEventDestroy(stop));
    EXPECT_OK(cudaStreamDestroy(one));
    EXPECT_OK(cudaStreamDestroy(two));
    EXPECT_OK(cudaFreeHost(h));
    free_all();
}

static void test_graph() {
    const int n = 64;
    float h[n], by = 2;
    float *g = device<float>(n);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    EXPECT_OK(cudaStreamCreate(&stream));
    EXPECT_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    NSA_LAUNCH(scale, dim3(1), dim3(64), 0, stream, g, by, n);
    by = 5; // the graph keeps the values of the launch
    NSA_LAUNCH(scale, dim3(1), dim3(64), 0, stream, g, by, n);
    EXPECT_OK(cudaStreamEndCapture(stream, &graph));
    EXPECT_OK(cudaGraphInstantiate(&exec, graph, 0));
    EXPECT_OK(cudaGraphDestroy(graph));
    for (int i = 0; i < n; i++)
        h[i] = 1;
    EXPECT_OK(cudaMemcpy(g, h, sizeof h, cudaMemcpyHostToDevice));
    for (int i = 0; i < 3; i++)
        EXPECT_OK(cudaGraphLaunch(exec, stream));
    EXPECT_OK(cudaStreamSynchronize(stream));
    copy_to_host(h, g, n);
    EXPECT(h[0] == 1000 && h[63] == 1000, "graph: %g, not 1000", (double)h[0]);
    EXPECT_OK(cudaGraphExecDestroy(exec));
    EXPECT_OK(cudaStreamDestroy(stream));
    free_all();
}

static void test_copies() {
    int h[4][5], back[4][3], *g = device<int>(4 * 8);
    for (int i = 0; i < 20; i++)
        h[i / 5][i % 5] = i;
    EXPECT_OK(cudaMemset(g, 0, 4 * 8 * sizeof *g));
    EXPECT_OK(
        cudaMemcpy2D(g, 8 * sizeof *g, h, sizeof h[0], 5 * sizeof *g, 4, cudaMemcpyHostToDevice));
    EXPECT_OK(cudaMemcpy2D(back, sizeof back[0], g + 1, 8 * sizeof *g, 3 * sizeof *g, 4,
                           cudaMemcpyDeviceToHost));
    EXPECT(back[0][0] == 1 && back[3][2] == 18, "copies: %d %d", back[0][0], back[3][2]);
    free_all();
}

static void test_device() {
    cudaDeviceProp prop;
    int count = 0, optin = 0, blocks = 0;
    EXPECT_OK(cudaGetDeviceCount(&count));
    EXPECT_OK(cudaGetDeviceProperties(&prop, 0));
    EXPECT_OK(cudaDeviceGetAttribute(&optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    EXPECT_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, scale, 256, 0));
    EXPECT_OK(cudaFuncSetAttribute(scale, cudaFuncAttributeMaxDynamicSharedMemorySize, optin));
    EXPECT(count >= 1 && prop.warpSize == 32 && prop.major >= 7, "device: %d %d", count,
           prop.major);
    EXPECT(optin == (int)prop.sharedMemPerBlockOptin && optin >= 64 << 10, "device: %d", optin);
    EXPECT(blocks >= 1, "device: occupancy %d", blocks);
    EXPECT(*nsa_device_name(), "device: no name");
}

#ifdef NSA_SIMT
// What NSA_SIMT_DEVICE says; without it a program with device_mma.h in it, as this one in
// tensor.cu, gets the device with the least shared memory of those with tensor cores for bfloat16.
static void test_devices_by_name() {
    static const struct {
        const char *asked, *got;
        int optin; // KiB
    } devices[] = {{nullptr, "simulator (sm_86)", 99},  {"sm_75", "simulator (sm_75)", 64},
                   {"sm_80", "simulator (sm_80)", 163}, {"sm_86", "simulator (sm_86)", 99},
                   {"sm_89", "simulator (sm_89)", 99},  {"sm_90", "simulator (sm_90)", 227}};
    for (const auto &d : devices) {
        cudaDeviceProp prop;
        if (d.asked)
            setenv("NSA_SIMT_DEVICE", d.asked, 1);
        else
            unsetenv("NSA_SIMT_DEVICE");
        EXPECT_OK(cudaGetDeviceProperties(&prop, 0));
        EXPECT(!strcmp(prop.name, d.got) && prop.sharedMemPerBlockOptin == (size_t)d.optin << 10,
               "device %s: %s, %zu bytes of shared memory", d.asked ? d.asked : "by default",
               prop.name, prop.sharedMemPerBlockOptin);
    }
    setenv("NSA_SIMT_DEVICE", "sm_80", 1); // as in main()
}
#endif

void test_runtime() {
    test_streams();
    test_graph();
    test_copies();
    test_device();
#ifdef NSA_SIMT
    test_devices_by_name();
#endif
}
