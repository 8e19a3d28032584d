// Streams, events and graphs. Work runs when it is submitted, so a stream is always idle. A stream
// that is being captured stores its work in a graph, which cudaGraphLaunch() runs.
#include "engine.h"

#include <algorithm>
#include <time.h>
#include <vector>

typedef std::vector<std::function<cudaError_t()>> Work;

struct simtGraph {
    Work work;
};
struct simtGraphExec {
    Work work;
};
struct simtStream {
    simtGraph *graph; // that it is captured into, or NULL
    bool origin;      // whether the capture began here
};
struct simtEvent {
    bool recorded;
    double time;
    simtGraph *graph; // if recorded in a captured stream
};

namespace simt {

static std::vector<simtStream *> streams;
static int captures;         // in progress
static bool capture_invalid; // a call was made that is not allowed in a capture

bool stream_known(cudaStream_t stream) {
    return !stream || std::find(streams.begin(), streams.end(), stream) != streams.end();
}

bool capturing(cudaStream_t stream) {
    return stream && stream->graph;
}

cudaError_t not_in_capture(const char *what) {
    if (!captures)
        return cudaSuccess;
    capture_invalid = true;
    return report(cudaErrorStreamCaptureUnsupported, "%s: not while a stream is being captured",
                  what);
}

cudaError_t submit(cudaStream_t stream, std::function<cudaError_t()> work) {
    if (capturing(stream)) {
        stream->graph->work.push_back(std::move(work));
        return cudaSuccess;
    }
    if (!stream && captures) {
        capture_invalid = true;
        return report(cudaErrorStreamCaptureImplicit,
                      "work for the default stream while another is being captured");
    }
    return work();
}

static cudaError_t known(const char *call, cudaStream_t stream) {
    return stream_known(stream)
               ? cudaSuccess
               : report(cudaErrorInvalidResourceHandle, "%s: no such stream", call);
}

static double seconds() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// Wait for a stream; returns the last error.
static cudaError_t synchronize(const char *call, cudaStream_t stream) {
    cudaError_t error = known(call, stream);
    if (!error && (capturing(stream) || (!stream && captures)))
        error = not_in_capture(call);
    return error ? error : cudaGetLastError();
}

} // namespace simt

using namespace simt;

// --------------------------------------------------------------------- streams

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    Guard guard(lock);
    *stream = new simtStream{nullptr, false};
    streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Guard guard(lock);
    auto at = std::find(streams.begin(), streams.end(), stream);
    if (at == streams.end())
        return report(cudaErrorInvalidResourceHandle, "cudaStreamDestroy: no such stream");
    if (stream->graph && stream->origin) {
        captures--;
        delete stream->graph;
    }
    streams.erase(at);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Guard guard(lock);
    return synchronize("cudaStreamSynchronize", stream);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    Guard guard(lock);
    return synchronize("cudaStreamQuery", stream);
}

cudaError_t cudaDeviceSynchronize() {
    Guard guard(lock);
    cudaError_t refused = not_in_capture("cudaDeviceSynchronize");
    return refused ? refused : cudaGetLastError();
}

// A stream that waits for an event of a captured stream joins the capture.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    Guard guard(lock);
    cudaError_t error = known("cudaStreamWaitEvent", stream);
    if (!error && stream && event->graph && !stream->graph)
        stream->graph = event->graph;
    return error;
}

// ---------------------------------------------------------------------- events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    Guard guard(lock);
    *event = new simtEvent{false, 0, nullptr};
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Guard guard(lock);
    cudaError_t error = known("cudaEventRecord", stream);
    if (error)
        return error;
    event->graph = stream ? stream->graph : nullptr;
    return submit(stream, [event] {
        event->recorded = true;
        event->time = seconds();
        return cudaSuccess;
    });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    Guard guard(lock);
    if (captures && event->graph)
        return not_in_capture("cudaEventSynchronize");
    return cudaGetLastError();
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    return cudaEventSynchronize(event);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t stop) {
    Guard guard(lock);
    if (!start->recorded || !stop->recorded)
        return report(cudaErrorInvalidResourceHandle,
                      "cudaEventElapsedTime: an event was not recorded");
    *ms = (float)((stop->time - start->time) * 1e3);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    Guard guard(lock);
    delete event;
    return cudaSuccess;
}

// ---------------------------------------------------------------------- graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    Guard guard(lock);
    cudaError_t error = known("cudaStreamBeginCapture", stream);
    if (error)
        return error;
    if (!stream || stream->graph)
        return report(cudaErrorStreamCaptureUnsupported, "cudaStreamBeginCapture: %s",
                      stream ? "the stream is being captured already"
                             : "the default stream cannot be captured");
    stream->graph = new simtGraph;
    stream->origin = true;
    capture_invalid = captures++ ? capture_invalid : false;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    Guard guard(lock);
    *graph = nullptr;
    if (!stream_known(stream) || !stream || !stream->graph || !stream->origin)
        return report(cudaErrorStreamCaptureUnmatched,
                      "cudaStreamEndCapture: no capture began in this stream");
    simtGraph *made = stream->graph;
    for (simtStream *s : streams) // those that joined leave
        if (s->graph == made)
            s->graph = nullptr, s->origin = false;
    captures--;
    if (capture_invalid) {
        delete made;
        return report(cudaErrorStreamCaptureInvalidated,
                      "cudaStreamEndCapture: a call that is not allowed invalidated the capture");
    }
    *graph = made;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    Guard guard(lock);
    *status = capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    Guard guard(lock);
    *exec = graph ? new simtGraphExec{graph->work} : nullptr;
    return graph ? cudaSuccess : report(cudaErrorInvalidValue, "cudaGraphInstantiate: no graph");
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    Guard guard(lock);
    cudaError_t error = known("cudaGraphLaunch", stream);
    if (error || !exec)
        return error ? error : report(cudaErrorInvalidValue, "cudaGraphLaunch: no graph");
    if (capturing(stream))
        return not_in_capture("cudaGraphLaunch");
    arena_open();
    for (auto &work : exec->work)
        if (!error)
            error = work();
    arena_close();
    return error;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t stream) {
    Guard guard(lock);
    return known("cudaGraphUpload", stream);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    Guard guard(lock);
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    Guard guard(lock);
    delete graph;
    return cudaSuccess;
}
