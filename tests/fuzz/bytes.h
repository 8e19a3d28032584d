/**
 * @file bytes.h
 * @brief The fuzzer's bytes as a stream of choices, and functions for every target.
 */
#ifndef FUZZ_BYTES_H
#define FUZZ_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/** Called by libFuzzer, or by tests/fuzz/replay.c without it.
 *  @return 0 */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/** The remaining bytes. After the last one only zeros are drawn. */
typedef struct choices {
    const uint8_t *next; /**< the next byte */
    size_t left;         /**< remaining bytes */
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

/** Check a rule that must hold for any bytes; the fuzzer keeps an input that breaks it. */
#define MUST(holds)                                                                                \
    do {                                                                                           \
        if (!(holds)) {                                                                            \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #holds);             \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
