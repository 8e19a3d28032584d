/**
 * @file nsa_device.h
 * @brief Memory, streams and graphs of the device that a stage runs on, for callers that have no
 * CUDA of their own: the harness, and programs that run on the simulator too. A program with CUDA
 * uses its own calls.
 */
#ifndef NSA_DEVICE_H
#define NSA_DEVICE_H

#include "nsa.h"

/** What a caller can do on the device of a stage, `nsa_stage.calls`. Errors are NSA_ERR_DEVICE or
 * NSA_ERR_MEMORY, with a text. */
typedef struct nsa_device_calls {
    /** Allocate; bytes may be 0. */
    nsa_status (*alloc)(void **memory, size_t bytes);
    /** Free; NULL is allowed. */
    void (*free)(void *memory);
    /** Copy from the host or the device to the other or the same, and wait. */
    nsa_status (*copy)(void *to, const void *from, size_t bytes);
    /** Make a stream that is not ordered with the default one. */
    nsa_status (*stream_new)(void **stream);
    /** Destroy a stream; NULL is allowed. */
    void (*stream_free)(void *stream);
    /** Wait for what was submitted to a stream. */
    nsa_status (*wait)(void *stream);
    /** From now on what is submitted to the stream becomes part of a graph. */
    nsa_status (*capture)(void *stream);
    /** End the capture: the graph, NULL after an error. */
    nsa_status (*capture_end)(void *stream, void **graph);
    /** Submit a graph. */
    nsa_status (*launch)(void *graph, void *stream);
    /** Destroy a graph; NULL is allowed. */
    void (*graph_free)(void *graph);
    /** Use this device from now on, in this thread. @return NSA_ERR_DEVICE if there is none */
    nsa_status (*use)(int device);
} nsa_device_calls;

#endif
