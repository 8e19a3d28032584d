/**
 * @file random.h
 * @brief Seeded random numbers that are the same on every machine: integer steps and sums, no libm.
 */
#ifndef HARNESS_RANDOM_H
#define HARNESS_RANDOM_H

#include <stdint.h>

/** Next of a splitmix64 stream (Steele, Lea, Flood 2014). */
static inline uint64_t random_next(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/** Uniform in [0,1), 24 bits: exact in float32. */
static inline float random_uniform(uint64_t *state) {
    return (float)(random_next(state) >> 40) / 16777216.0f;
}

/** Nearly normal, mean 0 and variance 1: twelve uniforms less six (Irwin-Hall). */
static inline float random_normal(uint64_t *state) {
    float sum = -6;
    for (int i = 0; i < 12; i++)
        sum += random_uniform(state);
    return sum;
}

/** FNV-1a of a text: the seed of a case is that of its string. */
static inline uint64_t random_seed(const char *text) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (; *text; text++)
        hash = (hash ^ (unsigned char)*text) * 0x100000001B3u;
    return hash;
}

#endif
