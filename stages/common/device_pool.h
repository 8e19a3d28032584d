/**
 * @file device_pool.h
 * @brief The device memory of one context, as pool.h is the host's: allocated in `open`, poisoned
 * on request, freed together.
 */
#ifndef NSA_DEVICE_POOL_H
#define NSA_DEVICE_POOL_H

#include "common/device.h"
extern "C" {
#include "common/pool.h"
}

enum { NSA_DEVICE_BLOCKS = 160 /**< of one context; more than any configuration needs */ };

/** One block, and how long its contents are valid. */
typedef struct nsa_device_block {
    void *start;          /**< from cudaMalloc */
    size_t bytes;         /**< a multiple of 256 */
    nsa_memory_kind kind; /**< when its contents become invalid */
} nsa_device_block;

/** The blocks of a context. */
typedef struct nsa_device_pool {
    nsa_device_block block[NSA_DEVICE_BLOCKS]; /**< the first `count` */
    int count;                                 /**< how many */
    int failed;                                /**< 1: memory or blocks ran out */
    int debug;                                 /**< 1 with NSA_DEBUG_MEMORY */
} nsa_device_pool;

/** Zeroed device memory, during open only. Padding that nothing writes stays zero; but in a block
 * that is poisoned (any but NSA_MEM_PERSISTENT) a call that needs zeros must write them.
 *  @return NULL if there is none left, which nsa_device_pool_status() reports */
static inline void *nsa_device_alloc(nsa_device_pool *pool, nsa_memory_kind kind, int64_t count,
                                     size_t size, cudaStream_t stream) {
    nsa_device_block *b = &pool->block[pool->count];
    const size_t bytes = ((size_t)(count ? count : 1) * size + 255) / 256 * 256;
    pool->failed |= pool->count == NSA_DEVICE_BLOCKS;
    if (pool->failed || cudaMalloc(&b->start, bytes) != cudaSuccess) {
        (void)cudaGetLastError(); /* cleared: open reports it */
        pool->failed = 1;
        return NULL;
    }
    b->bytes = bytes;
    b->kind = kind;
    pool->count++;
    pool->failed |= cudaMemsetAsync(b->start, 0, bytes, stream) != cudaSuccess;
    return b->start;
}

/** @return NSA_ERR_MEMORY if an allocation failed */
static inline nsa_status nsa_device_pool_status(const nsa_device_pool *pool) {
    if (!pool->failed)
        return NSA_OK;
    return nsa_fail(NSA_ERR_MEMORY, "device memory is short, or there are more than %d buffers",
                    NSA_DEVICE_BLOCKS);
}

/** With NSA_DEBUG_MEMORY fill the blocks of these kinds with NaN. */
static inline nsa_status nsa_device_poison(const nsa_device_pool *pool, unsigned kinds,
                                           cudaStream_t stream) {
    for (int i = 0; i < pool->count && pool->debug; i++) {
        const nsa_device_block *b = &pool->block[i];
        if (b->kind & kinds)
            NSA_CUDA(cudaMemsetAsync(b->start, 0xff, b->bytes, stream));
    }
    return NSA_OK;
}

/** Free all blocks. */
static inline void nsa_device_pool_free(nsa_device_pool *pool) {
    for (int i = 0; i < pool->count; i++)
        (void)cudaFree(pool->block[i].start);
}

#endif
