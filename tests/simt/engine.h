// What the simulator's own files share. Only the operating system thread that holds `lock` may use
// it.
#ifndef SIMT_ENGINE_H
#define SIMT_ENGINE_H

#include "kernel.h"
#include "host.h"

#include <functional>
#include <mutex>
#include <stdarg.h>

namespace simt {

enum { MAX_THREADS = 1024, MAX_WARPS = 32, MAX_DEVICES = 2, EVERY_DEVICE = -1 };

extern std::recursive_mutex lock; // held by every call of the runtime
typedef std::lock_guard<std::recursive_mutex> Guard;

// ------------------------------------------------------------------- block.cpp

// One launch, checked, with its arguments bound into `body`.
struct Launch {
    const char *name;
    dim3 grid, block;
    size_t shared;
    int device;
    std::function<void()> body;
};

// Run all blocks. False if the launch was abandoned; the report says why.
bool launch_run(const Launch &launch);
const Launch *launch_running(); // NULL outside of kernels
extern int launch_major;        // major version of the simulated architecture
bool launch_fault(const char *format,
                  ...); // fail() for signal handlers; false outside of kernels

// ------------------------------------------------------------------ memory.cpp

// Each device has an arena of its own. Open: its memory may be touched.
void arena_open(int device); // EVERY_DEVICE for copies
void arena_close(int device);
int arena_device(const void *address); // whose arena it lies in, allocated or not; -1: in none
bool arena_check(int device, char *text, size_t size); // false if a fence is broken; text: which
bool arena_describe(const void *address, char *text, size_t size); // names its allocation
bool arena_holds(const void *address, size_t bytes); // do all of them lie in one allocation?
// NULL if that range of device memory may be copied to or from, else what is wrong
const char *arena_range(const void *address, size_t bytes);
cudaError_t arena_alloc(int device, void **address, size_t bytes);
cudaError_t arena_free(void *address);
void arena_usage(int device, size_t *used, size_t *size);

// ------------------------------------------------------------------ shared.cpp

void shared_start(size_t dynamic); // of a launch: find the static part, set up the fence
void shared_poison();              // at the start of each block: fill with NaN
bool shared_check();               // false if something was written past the dynamic part

// The two parts of the running launch, and in each of them rows of 16 bytes.
struct SharedPart {
    char *start;
    size_t bytes, first_row;
};
extern SharedPart shared_dynamic, shared_static;
size_t shared_rows();

inline bool shared_inside(const SharedPart &part, const void *address, size_t bytes) {
    size_t offset = (size_t)((const char *)address - part.start);
    return offset < part.bytes && bytes <= part.bytes - offset;
}
inline bool shared_owns(const void *address, size_t bytes) {
    return shared_inside(shared_dynamic, address, bytes) ||
           shared_inside(shared_static, address, bytes);
}
inline size_t shared_row(const void *address) { // of an address in shared memory
    const SharedPart &p =
        shared_inside(shared_dynamic, address, 1) ? shared_dynamic : shared_static;
    return p.first_row + ((uintptr_t)address / 16 - (uintptr_t)p.start / 16);
}

// ------------------------------------------------------------------ report.cpp

cudaError_t report(cudaError_t error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));                   // record both; returns the error
void report_text(const char *format, va_list args);          // prefixed by kernel, block and thread
const char *setting(const char *name, const char *fallback); // an environment variable
void note_kernel(const char *name); // append its name to the file NSA_SIMT_KERNELS

// ------------------------------------------------------------------ faults.cpp

void faults_catch(); // while a kernel runs: invalid address, division by zero
void faults_release();
void faults_watch_host(); // report host code that touches device memory

// ------------------------------------------------------------ async_copy.cpp, device.cpp

void copies_reset();  // at the start of a block: no copy is pending
int device_major();   // major version of the simulated architecture: reads the environment
int device_current(); // of the calling thread of the host

// ------------------------------------------------------------------ stream.cpp

// Run work now, or record it if its stream is being captured.
cudaError_t submit(cudaStream_t stream, std::function<cudaError_t()> work);
bool capturing(cudaStream_t stream);
// An error if a stream is being captured: `what` would wait or allocate.
cudaError_t not_in_capture(const char *what);
bool stream_known(cudaStream_t stream);
int stream_device(cudaStream_t stream); // of the default stream: the current device

} // namespace simt

#endif
