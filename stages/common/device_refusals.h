/**
 * @file device_refusals.h
 * @brief Decode slots that a kernel found full: counted on the device, reported by a later call of
 * the host that computes or copies, without a wait.
 */
#ifndef NSA_DEVICE_REFUSALS_H
#define NSA_DEVICE_REFUSALS_H

#include "common/device_stream.h"

/** How often a slot was full, and the last such slot. */
typedef struct nsa_refusals {
    int64_t *device; /**< [2] kernels count here */
    int64_t *host;   /**< [2] a copy in pinned memory, which the device writes without a wait */
    int64_t seen;    /**< the count that was last reported */
} nsa_refusals;

/** Pinned memory for the copy; `device` is the caller's to allocate, zeroed. */
static inline nsa_status nsa_refusals_open(nsa_refusals *x) {
    NSA_CUDA(cudaMallocHost((void **)&x->host, 2 * sizeof *x->host));
    x->host[0] = 0;
    return NSA_OK;
}

/** Free the copy; nothing if there is none. */
static inline void nsa_refusals_close(nsa_refusals *x) {
    if (x->host)
        (void)cudaFreeHost(x->host);
}

/** In a kernel: this slot is full. */
static __device__ __forceinline__ void nsa_refuse(int64_t *device, int64_t slot) {
    atomicAdd((unsigned long long *)&device[0], 1ULL);
    device[1] = slot;
}

/** Submit the copy, after the kernel that may refuse. */
static inline nsa_status nsa_refusals_copy(const nsa_refusals *x, const nsa_device_stream *s) {
    NSA_CUDA(
        cudaMemcpyAsync(x->host, x->device, 2 * sizeof *x->host, cudaMemcpyDeviceToHost, s->now));
    return NSA_OK;
}

/** For nsa_stage.pending: an error once for what was refused since it was asked last. */
static inline nsa_status nsa_refusals_report(nsa_refusals *x, int64_t max_len) {
    const int64_t count = x->host ? *(volatile int64_t *)x->host : 0; /* none without decode */
    if (count == x->seen)
        return NSA_OK;
    x->seen = count;
    return nsa_fail(NSA_ERR_INPUT,
                    "slot %lld was full in an earlier step, which left it alone: max_seq_len is "
                    "%lld",
                    (long long)x->host[1], (long long)max_len);
}

#endif
