// Device memory: one range of addresses, the arena, which is closed while no kernel or copy runs.
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

static size_t arena_size = (size_t)64 << 30; // bytes of addresses; less if they cannot be reserved
static const size_t STEP = (size_t)2 << 20, ALIGN = 256;
static const uint32_t FENCE = 0x7ffadbadu;

struct Region {
    size_t start, span; // with both fences
    size_t bytes;       // requested; they begin at start + ALIGN
    int number;         // counts allocations, for reports
    bool used;
};

static char *arena;
static size_t opened, top;          // opened: bytes to open; top: end of the last region
static std::vector<Region> regions; // in the order of addresses
static int allocations, depth;

static void *map_closed(size_t bytes) {
    return mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static bool arena_map() {
    if (arena)
        return true;
    void *at = map_closed(arena_size + STEP);
    while (at == MAP_FAILED && arena_size > (size_t)1 << 30)
        at = map_closed((arena_size /= 2) + STEP);
    if (at == MAP_FAILED)
        return false;
    arena = (char *)(((uintptr_t)at + STEP - 1) & ~(STEP - 1));
    faults_watch_host();
    return true;
}

static void protect(int access) {
    if (opened && mprotect(arena, opened, access))
        perror("simulator: mprotect");
}

void arena_open() {
    if (!depth++)
        protect(PROT_READ | PROT_WRITE);
}

void arena_close() {
    if (!--depth)
        protect(PROT_NONE);
}

bool arena_owns(const void *address) {
    return arena && (size_t)((const char *)address - arena) < arena_size;
}

// ---------------------------------------------------------------------- fences

// Fill a fence with the pattern.
static void fence_fill(size_t from, size_t to) {
    for (size_t i = from; i < to; i++)
        ((unsigned char *)arena)[i] = (unsigned char)(FENCE >> 8 * (i & 3));
}

// The first byte that differs from the pattern, or `to`; checks whole words first.
static size_t fence_check(size_t from, size_t to) {
    const unsigned char *byte = (const unsigned char *)arena;
    for (; from + 8 <= to && !(from & 7); from += 8)
        if (*(const uint64_t *)(arena + from) != ((uint64_t)FENCE << 32 | FENCE))
            break;
    while (from < to && byte[from] == (unsigned char)(FENCE >> 8 * (from & 3)))
        if (!(++from & 7) && from + 8 <= to)
            return fence_check(from, to);
    return from;
}

static bool region_check(const Region &p, char *text, size_t size) {
    size_t begin = p.start + ALIGN, end = begin + p.bytes, limit = p.start + p.span;
    nsa_show(arena + p.start, begin - p.start); // valgrind: checked whatever was written
    nsa_show(arena + end, limit - end);
    size_t before = fence_check(p.start, begin), behind = fence_check(end, limit);
    if (before == begin && behind == limit)
        return true;
    if (before < begin)
        snprintf(text, size,
                 "wrote before allocation %d (%zu bytes, cudaMalloc), from byte -%zu on", p.number,
                 p.bytes, begin - before);
    else
        snprintf(text, size, "wrote behind allocation %d (%zu bytes, cudaMalloc), from byte %zu on",
                 p.number, p.bytes, p.bytes + (behind - end));
    fence_fill(p.start, begin); // so that it is reported once
    fence_fill(end, limit);
    return false;
}

bool arena_check(char *text, size_t size) {
    for (const Region &p : regions)
        if (p.used && !region_check(p, text, size))
            return false;
    return true;
}

// ----------------------------------------------------------------- allocations

static Region *region_at(const void *address) { // the last one that begins at or before address
    size_t offset = (size_t)((const char *)address - arena);
    auto after = std::upper_bound(regions.begin(), regions.end(), offset,
                                  [](size_t o, const Region &p) { return o < p.start; });
    return after == regions.begin() ? nullptr : &after[-1];
}

static size_t first_fit(size_t span) { // a free region, split; or a new one at the end
    for (size_t i = 0; i < regions.size(); i++) {
        if (regions[i].used || regions[i].span < span)
            continue;
        Region rest = {regions[i].start + span, regions[i].span - span, 0, 0, false};
        regions[i].span = span;
        if (rest.span)
            regions.insert(regions.begin() + (long)i + 1, rest);
        return i;
    }
    regions.push_back({top, span, 0, 0, false});
    top += span;
    return regions.size() - 1;
}

static void grow() {
    size_t wanted = (top + STEP - 1) & ~(STEP - 1);
    if (wanted <= opened)
        return;
    madvise(arena + opened, wanted - opened, MADV_HUGEPAGE); // a hint: huge pages close faster
    opened = wanted;
    if (depth)
        protect(PROT_READ | PROT_WRITE);
}

cudaError_t arena_alloc(void **address, size_t bytes) {
    size_t span = (bytes + ALIGN - 1) / ALIGN * ALIGN + 2 * ALIGN;
    if (!arena_map() || bytes > arena_size || top + span > arena_size)
        return report(cudaErrorMemoryAllocation, "cudaMalloc: no room for %zu bytes", bytes);
    Region &p = regions[first_fit(span)];
    p.bytes = bytes, p.number = ++allocations, p.used = true;
    size_t begin = p.start + ALIGN;
    grow();
    arena_open();
    fence_fill(p.start, begin);
    memset(arena + begin, 0xff, bytes);
    nsa_forget(arena + begin, bytes);
    fence_fill(begin + bytes, p.start + p.span);
    arena_close();
    *address = arena + begin;
    return cudaSuccess;
}

static void merge(size_t i) {
    if (i + 1 < regions.size() && !regions[i + 1].used) {
        regions[i].span += regions[i + 1].span;
        regions.erase(regions.begin() + (long)i + 1);
    }
    if (i && !regions[i - 1].used) {
        regions[i - 1].span += regions[i].span;
        regions.erase(regions.begin() + (long)i--);
    }
    if (i + 1 == regions.size()) {
        top = regions[i].start;
        regions.pop_back();
    }
}

cudaError_t arena_free(void *address) {
    Region *p = arena_owns(address) ? region_at(address) : nullptr;
    if (!p || !p->used || arena + p->start + ALIGN != (char *)address)
        return report(cudaErrorInvalidValue, "cudaFree: %p is not what cudaMalloc gave", address);
    char text[256];
    arena_open();
    bool intact = region_check(*p, text, sizeof text);
    memset(address, 0xff, p->bytes);
    arena_close();
    p->used = false;
    merge((size_t)(p - regions.data()));
    return intact ? cudaSuccess : report(cudaErrorLaunchFailure, "cudaFree: %s", text);
}

void arena_usage(size_t *used, size_t *size) {
    *used = 0;
    for (const Region &p : regions)
        *used += p.used ? p.bytes : 0;
    *size = arena_size;
}

bool arena_describe(const void *address, char *text, size_t size) {
    if (!arena_owns(address))
        return false;
    const Region *p = region_at(address);
    size_t offset = (size_t)((const char *)address - arena);
    if (p && p->used && offset < p->start + p->span)
        snprintf(text, size, "byte %ld of allocation %d (%zu bytes, cudaMalloc)",
                 (long)(offset - p->start - ALIGN), p->number, p->bytes);
    else
        snprintf(text, size, "device memory that is not allocated");
    return true;
}

const char *arena_range(const void *address, size_t bytes) {
    static char text[200];
    const Region *p = region_at(address);
    size_t offset = (size_t)((const char *)address - arena);
    if (p && p->used && offset >= p->start + ALIGN && offset + bytes <= p->start + ALIGN + p->bytes)
        return nullptr;
    char whose[100] = "";
    arena_describe(address, whose, sizeof whose);
    snprintf(text, sizeof text, "%zu bytes from %s", bytes, whose);
    return text;
}

} // namespace simt
