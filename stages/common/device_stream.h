/**
 * @file device_stream.h
 * @brief What every CUDA stage does alike with streams: its own or the caller's, what waits, and
 * what a capture forbids.
 */
#ifndef NSA_DEVICE_STREAM_H
#define NSA_DEVICE_STREAM_H

#include "common/device.h"

/** The stream that calls submit to. */
typedef struct nsa_device_stream {
    int device;        /**< of the context */
    cudaStream_t now;  /**< where calls submit */
    cudaStream_t own;  /**< the same until the caller sets a stream */
    cudaEvent_t event; /**< recorded in a caller's stream, to learn whether it is of this device */
} nsa_device_stream;

/** Make the own stream, ordered with the default stream, on the device in use. */
static inline nsa_status nsa_stream_open(nsa_device_stream *s) {
    NSA_CUDA(cudaGetDevice(&s->device));
    NSA_CUDA(cudaEventCreate(&s->event));
    NSA_CUDA(cudaStreamCreate(&s->own));
    s->now = s->own;
    return NSA_OK;
}

/** Wait for the own stream, and destroy it. For a caller's stream the caller waits, before. */
static inline void nsa_stream_close(nsa_device_stream *s) {
    if (s->own) {
        (void)cudaStreamSynchronize(s->own); /* no one to report an error to */
        (void)cudaStreamDestroy(s->own);
    }
    if (s->event)
        (void)cudaEventDestroy(s->event);
}

/** For nsa_stage.set_stream. */
static inline nsa_status nsa_stream_set(nsa_device_stream *s, void *stream) {
    /* an event and a stream of two devices do not go together: the runtime says so */
    const cudaError_t error = cudaEventRecord(s->event, (cudaStream_t)stream);
    if (error != cudaSuccess)
        return nsa_fail(NSA_ERR_INPUT, "the stream %p is not of device %d: %s", stream, s->device,
                        nsa_device_error(error));
    s->now = (cudaStream_t)stream;
    return NSA_OK;
}

/** The end of a call: wait, unless the caller has set a stream. */
static inline nsa_status nsa_stream_finish(const nsa_device_stream *s) {
    if (s->now == s->own)
        NSA_CUDA(cudaStreamSynchronize(s->now));
    return NSA_OK;
}

/** @return 1 if what is submitted becomes part of a graph, or the runtime cannot tell. */
static inline int nsa_stream_captures(const nsa_device_stream *s) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(s->now, &status) != cudaSuccess ||
           status != cudaStreamCaptureStatusNone;
}

/** Copy between host and device, and wait: the host's memory may then be reused. What waits is
 * refused in a capture. */
static inline nsa_status nsa_stream_copy(const nsa_device_stream *s, void *to, const void *from,
                                         size_t bytes) {
    if (!bytes)
        return NSA_OK;
    if (nsa_stream_captures(s))
        return nsa_fail(NSA_ERR_STATE,
                        "this call waits, which a capture forbids: a graph holds device tensors "
                        "only, without NSA_CHECK_VALUES, and a pack's cu_seqlens and rows or a "
                        "step's active must be those of the load or step before");
    NSA_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s->now));
    NSA_CUDA(cudaStreamSynchronize(s->now));
    return NSA_OK;
}

#endif
