/**
 * @file fence.h
 * @brief Tell AddressSanitizer and valgrind about memory that malloc does not know to be out of
 * bounds: the fences in a block, and contents that have stopped mattering.
 *
 * Both see the borders of what malloc gave, and a fence lies within. In a plain build every line
 * here is empty. valgrind is told only in a build with -DNSA_VALGRIND, which needs its headers.
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

/** From now on nobody may touch these bytes. */
static inline void nsa_hide(const void *start, size_t bytes) {
#ifdef NSA_ASAN
    __asan_poison_memory_region(start, bytes);
#endif
#ifdef NSA_VALGRIND
    VALGRIND_MAKE_MEM_NOACCESS(start, bytes);
#endif
    (void)start, (void)bytes;
}

/** These bytes may be read and written again, and hold what they held. */
static inline void nsa_show(const void *start, size_t bytes) {
#ifdef NSA_ASAN
    __asan_unpoison_memory_region(start, bytes);
#endif
#ifdef NSA_VALGRIND
    VALGRIND_MAKE_MEM_DEFINED(start, bytes);
#endif
    (void)start, (void)bytes;
}

/** What these bytes hold counts as never written: to branch on it is an error. */
static inline void nsa_forget(const void *start, size_t bytes) {
#ifdef NSA_VALGRIND
    VALGRIND_MAKE_MEM_UNDEFINED(start, bytes);
#endif
    (void)start, (void)bytes;
}

#endif
