// Asynchronous copies: see async_copy.h.
#include "async_copy.h"

#include "schedule.h"
#include "tensor_core.h"

#include <vector>

namespace simt {

struct Copy {
    char *to;
    const void *from; // NULL: zeros
    int group;
    uint64_t issued;
};

// The latest copy to 16 bytes of shared memory, by times on the clock `now`.
struct Row {
    uint64_t issued, waited; // waited 0: not yet
    int thread;
    Where where;
};

struct Landed {
    char *to, bytes[16]; // bytes: what is there, while another thread runs
};

int unpublished;
bool copies_used;

static std::vector<Copy> pending[MAX_THREADS];
static std::vector<Landed> landed[MAX_THREADS]; // waited, not published
static uint32_t landed_lanes[MAX_WARPS];        // who has any
static int group[MAX_THREADS];                  // current group of each thread's copies
static std::vector<Row> rows;                   // by shared_row()

// Times, from 1 on: a block's start and last barrier, each warp's last __syncwarp of all lanes,
// each thread's last fence.
static uint64_t now, block_start, block_sync, warp_sync[MAX_WARPS], fence_sync[MAX_THREADS];

void copies_reset() {
    block_start = block_sync = now;
    if (!copies_used)
        return;
    for (int i = 0; i < MAX_THREADS; i++)
        pending[i].clear(), landed[i].clear(), group[i] = 0;
    memset(landed_lanes, 0, sizeof landed_lanes);
    unpublished = 0;
    copies_used = false;
}

// ----------------------------------------------------------- issue, commit, wait

void copy_async(void *shared, const void *global, bool valid, Where where) {
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16))
        fail("cp.async (%s:%d): to %p from %p, not both multiples of 16", where.file, where.line,
             shared, global);
    if (!shared_owns(shared, 16))
        fail("cp.async (%s:%d): the destination %p is not in shared memory", where.file, where.line,
             shared);
    if (valid && arena_device(global) < 0)
        fail("cp.async (%s:%d): the source %p is not in device memory", where.file, where.line,
             global);
    copies_used = true;
    if (rows.size() < shared_rows())
        rows.resize(shared_rows());
    memset(shared, 0xff, 16);
    pending[self].push_back({(char *)shared, valid ? global : nullptr, group[self], ++now});
    rows[shared_row(shared)] = {now, 0, self, where};
}

void copy_commit() {
    copies_used = true;
    group[self]++;
}

static void land(const Copy &copy) {
    if (copy.from)
        memcpy(copy.to, copy.from, 16);
    else
        memset(copy.to, 0, 16);
    Row &row = rows[shared_row(copy.to)];
    if (row.issued == copy.issued)
        row.waited = ++now;
    for (const Landed &l : landed[self])
        if (l.to == copy.to)
            return;
    landed[self].push_back({copy.to, {}});
    unpublished += landed[self].size() == 1;
    landed_lanes[self >> 5] |= 1u << (self & 31);
}

void copy_wait(int groups) {
    std::vector<Copy> &mine = pending[self];
    size_t kept = 0;
    for (const Copy &copy : mine)
        if (copy.group >= group[self] - groups)
            mine[kept++] = copy;
        else
            land(copy);
    mine.resize(kept);
}

// -------------------------------------------------------------------- who sees it

static void hide(int thread) {
    for (Landed &l : landed[thread]) {
        memcpy(l.bytes, l.to, 16);
        memset(l.to, 0xff, 16);
    }
}

static void show(int thread) {
    for (const Landed &l : landed[thread])
        memcpy(l.to, l.bytes, 16);
}

void copies_switch(int from, int to) {
    hide(from);
    show(to);
}

// Every lane of `mask` that has copies; those of the threads that do not run are hidden.
static void publish(uint32_t mask, int warp) {
    for (uint32_t left = landed_lanes[warp] & mask; left; left &= left - 1) {
        int thread = warp << 5 | __builtin_ctz(left);
        if (thread != self)
            show(thread);
        landed[thread].clear();
        unpublished--;
    }
    landed_lanes[warp] &= ~mask;
}

void publish_block() {
    for (int warp = 0; unpublished; warp++)
        publish(0xffffffffu, warp);
    block_sync = now;
}

void publish_warp(uint32_t mask, int warp) {
    publish(mask, warp);
    if (mask == 0xffffffffu)
        warp_sync[warp] = now;
}

void copies_fence() {
    publish(1u << (self & 31), self >> 5);
    fence_sync[self] = now;
}

void copies_check(int thread, const void *address) {
    const Row &row = rows[shared_row(address)];
    if (row.issued <= block_start || (row.waited && row.waited <= block_sync))
        return;
    bool same_warp = row.thread >> 5 == thread >> 5;
    if (row.waited && (row.waited <= fence_sync[row.thread] ||
                       (same_warp && row.waited <= warp_sync[row.thread >> 5])))
        return;
    const uint3 &by = threads[row.thread].index;
    const Wait &read = threads[thread].wait;
    set_current(thread);
    fail("%s (%s:%d): the row that this thread points to was copied by thread (%u,%u,%u), cp.async "
         "(%s:%d), %s",
         read.what, read.where.file, read.where.line, by.x, by.y, by.z, row.where.file,
         row.where.line,
         !row.waited ? "which has not waited for it"
         : same_warp ? "with no __syncwarp or __syncthreads after its wait"
                     : "with no __syncthreads after its wait");
}

} // namespace simt
