// What the simulator's own files share. Everything here is used by one operating system thread at a
// time: the one that holds `lock`.
#ifndef SIMT_ENGINE_H
#define SIMT_ENGINE_H

#include "kernel.h"
#include "host.h"

#include <functional>
#include <mutex>
#include <stdarg.h>

namespace simt {

enum { MAX_THREADS = 1024, MAX_WARPS = 32 };

extern std::recursive_mutex lock; // held by every call of the runtime
typedef std::lock_guard<std::recursive_mutex> Guard;

// ------------------------------------------------------------------- fiber.cpp

// A suspended fiber is the address at which its registers were saved, on its own stack.
typedef void *Context;

void stacks_map();                               // before anything else; does it once
Context stack_prepare(int stack, void (*run)()); // a context that begins with `run`, on that stack
bool stack_guards(const void *address);          // is it in the guard of a stack?
// Save the running context and continue another. `ends`: nobody will continue the running one.
// `stack` is that of `to`, -1 for the caller of the block.
void context_switch(Context *save, Context to, int stack, bool ends);
void context_arrive(); // a context that begins must call this first
void stacks_abandon(); // forget what the fibers of an abandoned block left behind

// ------------------------------------------------------------------- block.cpp

// One launch, checked, with its arguments bound into `body`.
struct Launch {
    const char *name;
    dim3 grid, block;
    size_t shared;
    std::function<void()> body;
};

// Run all blocks. False if it was abandoned; the report then says why.
bool launch_run(const Launch &launch);
const Launch *launch_running(); // NULL outside of kernels
bool launch_fault(const char *format,
                  ...); // from a signal handler: fail(), if inside a kernel

// Where a thread waits.
struct Wait {
    const char *what; // NULL: nowhere
    Where where;
    uint32_t mask; // 0: at a barrier of the block
};

// For warp.cpp: the running thread waits; `wake` makes lanes of its warp ready again.
void thread_wait(const Wait &wait);
void thread_continue();                       // returns once it is ready and its turn has come
bool same_call(const char *a, const char *b); // two names of what is waited at
void lanes_wake(int warp, uint32_t lanes);

enum Order { FORWARD, REVERSE, RANDOM };
Order thread_order();
uint32_t random_next();

// -------------------------------------------------------------------- warp.cpp

void warps_reset(int warps);                     // no collective is under way
uint32_t lanes_missing(int warp, uint32_t mask); // who has not come to the meeting of that mask

// ------------------------------------------------------------------ memory.cpp

void arena_open();                         // device memory may be touched
void arena_close();                        // and not any more
bool arena_owns(const void *address);      // does it lie in the arena, allocated or not?
bool arena_check(char *text, size_t size); // false, and which fence broke
bool arena_describe(const void *address, char *text, size_t size); // whose address this is
// NULL if that range of device memory may be copied to or from, else what is wrong with it
const char *arena_range(const void *address, size_t bytes);
cudaError_t arena_alloc(void **address, size_t bytes);
cudaError_t arena_free(void *address);
void arena_usage(size_t *used, size_t *size);

// ------------------------------------------------------------------ shared.cpp

void shared_start(size_t dynamic); // of a launch: find and check what there is
void shared_poison();              // of a block
bool shared_owns(const void *address, size_t bytes);
bool shared_check(); // false if something was written behind the dynamic part

// ------------------------------------------------------------------ report.cpp

cudaError_t report(cudaError_t error, const char *format, ...)
    __attribute__((format(printf, 2, 3))); // keep the text and the error; returns the error
void report_text(const char *format, va_list args); // with kernel, block and thread in front
const char *setting(const char *name, const char *fallback); // an environment variable
void note_kernel(const char *name); // that it runs, to the file NSA_SIMT_KERNELS

// ------------------------------------------------------------------ faults.cpp

void faults_catch(); // while a kernel runs: bad addresses, division by zero
void faults_release();
void faults_watch_host(); // say so when the host touches device memory

// ------------------------------------------------------------ tensor.cpp, device.cpp

void copies_reset(); // of a block: no asynchronous copy is under way
int device_major();  // of the architecture that is simulated

// ------------------------------------------------------------------ stream.cpp

// Run work now, or record it if its stream is being captured.
cudaError_t submit(cudaStream_t stream, std::function<cudaError_t()> work);
bool capturing(cudaStream_t stream);
// An error if anything is being captured: `what` would have to wait, or allocate.
cudaError_t not_in_capture(const char *what);
bool stream_known(cudaStream_t stream);

} // namespace simt

#endif
