// One launch: its blocks one after the other, the threads of a block as fibers.
//
// NSA_SIMT_ORDER sets the order: forward and reverse run a warp until all its lanes wait, random
// picks any ready thread at every wait.
#include "schedule.h"

#include "fiber.h"
#include "warp.h"

#include <stdio.h>
#include <stdlib.h>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {

std::recursive_mutex lock;
int self;

struct Barrier {
    const char *what;
    Where where;
    int arrived;
    Votes votes, result;
};

static const long SPIN = 1L << 16; // yields without progress, for each thread, before a report

Thread threads[MAX_THREADS];
uint32_t ready[MAX_WARPS], ready_warps;
long spins;
Order order;
static int total, warps, live; // threads and warps of a block; threads that have not returned
static int free_stacks[MAX_THREADS], free_count, highest_stack;
static Barrier block_barrier;
static Context caller;
static const Launch *running;
int launch_major;
static bool abandoned;
static uint32_t random_state = 1;

const Launch *launch_running() {
    return running;
}

// ------------------------------------------------------------------- the order

static uint32_t random_next() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static void order_read() {
    const char *text = setting("NSA_SIMT_ORDER", "forward");
    order = !strncmp(text, "random", 6) ? RANDOM : !strcmp(text, "reverse") ? REVERSE : FORWARD;
    const char *colon = strchr(text, ':');
    uint32_t seed = colon ? (uint32_t)strtoul(colon + 1, nullptr, 10) : 0;
    random_state = seed * 2654435761u + 0x9e3779b9u;
    random_state += !random_state;
}

static int random_bit(uint32_t mask) {
    int turn = (int)(random_next() >> 8) & 31;
    uint32_t turned = turn ? (mask >> turn) | (mask << (32 - turn)) : mask;
    return (__builtin_ctz(turned) + turn) & 31;
}

static int next_random() {
    int warp = self >> 5;
    if (!ready[warp] || !(random_next() & 0x300))
        warp = random_bit(ready_warps);
    return warp << 5 | random_bit(ready[warp]);
}

int next_slow() {
    int warp = self >> 5, lane = self & 31;
    if (!ready_warps)
        return -1;
    if (order == RANDOM)
        return next_random();
    if (!ready[warp]) {
        warp = next_bit(ready_warps, warp);
        lane = order == REVERSE ? 0 : 31;
    }
    return warp << 5 | next_bit(ready[warp], lane);
}

// The thread to run next if this one yields: it is the last to run again.
static int next_other() {
    if (order == RANDOM)
        return next_random();
    int warp = self >> 5, lane = self & 31, next = next_bit(ready[warp], lane);
    bool around = order == FORWARD ? next <= lane : next >= lane;
    if (!around)
        return warp << 5 | next;
    warp = next_bit(ready_warps, warp);
    return warp << 5 | next_bit(ready[warp], order == REVERSE ? 0 : 31);
}

static void wake_all() {
    for (int w = 0; w < warps; w++)
        ready[w] = 0xffffffffu;
    if (total & 31)
        ready[warps - 1] = (1u << (total & 31)) - 1;
    ready_warps = warps == 32 ? 0xffffffffu : (1u << warps) - 1;
    spins = 0;
}

// ---------------------------------------------------------------------- fibers

static void fiber_main();

void thread_prepare(int thread) {
    Thread &t = threads[thread];
    t.stack = free_count ? free_stacks[--free_count] : highest_stack++;
    t.context = stack_prepare(t.stack, fiber_main);
}

#ifdef NSA_ASAN
void asan_leave_for_current() {
    asan_leave(threads[self].stack, false);
}
#endif

static void leave_block() {
    Context nobody;
    context_switch(&nobody, caller, -1, true);
}

// Body of every fiber: run its thread, then other new threads on the same stack.
static void fiber_main() {
    context_arrive();
    for (;;) {
        int stack = threads[self].stack;
        running->body();
        set_waiting(self);
        threads[self].wait = {"returned", {"", 0}, 0};
        live--;
        spins = 0;
        int next = next_ready();
        if (next < 0 && live)
            report_deadlock();
        if (next < 0)
            leave_block();
        copies_turn(self, next);
        set_current(next);
        if (threads[next].stack < 0) {
            threads[next].stack = stack;
            continue;
        }
        free_stacks[free_count++] = stack;
        Context nobody;
        context_switch(&nobody, threads[next].context, threads[next].stack, true);
    }
}

void yield() {
    if (++spins > SPIN * live)
        fail("%ld turns without progress: every thread that could run waits in a loop", spins - 1);
    take(turn_of(next_other()));
}

void fence() {
    copies_fence();
    yield();
}

void maybe_yield() {
    if (order == RANDOM && !(random_next() & 0x700))
        yield();
}

// -------------------------------------------------------------------- barriers

Votes barrier_votes() {
    return block_barrier.result;
}

Turn barrier(const char *what, int predicate, Where where) {
    if (!block_barrier.arrived) {
        block_barrier.what = what, block_barrier.where = where;
        block_barrier.votes = {0, 0, 1};
    } else if (!same_call(block_barrier.what, what) || block_barrier.where.line != where.line) {
        fail("%s (%s:%d): other threads of the block wait at %s (%s:%d)", what, where.file,
             where.line, block_barrier.what, block_barrier.where.file, block_barrier.where.line);
    }
    block_barrier.votes.count += predicate != 0;
    block_barrier.votes.any |= predicate != 0;
    block_barrier.votes.all &= predicate != 0;
    set_wait({what, where, 0});
    if (++block_barrier.arrived == total) {
        block_barrier.arrived = 0;
        block_barrier.result = block_barrier.votes;
        copies_block_barrier();
        wake_all();
    }
    return turn_of(next_ready());
}

bool same_text(const char *a, const char *b) {
    return !strcmp(a, b);
}

// Describe the state of a thread that did not arrive.
static const char *thread_state(int thread) {
    static char text[160];
    if (thread >= total)
        return "is not part of the block";
    const Wait &w = threads[thread].wait;
    if (!w.where.line)
        return "has returned";
    snprintf(text, sizeof text, "waits at %s (%s:%d)", w.what, w.where.file, w.where.line);
    return text;
}

// Deadlock: no thread is ready and some have not returned. At a barrier, report the first thread
// that is missing there, else the first that waits.
void report_deadlock() {
    int first = 0;
    for (;; first++) {
        const Wait &w = threads[first].wait;
        bool at_barrier = w.where.line && !w.mask;
        if (block_barrier.arrived ? !at_barrier : w.mask != 0)
            break;
    }
    set_current(first);
    const Wait &w = threads[first].wait;
    if (block_barrier.arrived)
        fail("%s (%s:%d): %d of %d threads did not arrive; this one %s", block_barrier.what,
             block_barrier.where.file, block_barrier.where.line, total - block_barrier.arrived,
             total, thread_state(first));
    uint32_t missing = lanes_missing(first >> 5, w.mask);
    int lane = __builtin_ctz(missing);
    fail("%s (%s:%d): %d lanes of the mask %08x did not arrive; lane %d %s", w.what, w.where.file,
         w.where.line, __builtin_popcount(missing), w.mask, lane,
         thread_state((first & ~31) | lane));
}

void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    report_text(format, args);
    va_end(args);
    abandoned = true;
    if (!running)
        abort();
    leave_block();
    __builtin_unreachable();
}

bool launch_fault(const char *format, ...) {
    if (!running)
        return false;
    va_list args;
    va_start(args, format);
    report_text(format, args);
    va_end(args);
    abandoned = true;
    leave_block();
    return true;
}

// ---------------------------------------------------------------------- blocks

static void threads_index(dim3 block) {
    int i = 0;
    for (unsigned z = 0; z < block.z; z++)
        for (unsigned y = 0; y < block.y; y++)
            for (unsigned x = 0; x < block.x; x++)
                threads[i++].index = uint3{x, y, z};
    total = i;
    warps = (total + 31) / 32;
}

static bool run_block() {
    for (int i = 0; i < total; i++)
        threads[i].stack = -1, threads[i].wait.what = nullptr;
    free_count = highest_stack = 0;
    block_barrier.arrived = 0;
    live = total;
    wake_all();
    warps_reset(warps);
    copies_reset();
    shared_poison();
    self = order == REVERSE ? 0 : (warps - 1) << 5 | 31; // thread 0 must not run first
    set_current(next_ready());
    thread_prepare(self);
    context_switch(&caller, threads[self].context, threads[self].stack, false);
    if (abandoned)
        stacks_abandon();
    else if (!shared_check())
        abandoned = true;
    return !abandoned;
}

static void set_block_index(size_t number, dim3 grid) {
    blockIdx.x = (unsigned)(number % grid.x);
    blockIdx.y = (unsigned)(number / grid.x % grid.y);
    blockIdx.z = (unsigned)(number / grid.x / grid.y);
}

// A number coprime to n: its multiples visit every block.
static size_t coprime_stride(size_t n) {
    for (size_t s = n / 2 + random_next() % n;; s++) {
        size_t a = s, b = n;
        while (b) {
            size_t r = a % b;
            a = b, b = r;
        }
        if (a == 1)
            return s;
    }
}

bool launch_run(const Launch &launch) {
    size_t n = (size_t)launch.grid.x * launch.grid.y * launch.grid.z;
    stacks_map();
    order_read();
    launch_major = device_major();
    threads_index(launch.block);
    blockDim = launch.block, gridDim = launch.grid;
    shared_start(launch.shared);
    abandoned = false;
    note_kernel(launch.name);
    running = &launch;
    arena_open(launch.device);
    faults_catch();
    size_t stride = order == RANDOM ? coprime_stride(n) : 1;
    for (size_t i = 0, block = order == RANDOM ? random_next() % n : 0; i < n; i++) {
        set_block_index(order == REVERSE ? n - 1 - i : block, launch.grid);
        if (!run_block())
            break;
        block = (block + stride) % n;
    }
    faults_release();
    char text[256];
    bool whole = arena_check(launch.device, text, sizeof text);
    arena_close(launch.device);
    running = nullptr;
    if (!whole && !abandoned)
        report(cudaErrorLaunchFailure, "kernel %s: %s", launch.name, text);
    return !abandoned && whole;
}

} // namespace simt
