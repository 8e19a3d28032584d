/**
 * @file timer.h
 * @brief A phase timer for CPU stages: one call at the end of each phase.
 */
#ifndef NSA_TIMER_H
#define NSA_TIMER_H

#include "nsa.h"

#include <time.h>

enum { NSA_MAX_PHASES = 8 /**< maximum phases of a stage */ };

/** Seconds spent in each phase since the last nsa_timer_start(). */
typedef struct nsa_timer {
    double seconds[NSA_MAX_PHASES]; /**< indexed by the stage's phase number */
    double last;                    /**< when the last phase ended */
} nsa_timer;

/** Seconds on the monotonic clock. */
static inline double nsa_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/** Start timing a call: all phases are at zero. */
static inline void nsa_timer_start(nsa_timer *timer) {
    *timer = (nsa_timer){.last = nsa_now()};
}

/** Add the time since the last start or add to `phase`. */
static inline void nsa_timer_add(nsa_timer *timer, int phase) {
    const double now = nsa_now();
    timer->seconds[phase] += now - timer->last;
    timer->last = now;
}

#endif
