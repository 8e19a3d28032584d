/**
 * @file bytes.h
 * @brief The fuzzer's bytes as a stream of choices, and what every target needs.
 */
#ifndef FUZZ_BYTES_H
#define FUZZ_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/** What libFuzzer calls (and tests/fuzz/replay.c, where there is no libFuzzer).
 *  @return 0 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/** The bytes that are left. Behind the last one there are zeros, so that short inputs are whole. */
typedef struct choices {
    const uint8_t *next; /**< the next */
    size_t left;         /**< how many */
} choices;

/** @return the next byte. */
static inline unsigned next_byte(choices *b) {
    if (!b->left)
        return 0;
    b->left--;
    return *b->next++;
}

/** @return a number in 0..n-1. */
static inline int64_t next_below(choices *b, unsigned n) {
    return next_byte(b) % n;
}

/** @return 1 once in n times. */
static inline int next_chance(choices *b, unsigned n) {
    return next_byte(b) % n == n - 1;
}

/** @return any 64 bits, as a number. */
static inline int64_t next_word64(choices *b) {
    uint64_t word = 0;
    for (int i = 0; i < 8; i++)
        word = word << 8 | next_byte(b);
    return (int64_t)word;
}

/** A rule that must hold whatever the bytes are: the fuzzer keeps what breaks it. */
#define MUST(holds)                                                                                \
    do {                                                                                           \
        if (!(holds)) {                                                                            \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #holds);             \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
