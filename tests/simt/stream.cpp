// Streams, events and graphs. Work runs when it is submitted, so a stream is always idle. A stream
// that is being captured stores its work in a graph, which cudaGraphLaunch() runs.
#include "engine.h"

#include <algorithm>
#include <time.h>
#include <vector>

typedef std::vector<std::function<cudaError_t()>> Work;

struct simtGraph {
    Work work;
    int device; // of the stream in which the capture began
};
struct simtGraphExec {
    Work work;
    int device;
};
struct simtStream {
    int device;
    bool blocking;    // ordered with the default stream
    simtGraph *graph; // that it is captured into, or NULL
    bool origin;      // whether the capture began here
};
struct simtEvent {
    int device;
    bool recorded;
    double time;
    simtGraph *graph; // if recorded in a captured stream
};

namespace simt {

static std::vector<simtStream *> streams;
static std::vector<simtEvent *> events;
static int captures;         // in progress
static bool capture_invalid; // a call was made that is not allowed in a capture

bool stream_known(cudaStream_t stream) {
    return !stream || std::find(streams.begin(), streams.end(), stream) != streams.end();
}

int stream_device(cudaStream_t stream) {
    return stream ? stream->device : device_current();
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

static cudaError_t known(const char *call, cudaEvent_t event) {
    return std::find(events.begin(), events.end(), event) != events.end()
               ? cudaSuccess
               : report(cudaErrorInvalidResourceHandle, "%s: no such event", call);
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

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    Guard guard(lock);
    *stream = new simtStream{device_current(), !(flags & cudaStreamNonBlocking), nullptr, false};
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
    error = error ? error : known("cudaStreamWaitEvent", event);
    if (error)
        return error;
    if (!stream && event->graph) {
        capture_invalid = true;
        return report(cudaErrorStreamCaptureImplicit,
                      "cudaStreamWaitEvent: the default stream cannot join a capture");
    }
    bool elsewhere = event->graph ? capturing(stream) && event->graph != stream->graph
                                  : capturing(stream) && event->recorded;
    if (elsewhere) {
        capture_invalid = true;
        return report(cudaErrorStreamCaptureIsolation,
                      "cudaStreamWaitEvent: a captured stream waits for an event that was recorded "
                      "outside of its capture");
    }
    if (event->graph)
        stream->graph = event->graph;
    return cudaSuccess;
}

// ---------------------------------------------------------------------- events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    Guard guard(lock);
    *event = new simtEvent{device_current(), false, 0, nullptr};
    events.push_back(*event);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Guard guard(lock);
    cudaError_t error = known("cudaEventRecord", stream);
    error = error ? error : known("cudaEventRecord", event);
    if (error)
        return error;
    if (event->device != stream_device(stream))
        return report(cudaErrorInvalidResourceHandle,
                      "cudaEventRecord: the event belongs to device %d, the stream to device %d",
                      event->device, stream_device(stream));
    event->graph = stream ? stream->graph : nullptr;
    return submit(stream, [event] {
        event->recorded = true;
        event->time = seconds();
        return cudaSuccess;
    });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    Guard guard(lock);
    cudaError_t error = known("cudaEventSynchronize", event);
    if (error)
        return error;
    if (captures && event->graph)
        return not_in_capture("cudaEventSynchronize");
    return cudaGetLastError();
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    return cudaEventSynchronize(event);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t stop) {
    Guard guard(lock);
    cudaError_t error = known("cudaEventElapsedTime", start);
    error = error ? error : known("cudaEventElapsedTime", stop);
    if (error)
        return error;
    if (start->device != stop->device)
        return report(cudaErrorInvalidResourceHandle,
                      "cudaEventElapsedTime: the events belong to two devices");
    if (!start->recorded || !stop->recorded)
        return report(cudaErrorInvalidResourceHandle,
                      "cudaEventElapsedTime: an event was not recorded");
    *ms = (float)((stop->time - start->time) * 1e3);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    Guard guard(lock);
    cudaError_t error = known("cudaEventDestroy", event);
    if (error)
        return error;
    events.erase(std::find(events.begin(), events.end(), event));
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
    stream->graph = new simtGraph{{}, stream->device};
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
    for (simtEvent *e : events)
        e->graph = e->graph == made ? nullptr : e->graph;
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
    cudaError_t error = known("cudaStreamIsCapturing", stream);
    if (error)
        return error;
    for (const simtStream *s : streams) // as CUDA answers; this harms no capture
        if (!stream && s->graph && s->blocking)
            return report(cudaErrorStreamCaptureImplicit,
                          "cudaStreamIsCapturing: of the default stream, while a stream that is "
                          "ordered with it is captured");
    *status = capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    Guard guard(lock);
    *exec = graph ? new simtGraphExec{graph->work, graph->device} : nullptr;
    return graph ? cudaSuccess : report(cudaErrorInvalidValue, "cudaGraphInstantiate: no graph");
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    Guard guard(lock);
    cudaError_t error = known("cudaGraphLaunch", stream);
    if (error || !exec)
        return error ? error : report(cudaErrorInvalidValue, "cudaGraphLaunch: no graph");
    if (capturing(stream))
        return not_in_capture("cudaGraphLaunch");
    arena_open(exec->device); // once for all its kernels
    for (auto &work : exec->work)
        if (!error)
            error = work();
    arena_close(exec->device);
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
