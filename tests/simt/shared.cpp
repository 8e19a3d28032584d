// Shared memory. The dynamic part is a buffer with a fence behind it; the static part is this
// object's thread-local storage. Both hold NaN when a block begins.
#include "engine.h"

#include "common/fence.h"

#include <link.h>

namespace simt {

enum { LARGEST = 228 << 10, BEHIND = 1024 };
static const unsigned char PATTERN = 0xfa;

alignas(1024) static unsigned char dynamic[LARGEST + BEHIND];
static thread_local char anchor; // lies in the static part: its address locates it

static size_t static_bytes, anchor_offset;

SharedPart shared_dynamic, shared_static;

void *dynamic_shared() {
    return dynamic;
}

// Find the thread-local storage of the object that this function is part of.
static int find_storage(struct dl_phdr_info *info, size_t, void *) {
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto &part = info->dlpi_phdr[i];
        const char *start = (const char *)info->dlpi_tls_data;
        if (part.p_type != PT_TLS || !start)
            continue;
        if (&anchor >= start && &anchor < start + part.p_memsz) {
            anchor_offset = (size_t)(&anchor - start);
            static_bytes = part.p_memsz;
            return 1;
        }
    }
    return 0;
}

void shared_start(size_t bytes) {
    anchor = 1; // the first access creates the storage
    if (!static_bytes)
        dl_iterate_phdr(find_storage, nullptr);
    nsa_show(dynamic, sizeof dynamic);
    memset(dynamic + bytes, PATTERN, BEHIND);
    shared_dynamic = {(char *)dynamic, bytes, 0};
    shared_static = {&anchor - anchor_offset, static_bytes, LARGEST / 16};
}

size_t shared_rows() {
    return shared_static.first_row + shared_static.bytes / 16 + 2; // its ends may be parts of rows
}

void shared_poison() {
    memset(dynamic, 0xff, shared_dynamic.bytes);
    nsa_forget(dynamic, shared_dynamic.bytes);
    // also the guards of empty constructors: done
    memset(shared_static.start, 0xff, shared_static.bytes);
}

bool shared_check() {
    size_t dynamic_bytes = shared_dynamic.bytes;
    nsa_show(dynamic + dynamic_bytes, BEHIND); // valgrind: checked whatever was written
    for (size_t i = 0; i < BEHIND; i++)
        if (dynamic[dynamic_bytes + i] != PATTERN) {
            report(cudaErrorLaunchFailure,
                   "kernel %s, block (%u,%u,%u): wrote byte %zu of its %zu bytes of dynamic "
                   "shared memory",
                   launch_running()->name, blockIdx.x, blockIdx.y, blockIdx.z, dynamic_bytes + i,
                   dynamic_bytes);
            return false;
        }
    return true;
}

} // namespace simt
