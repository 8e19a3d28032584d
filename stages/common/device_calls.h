/**
 * @file device_calls.h
 * @brief The functions of nsa_device.h, in CUDA; a stage's table points to `nsa_calls`.
 */
#ifndef NSA_DEVICE_CALLS_H
#define NSA_DEVICE_CALLS_H

#include "common/device.h"
#include "nsa_device.h"

static nsa_status nsa_calls_alloc(void **memory, size_t bytes) {
    if (cudaMalloc(memory, bytes ? bytes : 1) == cudaSuccess)
        return NSA_OK;
    (void)cudaGetLastError();
    *memory = NULL;
    return nsa_fail(NSA_ERR_MEMORY, "no %zu bytes of device memory", bytes);
}

static void nsa_calls_free(void *memory) {
    (void)cudaFree(memory);
}

static nsa_status nsa_calls_copy(void *to, const void *from, size_t bytes) {
    if (bytes)
        NSA_CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
    NSA_CUDA(cudaStreamSynchronize(NULL)); /* a short copy may still be on its way */
    return NSA_OK;
}

static nsa_status nsa_calls_stream_new(void **stream) {
    NSA_CUDA(cudaStreamCreateWithFlags((cudaStream_t *)stream, cudaStreamNonBlocking));
    return NSA_OK;
}

static void nsa_calls_stream_free(void *stream) {
    if (stream)
        (void)cudaStreamDestroy((cudaStream_t)stream);
}

static nsa_status nsa_calls_wait(void *stream) {
    NSA_CUDA(cudaStreamSynchronize((cudaStream_t)stream));
    return NSA_OK;
}

static nsa_status nsa_calls_capture(void *stream) {
    NSA_CUDA(cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeGlobal));
    return NSA_OK;
}

static nsa_status nsa_calls_capture_end(void *stream, void **graph) {
    cudaGraph_t captured = NULL;
    *graph = NULL;
    NSA_CUDA(cudaStreamEndCapture((cudaStream_t)stream, &captured));
    const cudaError_t error = cudaGraphInstantiate((cudaGraphExec_t *)graph, captured, 0);
    (void)cudaGraphDestroy(captured);
    if (error == cudaSuccess)
        return NSA_OK;
    *graph = NULL;
    return nsa_fail(NSA_ERR_DEVICE, "cudaGraphInstantiate: %s", nsa_device_error(error));
}

static nsa_status nsa_calls_launch(void *graph, void *stream) {
    NSA_CUDA(cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)stream));
    return NSA_OK;
}

static void nsa_calls_graph_free(void *graph) {
    if (graph)
        (void)cudaGraphExecDestroy((cudaGraphExec_t)graph);
}

static nsa_status nsa_calls_use(int device) {
    NSA_CUDA(cudaSetDevice(device));
    return NSA_OK;
}

/** For nsa_stage.calls. */
static const nsa_device_calls nsa_calls = {
    nsa_calls_alloc,       nsa_calls_free,       nsa_calls_copy,    nsa_calls_stream_new,
    nsa_calls_stream_free, nsa_calls_wait,       nsa_calls_capture, nsa_calls_capture_end,
    nsa_calls_launch,      nsa_calls_graph_free, nsa_calls_use};

#endif
