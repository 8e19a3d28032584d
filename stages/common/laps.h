/**
 * @file laps.h
 * @brief A lap clock for CPU stages: one line at the end of a phase says where the time went.
 */
#ifndef NSA_LAPS_H
#define NSA_LAPS_H

#include "nsa.h"

#include <time.h>

enum { NSA_LAPS = 8 /**< most phases of a stage */ };

/** Times by phase, since the last start. */
typedef struct nsa_laps {
    double seconds[NSA_LAPS]; /**< by the stage's number of a phase */
    double last;              /**< when the last lap ended */
} nsa_laps;

/** Seconds on the monotonic clock. */
static inline double nsa_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/** Begin a call: all phases are at zero. */
static inline void nsa_laps_start(nsa_laps *laps) {
    *laps = (nsa_laps){.last = nsa_now()};
}

/** The time since the last lap was `phase`'s. */
static inline void nsa_lap(nsa_laps *laps, int phase) {
    const double now = nsa_now();
    laps->seconds[phase] += now - laps->last;
    laps->last = now;
}

#endif
