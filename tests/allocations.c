/** @file allocations.c
 *  @brief Count this program's allocations, including the stages', for the property no_malloc. Not
 * linked into `nsa`: sanitizers and valgrind, which run `nsa check`, replace malloc themselves. */
#include "harness/properties.h"

#include <errno.h>
#include <stddef.h>

/* glibc's allocator, behind the names that this file overrides. */
/* NOLINTBEGIN(bugprone-reserved-identifier): its names, not ours */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
/* NOLINTEND(bugprone-reserved-identifier) */

static long calls; /* atomic: stages with threads may allocate in several */

static void count_call(void) {
    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
}

static long allocations(void) {
    return __atomic_load_n(&calls, __ATOMIC_RELAXED);
}

__attribute__((constructor)) static void offer_count(void) {
    harness_allocations = allocations;
}

/* Exported, so that shared objects use these instead of glibc's. */
#define TAKES_OVER __attribute__((visibility("default")))

TAKES_OVER void *malloc(size_t size);
TAKES_OVER void *calloc(size_t count, size_t size);
TAKES_OVER void *realloc(void *old, size_t size);
TAKES_OVER void *memalign(size_t alignment, size_t size);
TAKES_OVER void *aligned_alloc(size_t alignment, size_t size);
TAKES_OVER int posix_memalign(void **out, size_t alignment, size_t size);

void *malloc(size_t size) {
    count_call();
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    count_call();
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
    count_call();
    return __libc_realloc(old, size);
}

void *memalign(size_t alignment, size_t size) {
    count_call();
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    return memalign(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    *out = memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}
