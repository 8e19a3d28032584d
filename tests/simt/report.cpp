// Error reports: texts, and CUDA's error codes.
#include "engine.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <vector>

static char last_report[512];
static cudaError_t pending = cudaSuccess;

const char *simt_last_report() {
    return last_report;
}

namespace simt {

const char *setting(const char *name, const char *fallback) {
    const char *text = getenv(name);
    return text && *text ? text : fallback;
}

static void record_error(cudaError_t error, const char *text) {
    if (pending == cudaSuccess) // only the first error; others follow from it
        snprintf(last_report, sizeof last_report, "%s", text);
    if (pending == cudaSuccess)
        pending = error;
    if (strcmp(setting("NSA_SIMT_VERBOSE", "0"), "0"))
        fprintf(stderr, "simulator: %s\n", text);
}

cudaError_t report(cudaError_t error, const char *format, ...) {
    char text[sizeof last_report];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    record_error(error, text);
    return error;
}

void report_text(const char *format, va_list args) {
    char text[sizeof last_report];
    const Launch *l = launch_running();
    int n = snprintf(text, sizeof text,
                     "kernel %s, block (%u,%u,%u), thread (%u,%u,%u): ", l ? l->name : "?",
                     blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    if (n > 0 && (size_t)n < sizeof text)
        vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    record_error(cudaErrorLaunchFailure, text);
}

// With NSA_SIMT_KERNELS=FILE, append the name of every kernel that runs, once in a process, without
// template arguments. This shows which kernels a set of cases does not reach.
void note_kernel(const char *name) {
    static std::vector<std::string> noted;
    const char *file = setting("NSA_SIMT_KERNELS", nullptr);
    if (!file)
        return;
    name += *name == '(';
    std::string plain(name, strcspn(name, "<)"));
    if (std::find(noted.begin(), noted.end(), plain) != noted.end())
        return;
    noted.push_back(plain);
    FILE *to = fopen(file, "a"); // one write: processes may share the file
    if (!to || fprintf(to, "%s\n", plain.c_str()) < 0 || fclose(to))
        report(cudaErrorInvalidValue, "NSA_SIMT_KERNELS: cannot write to %s", file);
}

} // namespace simt

cudaError_t cudaGetLastError() {
    simt::Guard guard(simt::lock);
    cudaError_t error = pending;
    pending = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError() {
    return pending;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer", "invalid device pointer"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not begun in this stream"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing stream"},
};

const char *cudaGetErrorName(cudaError_t error) {
    for (const auto &e : errors)
        if (e.error == error)
            return e.name;
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
    for (const auto &e : errors)
        if (e.error == error)
            return e.text;
    return "unrecognized error code";
}
