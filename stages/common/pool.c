/** @file pool.c
 *  @brief One context's memory: fenced blocks in a list. */
#include "common/fence.h"
#include "common/pool.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

enum { FENCE = 64, FENCE_BYTE = 0xA5, ALIGNMENT = 64 };

/* A block in memory: | FENCE bytes of 0xA5 | the stage's bytes, 64-aligned | FENCE bytes of 0xA5
 * | */
typedef struct block {
    void *allocation;     /* of calloc() */
    unsigned char *start; /* of the first fence */
    size_t bytes;         /* the stage's */
    nsa_memory_kind kind;
} block;

struct nsa_pool {
    block *blocks;
    size_t count, capacity, bytes;
    size_t max_bytes;     /* limit of `bytes` */
    int64_t failed_bytes; /* size of the first allocation that failed; 0 if none did */
    int debug;
};

/* Memory plus swap of this machine, or the limit of the cgroup mounted at /sys/fs/cgroup if that is
 * less: in a container with cgroups of version 2 it is the container's own. Limits of version 1, or
 * of a nested group, are not seen. Without this check a system that overcommits memory would kill
 * the program later without a message. */
static size_t machine_memory(void) {
    struct sysinfo info = {0};
    char limit[32]; /* "max" where there is none */
    const int file = open("/sys/fs/cgroup/memory.max", O_RDONLY | O_CLOEXEC);
    const ssize_t n = file < 0 ? 0 : read(file, limit, sizeof limit - 1);
    (void)(file < 0 ? 0 : close(file)); /* one line: its coverage must not depend on the file */
    limit[n > 0 ? n : 0] = 0;
    const size_t allowed = strtoull(limit, NULL, 10);
    (void)sysinfo(&info); /* it cannot fail */
    const size_t max_bytes = ((size_t)info.totalram + info.totalswap) * info.mem_unit;
    return allowed && allowed < max_bytes ? allowed : max_bytes;
}

nsa_pool *nsa_pool_new(int debug) {
    nsa_pool *pool = calloc(1, sizeof *pool);
    if (pool) {
        pool->debug = debug;
        pool->max_bytes = machine_memory();
    }
    return pool;
}

/* Make the two fences of a block inaccessible, or accessible to the pool. */
static void close_fences(const block *b) {
    nsa_hide(b->start, FENCE);
    nsa_hide(b->start + FENCE + b->bytes, FENCE);
}

static void open_fences(const block *b) {
    nsa_show(b->start, FENCE);
    nsa_show(b->start + FENCE + b->bytes, FENCE);
}

/* Zeroed memory, aligned to 64 bytes. calloc() gets pages that the system backs only when they are
 * first written, so unused capacity costs nothing. */
static unsigned char *alloc_aligned(size_t bytes, void **allocation) {
    unsigned char *start = *allocation = calloc(1, bytes + ALIGNMENT);
    return start ? start + (ALIGNMENT - (uintptr_t)start % ALIGNMENT) % ALIGNMENT : NULL;
}

/* Every word becomes 0x7FFFFFFF: NaN as float32, as float64 and as bfloat16, and the number of no
 * block. All bits one would be NaN as well, but -1 as an integer: the padding of a block list. */
static void poison(unsigned char *memory, size_t bytes) {
    memset(memory, 0xFF, bytes);
    for (size_t i = 3; i < bytes; i += 4)
        memory[i] = 0x7F;
    nsa_forget(memory, bytes);
}

static unsigned char *alloc_bytes(nsa_pool *pool, nsa_memory_kind kind, size_t bytes) {
    if (pool->count == pool->capacity) {
        size_t capacity = pool->capacity ? 2 * pool->capacity : 64;
        block *blocks = realloc(pool->blocks, capacity * sizeof *blocks);
        if (!blocks)
            return NULL;
        pool->blocks = blocks;
        pool->capacity = capacity;
    }
    void *allocation;
    unsigned char *start = alloc_aligned(bytes + 2 * FENCE, &allocation);
    if (!start)
        return NULL;
    memset(start, FENCE_BYTE, FENCE);
    memset(start + FENCE + bytes, FENCE_BYTE, FENCE);
    if (pool->debug)
        poison(start + FENCE, bytes);
    pool->blocks[pool->count] = (block){allocation, start, bytes, kind};
    close_fences(&pool->blocks[pool->count++]);
    pool->bytes += bytes;
    return start + FENCE;
}

void *nsa_pool_alloc(nsa_pool *pool, nsa_memory_kind kind, int64_t count, size_t size) {
    size_t bytes;
    void *memory = NULL;
    if (count < 0 || __builtin_mul_overflow((size_t)count, size, &bytes) ||
        bytes > PTRDIFF_MAX - 2 * FENCE - ALIGNMENT)
        bytes = PTRDIFF_MAX;
    else if (bytes <= pool->max_bytes - pool->bytes)
        memory = alloc_bytes(pool, kind, bytes);
    if (!memory && !pool->failed_bytes)
        pool->failed_bytes = (int64_t)bytes;
    return memory;
}

nsa_status nsa_pool_status(const nsa_pool *pool) {
    if (!pool->failed_bytes)
        return NSA_OK;
    return nsa_fail(NSA_ERR_MEMORY, "cannot allocate %" PRId64 " more bytes: %zu of %zu are taken",
                    pool->failed_bytes, pool->bytes, pool->max_bytes);
}

void nsa_pool_poison(nsa_pool *pool, unsigned kinds) {
    for (size_t i = 0; pool->debug && i < pool->count; i++) {
        const block *b = &pool->blocks[i];
        if (!(b->kind & kinds))
            continue;
        poison(b->start + FENCE, b->bytes);
    }
}

static int fence_intact(const unsigned char *fence) {
    for (int i = 0; i < FENCE; i++) {
        if (fence[i] != FENCE_BYTE)
            return 0;
    }
    return 1;
}

nsa_status nsa_pool_check(const nsa_pool *pool) {
    for (size_t i = 0; i < pool->count; i++) {
        const block *b = &pool->blocks[i];
        open_fences(b);
        int before = fence_intact(b->start), after = fence_intact(b->start + FENCE + b->bytes);
        close_fences(b);
        if (!before || !after)
            return nsa_fail(NSA_ERR_MEMORY, "the stage wrote %s its block %zu of %zu bytes",
                            before ? "past the end of" : "before the start of", i, b->bytes);
    }
    return NSA_OK;
}

size_t nsa_pool_bytes(const nsa_pool *pool) {
    return pool->bytes;
}

void nsa_pool_free(nsa_pool *pool) {
    if (!pool)
        return;
    for (size_t i = 0; i < pool->count; i++) {
        open_fences(&pool->blocks[i]);
        free(pool->blocks[i].allocation);
    }
    free(pool->blocks);
    free(pool);
}
