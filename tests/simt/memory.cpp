// Device memory: a range of addresses for each device, its arena, which is closed while no kernel
// of that device and no copy runs.
//
//     arena | fence | bytes of a caller | fence | free | fence | bytes ... | closed for good
//
// Only the part in use is opened and closed, in steps of a huge page, so that a launch pays a few
// microseconds. Fences hold a pattern that is a NaN in float32, float64 and bfloat16: a read
// outside of an allocation gets NaN, and a write is found by the check after each launch.
#include "engine.h"

#include "common/fence.h"

#include <algorithm>
#include <stdio.h>
#include <sys/mman.h>
#include <vector>

namespace simt {

static const size_t LARGEST = (size_t)64 << 30; // bytes of addresses of a device
static const size_t STEP = (size_t)2 << 20, ALIGN = 256;
static const uint32_t FENCE = 0x7ffadbadu;

struct Region {
    size_t start, span; // with both fences
    size_t bytes;       // requested; they begin at start + ALIGN
    int number;         // counts allocations, for reports
    bool used;
};

struct Arena {
    char *start;                 // NULL before the first allocation
    size_t size;                 // bytes of addresses; less if they could not be reserved
    size_t opened, top;          // opened: bytes to open; top: end of the last region
    std::vector<Region> regions; // in the order of addresses
    int depth;                   // calls of arena_open() that were not closed
};

static Arena arenas[MAX_DEVICES];
static int allocations;

static void *map_closed(size_t bytes) {
    return mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static bool arena_map(Arena &a) {
    if (a.start)
        return true;
    a.size = LARGEST;
    void *at = map_closed(a.size + STEP);
    while (at == MAP_FAILED && a.size > (size_t)1 << 30)
        at = map_closed((a.size /= 2) + STEP);
    if (at == MAP_FAILED)
        return false;
    a.start = (char *)(((uintptr_t)at + STEP - 1) & ~(STEP - 1));
    faults_watch_host();
    return true;
}

static void protect(const Arena &a, int access) {
    if (a.opened && mprotect(a.start, a.opened, access))
        perror("simulator: mprotect");
}

void arena_open(int device) {
    for (int i = 0; i < MAX_DEVICES; i++)
        if ((device == i || device == EVERY_DEVICE) && !arenas[i].depth++)
            protect(arenas[i], PROT_READ | PROT_WRITE);
}

void arena_close(int device) {
    for (int i = 0; i < MAX_DEVICES; i++)
        if ((device == i || device == EVERY_DEVICE) && !--arenas[i].depth)
            protect(arenas[i], PROT_NONE);
}

int arena_device(const void *address) {
    for (int i = 0; i < MAX_DEVICES; i++)
        if (arenas[i].start && (size_t)((const char *)address - arenas[i].start) < arenas[i].size)
            return i;
    return -1;
}

// ---------------------------------------------------------------------- fences

// Fill a fence with the pattern.
static void fence_fill(const Arena &a, size_t from, size_t to) {
    for (size_t i = from; i < to; i++)
        ((unsigned char *)a.start)[i] = (unsigned char)(FENCE >> 8 * (i & 3));
}

// The first byte that differs from the pattern, or `to`; checks whole words first.
static size_t fence_check(const Arena &a, size_t from, size_t to) {
    const unsigned char *byte = (const unsigned char *)a.start;
    for (; from + 8 <= to && !(from & 7); from += 8)
        if (*(const uint64_t *)(a.start + from) != ((uint64_t)FENCE << 32 | FENCE))
            break;
    while (from < to && byte[from] == (unsigned char)(FENCE >> 8 * (from & 3)))
        if (!(++from & 7) && from + 8 <= to)
            return fence_check(a, from, to);
    return from;
}

static bool region_check(const Arena &a, const Region &p, char *text, size_t size) {
    size_t begin = p.start + ALIGN, end = begin + p.bytes, limit = p.start + p.span;
    nsa_show(a.start + p.start, begin - p.start); // valgrind: checked whatever was written
    nsa_show(a.start + end, limit - end);
    size_t before = fence_check(a, p.start, begin), behind = fence_check(a, end, limit);
    if (before == begin && behind == limit)
        return true;
    if (before < begin)
        snprintf(text, size,
                 "wrote before allocation %d (%zu bytes, cudaMalloc), from byte -%zu on", p.number,
                 p.bytes, begin - before);
    else
        snprintf(text, size, "wrote behind allocation %d (%zu bytes, cudaMalloc), from byte %zu on",
                 p.number, p.bytes, p.bytes + (behind - end));
    fence_fill(a, p.start, begin); // so that it is reported once
    fence_fill(a, end, limit);
    return false;
}

bool arena_check(int device, char *text, size_t size) {
    for (const Region &p : arenas[device].regions)
        if (p.used && !region_check(arenas[device], p, text, size))
            return false;
    return true;
}

// ----------------------------------------------------------------- allocations

// The last region that begins at or before an address of the arena.
static Region *region_at(Arena &a, const void *address) {
    size_t offset = (size_t)((const char *)address - a.start);
    auto after = std::upper_bound(a.regions.begin(), a.regions.end(), offset,
                                  [](size_t o, const Region &p) { return o < p.start; });
    return after == a.regions.begin() ? nullptr : &after[-1];
}

static size_t first_fit(Arena &a, size_t span) { // a free region, split; or a new one at the end
    for (size_t i = 0; i < a.regions.size(); i++) {
        Region &p = a.regions[i];
        if (p.used || p.span < span)
            continue;
        Region rest = {p.start + span, p.span - span, 0, 0, false};
        p.span = span;
        if (rest.span)
            a.regions.insert(a.regions.begin() + (long)i + 1, rest);
        return i;
    }
    a.regions.push_back({a.top, span, 0, 0, false});
    a.top += span;
    return a.regions.size() - 1;
}

static void grow(Arena &a) {
    size_t wanted = (a.top + STEP - 1) & ~(STEP - 1);
    if (wanted <= a.opened)
        return;
    // a hint: huge pages close faster
    madvise(a.start + a.opened, wanted - a.opened, MADV_HUGEPAGE);
    a.opened = wanted;
    if (a.depth)
        protect(a, PROT_READ | PROT_WRITE);
}

cudaError_t arena_alloc(int device, void **address, size_t bytes) {
    Arena &a = arenas[device];
    size_t span = (bytes + ALIGN - 1) / ALIGN * ALIGN + 2 * ALIGN;
    if (!arena_map(a) || bytes > a.size || a.top + span > a.size)
        return report(cudaErrorMemoryAllocation, "cudaMalloc: no room for %zu bytes", bytes);
    Region &p = a.regions[first_fit(a, span)];
    p.bytes = bytes, p.number = ++allocations, p.used = true;
    size_t begin = p.start + ALIGN;
    grow(a);
    arena_open(device);
    fence_fill(a, p.start, begin);
    memset(a.start + begin, 0xff, bytes);
    nsa_forget(a.start + begin, bytes);
    fence_fill(a, begin + bytes, p.start + p.span);
    arena_close(device);
    *address = a.start + begin;
    return cudaSuccess;
}

static void merge(Arena &a, size_t i) {
    std::vector<Region> &regions = a.regions;
    if (i + 1 < regions.size() && !regions[i + 1].used) {
        regions[i].span += regions[i + 1].span;
        regions.erase(regions.begin() + (long)i + 1);
    }
    if (i && !regions[i - 1].used) {
        regions[i - 1].span += regions[i].span;
        regions.erase(regions.begin() + (long)i--);
    }
    if (i + 1 == regions.size()) {
        a.top = regions[i].start;
        regions.pop_back();
    }
}

cudaError_t arena_free(void *address) {
    int device = arena_device(address);
    Region *p = device < 0 ? nullptr : region_at(arenas[device], address);
    if (!p || !p->used || arenas[device].start + p->start + ALIGN != (char *)address)
        return report(cudaErrorInvalidValue, "cudaFree: %p is not what cudaMalloc gave", address);
    char text[256];
    Arena &a = arenas[device];
    arena_open(device);
    bool intact = region_check(a, *p, text, sizeof text);
    memset(address, 0xff, p->bytes);
    arena_close(device);
    p->used = false;
    merge(a, (size_t)(p - a.regions.data()));
    return intact ? cudaSuccess : report(cudaErrorLaunchFailure, "cudaFree: %s", text);
}

void arena_usage(int device, size_t *used, size_t *size) {
    *used = 0;
    for (const Region &p : arenas[device].regions)
        *used += p.used ? p.bytes : 0;
    *size = arenas[device].start ? arenas[device].size : LARGEST;
}

bool arena_describe(const void *address, char *text, size_t size) {
    int device = arena_device(address);
    if (device < 0)
        return false;
    const Region *p = region_at(arenas[device], address);
    size_t offset = (size_t)((const char *)address - arenas[device].start);
    if (p && p->used && offset < p->start + p->span)
        snprintf(text, size, "byte %ld of allocation %d (%zu bytes, cudaMalloc)",
                 (long)(offset - p->start - ALIGN), p->number, p->bytes);
    else
        snprintf(text, size, "device memory that is not allocated");
    return true;
}

bool arena_holds(const void *address, size_t bytes) {
    int device = arena_device(address);
    const Region *p = device < 0 ? nullptr : region_at(arenas[device], address);
    if (!p || !p->used)
        return false;
    const char *begin = arenas[device].start + p->start + ALIGN;
    return address >= begin && (const char *)address + bytes <= begin + p->bytes;
}

const char *arena_range(const void *address, size_t bytes) {
    static char text[200];
    if (arena_holds(address, bytes))
        return nullptr;
    char whose[100] = "";
    arena_describe(address, whose, sizeof whose);
    snprintf(text, sizeof text, "%zu bytes from %s", bytes, whose);
    return text;
}

} // namespace simt
