/**
 * @file pool.h
 * @brief The memory of one context: allocated in `open`, fenced, poisoned on request, freed
 * together.
 *
 * A stage allocates blocks and never frees them. The kind of a block says when its contents become
 * invalid; with NSA_DEBUG_MEMORY the pool then poisons it with NaN (0x7FFFFFFF), so that a row
 * that was never written, or scratch that was read before it was written, shows.
 */
#ifndef NSA_POOL_H
#define NSA_POOL_H

#include "nsa_stage.h"

/** When a block's contents become invalid. */
typedef enum nsa_memory_kind {
    NSA_MEM_PERSISTENT = 1 << 0, /**< never: loaded inputs, caches */
    NSA_MEM_FORWARD =
        1 << 1, /**< before each forward, prefill or decode: outputs and saved statistics */
    NSA_MEM_BACKWARD = 1 << 2, /**< before each backward: gradients */
    NSA_MEM_SCRATCH = 1 << 3   /**< before every call: scratch */
} nsa_memory_kind;

/** Allocate `count` elements of `size` bytes, aligned to 64 bytes. Zero elements give a valid
 * pointer.
 *  @return NULL when memory is short; nsa_pool_status() then reports it. */
NSA_EXPORT void *nsa_pool_alloc(nsa_pool *pool, nsa_memory_kind kind, int64_t count, size_t size);

/** @return NSA_OK if every nsa_pool_alloc() so far succeeded, else NSA_ERR_MEMORY. A stage's `open`
 * ends with it. */
NSA_EXPORT nsa_status nsa_pool_status(const nsa_pool *pool);

/** @return NSA_OK if all fences around the context's memory are intact; else an error that names
 * the first that is not. */
NSA_EXPORT nsa_status nsa_check_memory(const nsa_context *context);

/** @return bytes the context holds in host memory. */
NSA_EXPORT size_t nsa_memory(const nsa_context *context);

/** Make an empty pool; NULL when memory is short. `debug` as NSA_DEBUG_MEMORY. */
nsa_pool *nsa_pool_new(int debug);

/** Fill blocks whose kind is among `kinds` (or-ed) with NaN; nothing unless the pool is a debug
 * pool. */
void nsa_pool_poison(nsa_pool *pool, unsigned kinds);

/** @return NSA_ERR_MEMORY if a fence around a block was overwritten. */
nsa_status nsa_pool_check(const nsa_pool *pool);

/** @return bytes allocated, without fences. */
size_t nsa_pool_bytes(const nsa_pool *pool);

/** Free everything; NULL is allowed. */
void nsa_pool_free(nsa_pool *pool);

#endif
