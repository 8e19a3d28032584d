// Memory calls of the host: allocation on a device, copies, fills. Copies may name any device.
#include "engine.h"

#include "common/fence.h"

#include <stdio.h>
#include <stdlib.h>

namespace simt {

cudaError_t device_alloc(void **address, size_t bytes) {
    Guard guard(lock);
    cudaError_t refused = not_in_capture("cudaMalloc");
    if (refused || !bytes)
        return refused;
    return arena_alloc(device_current(), address, bytes);
}

cudaError_t symbol_copy(void *to, const void *from, size_t bytes) {
    Guard guard(lock);
    memcpy(to, from, bytes);
    return cudaSuccess;
}

// Check that one side of a copy is where `kind` says.
static cudaError_t check_side(const char *call, const char *side, const void *address, size_t bytes,
                              cudaMemcpyKind kind, cudaMemcpyKind host, cudaMemcpyKind device) {
    bool on_device = arena_device(address) >= 0;
    bool either = kind == cudaMemcpyDefault;
    if (on_device && !either && (kind == cudaMemcpyHostToHost || kind == host))
        return report(cudaErrorInvalidValue, "%s: the %s is device memory, not the host's", call,
                      side);
    if (!on_device && !either && (kind == cudaMemcpyDeviceToDevice || kind == device))
        return report(cudaErrorInvalidValue, "%s: the %s is not device memory", call, side);
    const char *wrong = on_device ? arena_range(address, bytes) : nullptr;
    if (wrong)
        return report(cudaErrorInvalidValue, "%s: the %s, %s, is not inside an allocation", call,
                      side, wrong);
    return cudaSuccess;
}

static cudaError_t check_copy(const char *call, void *to, const void *from, size_t bytes,
                              cudaMemcpyKind kind) {
    cudaError_t error = check_side(call, "destination", to, bytes, kind, cudaMemcpyDeviceToHost,
                                   cudaMemcpyHostToDevice);
    return error ? error
                 : check_side(call, "source", from, bytes, kind, cudaMemcpyHostToDevice,
                              cudaMemcpyDeviceToHost);
}

struct Rows {
    char *to;
    const char *from;
    size_t to_pitch, from_pitch, width, height;
};

// Graphs are checked again when they run: what they copy may have been freed since.
static cudaError_t check_rows(const char *call, const Rows &r, cudaMemcpyKind kind) {
    cudaError_t error = cudaSuccess;
    size_t step = r.height > 1 ? r.height - 1 : 1; // the first row and the last
    for (size_t i = 0; i < r.height && !error; i += step)
        error = check_copy(call, r.to + i * r.to_pitch, r.from + i * r.from_pitch, r.width, kind);
    return error;
}

static cudaError_t copy_rows(const char *call, const Rows &r, cudaMemcpyKind kind) {
    cudaError_t error = check_rows(call, r, kind);
    if (error)
        return error;
    arena_open(EVERY_DEVICE);
    for (size_t i = 0; i < r.height; i++)
        memmove(r.to + i * r.to_pitch, r.from + i * r.from_pitch, r.width);
    arena_close(EVERY_DEVICE);
    return cudaSuccess;
}

static cudaError_t copy(const char *call, const Rows &r, cudaMemcpyKind kind, cudaStream_t stream) {
    if (!r.width || !r.height)
        return cudaSuccess;
    if (!stream_known(stream))
        return report(cudaErrorInvalidResourceHandle, "%s: no such stream", call);
    if (r.to_pitch < r.width || r.from_pitch < r.width)
        return report(cudaErrorInvalidValue, "%s: a pitch is smaller than the width %zu", call,
                      r.width);
    cudaError_t error = check_rows(call, r, kind);
    return error ? error : submit(stream, [=] { return copy_rows(call, r, kind); });
}

} // namespace simt

using namespace simt;

cudaError_t cudaFree(void *address) {
    Guard guard(lock);
    cudaError_t refused = not_in_capture("cudaFree");
    return refused || !address ? refused : arena_free(address);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    Guard guard(lock);
    size_t used;
    arena_usage(device_current(), &used, total);
    *available = *total - used;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    Guard guard(lock);
    cudaError_t refused = not_in_capture("cudaMemcpy");
    Rows rows = {(char *)to, (const char *)from, bytes, bytes, bytes, 1};
    return refused ? refused : copy("cudaMemcpy", rows, kind, nullptr);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    Guard guard(lock);
    Rows rows = {(char *)to, (const char *)from, bytes, bytes, bytes, 1};
    return copy("cudaMemcpyAsync", rows, kind, stream);
}

cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind) {
    Guard guard(lock);
    cudaError_t refused = not_in_capture("cudaMemcpy2D");
    Rows rows = {(char *)to, (const char *)from, to_pitch, from_pitch, width, height};
    return refused ? refused : copy("cudaMemcpy2D", rows, kind, nullptr);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    Guard guard(lock);
    Rows rows = {(char *)to, (const char *)from, to_pitch, from_pitch, width, height};
    return copy("cudaMemcpy2DAsync", rows, kind, stream);
}

static cudaError_t check_fill(const char *call, const void *to, size_t bytes) {
    const char *wrong = arena_device(to) >= 0 ? arena_range(to, bytes) : "memory of the host";
    return wrong ? report(cudaErrorInvalidValue, "%s: %s, is not inside an allocation", call, wrong)
                 : cudaSuccess;
}

static cudaError_t fill(const char *call, void *to, int byte, size_t bytes, cudaStream_t stream) {
    if (!bytes)
        return cudaSuccess;
    if (!stream_known(stream))
        return report(cudaErrorInvalidResourceHandle, "%s: no such stream", call);
    cudaError_t wrong = check_fill(call, to, bytes);
    return wrong ? wrong : submit(stream, [=] {
        cudaError_t error = check_fill(call, to, bytes);
        if (error)
            return error;
        arena_open(EVERY_DEVICE);
        memset(to, byte, bytes);
        arena_close(EVERY_DEVICE);
        return cudaSuccess;
    });
}

cudaError_t cudaMemset(void *to, int byte, size_t bytes) {
    Guard guard(lock);
    cudaError_t refused = not_in_capture("cudaMemset");
    return refused ? refused : fill("cudaMemset", to, byte, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void *to, int byte, size_t bytes, cudaStream_t stream) {
    Guard guard(lock);
    return fill("cudaMemsetAsync", to, byte, bytes, stream);
}
