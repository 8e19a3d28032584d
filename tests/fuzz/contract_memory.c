/** @file contract_memory.c
 *  @brief malloc, calloc, realloc and aligned_alloc, linked with --wrap: they allocate up to a
 * limit, then return NULL. */
#include "fuzz/contract.h"

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names, not ours */
extern void *__real_malloc(size_t size);
extern void *__real_calloc(size_t count, size_t size);
extern void *__real_realloc(void *old, size_t size);
extern void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static int limited, refused;
static size_t bytes_left;
static int64_t calls_left;

void memory_limit(size_t bytes, int64_t calls) {
    limited = 1;
    refused = 0;
    bytes_left = bytes;
    calls_left = calls;
}

int memory_unlimit(void) {
    limited = 0;
    return refused;
}

static int allows(size_t size) {
    if (!limited)
        return 1;
    if (size > bytes_left || calls_left <= 0) {
        refused = 1;
        return 0;
    }
    bytes_left -= size;
    calls_left--;
    return 1;
}

void *memory_alloc(size_t bytes) {
    return __real_malloc(bytes);
}

void *__wrap_malloc(size_t size) {
    return allows(size) ? __real_malloc(size) : NULL;
}

void *__wrap_calloc(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        return NULL;
    return allows(bytes) ? __real_calloc(count, size) : NULL;
}

void *__wrap_realloc(void *old, size_t size) {
    return allows(size) ? __real_realloc(old, size) : NULL;
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return allows(size) ? __real_aligned_alloc(alignment, size) : NULL;
}
/* NOLINTEND(bugprone-reserved-identifier) */
