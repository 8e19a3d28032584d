/**
 * @file fence.h
 * @brief Tell AddressSanitizer and valgrind what malloc does not know: that the fences inside a
 * block are out of bounds, and that some contents are no longer valid.
 *
 * Both know the bounds of a malloc block, but a fence is inside one. In a plain build these
 * functions do nothing. valgrind is told only in a build with -DNSA_VALGRIND, which needs its
 * headers.
 */
#ifndef NSA_FENCE_H
#define NSA_FENCE_H

#include <stddef.h>

#ifdef __has_feature /* how clang says it; gcc defines __SANITIZE_ADDRESS__ */
#if __has_feature(address_sanitizer)
#define NSA_ASAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define NSA_ASAN 1
#endif

#ifdef NSA_ASAN
#include <sanitizer/asan_interface.h>
#endif
#ifdef NSA_VALGRIND
#include <valgrind/memcheck.h>
#endif

/** From now on any access to these bytes is an error. */
static inline void nsa_hide(const void *start, size_t bytes) {
#ifdef NSA_ASAN
    __asan_poison_memory_region(start, bytes);
#endif
#ifdef NSA_VALGRIND
    VALGRIND_MAKE_MEM_NOACCESS(start, bytes);
#endif
    (void)start, (void)bytes;
}

/** These bytes may be accessed again; their contents are unchanged and valid. */
static inline void nsa_show(const void *start, size_t bytes) {
#ifdef NSA_ASAN
    __asan_unpoison_memory_region(start, bytes);
#endif
#ifdef NSA_VALGRIND
    VALGRIND_MAKE_MEM_DEFINED(start, bytes);
#endif
    (void)start, (void)bytes;
}

/** Treat these bytes as uninitialised: a branch that depends on them is an error. */
static inline void nsa_forget(const void *start, size_t bytes) {
#ifdef NSA_VALGRIND
    VALGRIND_MAKE_MEM_UNDEFINED(start, bytes);
#endif
    (void)start, (void)bytes;
}

#endif
