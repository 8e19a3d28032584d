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

// ------------------------------------------------------------------- fiber.cpp

// A suspended fiber is the address at which its registers were saved, on its own stack.
typedef void *Context;

void stacks_map();                               // call first; maps once
Context stack_prepare(int stack, void (*run)()); // a context that starts in `run`, on that stack
bool stack_guards(const void *address);          // does it lie in a stack's guard?
// Save the running context and continue another. `ends`: the running one is never continued.
// `stack` is the stack of `to`, -1 for the thread that runs the block.
void context_switch(Context *save, Context to, int stack, bool ends);
void context_arrive(); // a new context must call this first
void stacks_abandon(); // discard the stacks of an abandoned block

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
bool launch_fault(const char *format,
                  ...); // fail() for signal handlers; false outside of kernels

// What a thread waits for.
struct Wait {
    const char *what; // NULL: it does not wait
    Where where;
    uint32_t mask; // 0: at a barrier of the block
};

// For warp.cpp: the running thread waits; lanes_wake() makes lanes of a warp ready again.
void thread_wait(const Wait &wait);
void thread_continue();                       // returns when the scheduler picks it again
bool same_call(const char *a, const char *b); // do both name the same barrier or collective?
void lanes_wake(int warp, uint32_t lanes);

enum Order { FORWARD, REVERSE, RANDOM };
Order thread_order();
uint32_t random_next();

// -------------------------------------------------------------------- warp.cpp

void warps_reset(int warps);                     // no collective is pending
uint32_t lanes_missing(int warp, uint32_t mask); // lanes that have not arrived yet

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
bool shared_owns(const void *address, size_t bytes);
bool shared_check(); // false if something was written past the dynamic part

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

// ------------------------------------------------------------ tensor_core.cpp, device.cpp

void copies_reset();  // at the start of a block: no copy is pending
int device_major();   // major version of the simulated architecture
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
