// Page-locked memory of the host, and what a pointer points to.
#include "engine.h"

#include "common/fence.h"

#include <map>
#include <stdlib.h>

namespace simt {

struct Pinned {
    size_t bytes;
    int device; // that was current
};

static std::map<const char *, Pinned> pinned; // by address

cudaError_t host_alloc(void **address, size_t bytes) {
    Guard guard(lock);
    cudaError_t refused = not_in_capture("cudaMallocHost");
    if (refused || !bytes)
        return refused;
    if (posix_memalign(address, 4096, bytes)) {
        *address = nullptr;
        return report(cudaErrorMemoryAllocation, "cudaMallocHost: no room for %zu bytes", bytes);
    }
    memset(*address, 0xff, bytes);
    nsa_forget(*address, bytes);
    pinned[(const char *)*address] = {bytes, device_current()};
    return cudaSuccess;
}

// The allocation that holds an address, or NULL.
static const Pinned *pinned_at(const void *address) {
    auto after = pinned.upper_bound((const char *)address);
    if (after == pinned.begin())
        return nullptr;
    --after;
    return (size_t)((const char *)address - after->first) < after->second.bytes ? &after->second
                                                                                : nullptr;
}

} // namespace simt

using namespace simt;

cudaError_t cudaFreeHost(void *address) {
    Guard guard(lock);
    cudaError_t refused = not_in_capture("cudaFreeHost");
    if (refused || !address)
        return refused;
    if (!pinned.erase((const char *)address))
        return report(cudaErrorInvalidValue, "cudaFreeHost: %p is not what cudaMallocHost gave",
                      address);
    free(address);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *address) {
    Guard guard(lock);
    if (!attributes)
        return report(cudaErrorInvalidValue, "cudaPointerGetAttributes: nowhere to write");
    void *p = const_cast<void *>(address);
    const Pinned *host = pinned_at(address);
    if (arena_holds(address, 1))
        *attributes = {cudaMemoryTypeDevice, arena_device(address), p, nullptr};
    else if (host)
        *attributes = {cudaMemoryTypeHost, host->device, p, p};
    else // CUDA takes it for pageable memory of the host, and does not check that it is
        *attributes = {cudaMemoryTypeUnregistered, cudaInvalidDeviceId, nullptr, p};
    return cudaSuccess;
}
