/**
 * @file timer.h
 * @brief A lap clock for CPU stages: one line at the end of a phase says where the time went.
 */
#ifndef NSA_TIMER_H
#define NSA_TIMER_H

#include "nsa.h"

#include <time.h>

enum { NSA_MAX_PHASES = 8 /**< most phases of a stage */ };

/** Times by phase, since the last start. */
typedef struct nsa_timer {
    double seconds[NSA_MAX_PHASES]; /**< by the stage's number of a phase */
    double last;                    /**< when the last lap ended */
} nsa_timer;

/** Seconds on the monotonic clock. */
static inline double nsa_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/** Begin a call: all phases are at zero. */
static inline void nsa_timer_start(nsa_timer *timer) {
    *timer = (nsa_timer){.last = nsa_now()};
}

/** The time since the last lap was `phase`'s. */
static inline void nsa_timer_add(nsa_timer *timer, int phase) {
    const double now = nsa_now();
    timer->seconds[phase] += now - timer->last;
    timer->last = now;
}

#endif
