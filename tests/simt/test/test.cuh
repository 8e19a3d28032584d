// The simulator's own tests: what their files share.
#ifndef SIMT_TEST_CUH
#define SIMT_TEST_CUH

#include "common/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Count one expectation; print it if it does not hold.
void expect(bool holds, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
#define EXPECT(holds, ...) expect(holds, __FILE__, __LINE__, __VA_ARGS__)
#define EXPECT_OK(call)                                                                            \
    do {                                                                                           \
        cudaError_t error_ = (call);                                                               \
        EXPECT(error_ == cudaSuccess, "%s: %s", #call, nsa_device_error(error_));                  \
    } while (0)

extern const char *order; // the current order, for messages

// Device memory, filled from `host` if that is given; free_all() frees it.
void *device_copy(size_t bytes, const void *host);
template <class T> T *device(size_t n, const T *host = nullptr) {
    return (T *)device_copy(n * sizeof(T), host);
}
void free_all();
template <class T> void copy_to_host(T *host, const T *from, size_t n) {
    EXPECT_OK(cudaMemcpy(host, from, n * sizeof(T), cudaMemcpyDeviceToHost));
}

// The last call must have failed, and on the simulator its report must contain these words.
void expect_report(const char *what, const char *first, const char *second);

void test_basics();   // basics.cu: grids, shared memory, shuffles, votes, atomics
void test_tensor();   // tensor.cu: bfloat16, tensor cores, asynchronous copies
void test_runtime();  // runtime.cu: streams, events, graphs, device properties
void test_pointers(); // pointers.cu: what a pointer points to, page-locked memory, copies in graphs
void test_devices();  // devices.cu: a second device, where there is one
void test_errors();   // errors.cu: what must be reported, and how; simulator only
void test_async();    // async.cu: asynchronous copies that are read too early; simulator only

#endif
