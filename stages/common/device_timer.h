/**
 * @file device_timer.h
 * @brief A phase timer for CUDA stages, as timer.h is for those of the CPU: events in the stream,
 * one at the end of each phase.
 */
#ifndef NSA_DEVICE_TIMER_H
#define NSA_DEVICE_TIMER_H

#include "common/device_stream.h"

enum { NSA_MAX_INTERVALS = 1024 /**< of a call; what comes after them is counted as the last */ };

/** The intervals of the last call. */
typedef struct nsa_device_timer {
    cudaEvent_t event[NSA_MAX_INTERVALS + 1]; /**< interval i ends at event[i + 1] */
    int phase[NSA_MAX_INTERVALS];             /**< the phase of each interval */
    int count;                                /**< intervals; -1 in a capture: none is timed */
} nsa_device_timer;

/** Record event i, which is made when it is first wanted. */
static inline nsa_status nsa_device_timer_record(nsa_device_timer *timer,
                                                 const nsa_device_stream *s, int i) {
    if (!timer->event[i])
        NSA_CUDA(cudaEventCreate(&timer->event[i]));
    NSA_CUDA(cudaEventRecord(timer->event[i], s->now));
    return NSA_OK;
}

/** Destroy the events. */
static inline void nsa_device_timer_close(nsa_device_timer *timer) {
    for (int i = 0; i <= NSA_MAX_INTERVALS; i++) {
        if (timer->event[i])
            (void)cudaEventDestroy(timer->event[i]);
    }
}

/** Start timing a call; a graph's events could not be asked, so a captured call is not timed. */
static inline nsa_status nsa_device_timer_start(nsa_device_timer *timer,
                                                const nsa_device_stream *s) {
    timer->count = nsa_stream_captures(s) ? -1 : 0;
    return timer->count < 0 ? NSA_OK : nsa_device_timer_record(timer, s, 0);
}

/** Assign the work submitted since the last start or add to `phase`. */
static inline nsa_status nsa_device_timer_add(nsa_device_timer *timer, const nsa_device_stream *s,
                                              int phase) {
    if (timer->count < 0)
        return NSA_OK;
    if (timer->count < NSA_MAX_INTERVALS)
        timer->phase[timer->count++] = phase;
    return nsa_device_timer_record(timer, s, timer->count);
}

/** For nsa_stage.phases: those that took time; waits. @return how many are listed */
static inline int nsa_device_timer_list(const nsa_device_timer *timer, const char *const *names,
                                        int phases, nsa_phase *list, int capacity) {
    int n = 0;
    if (timer->count > 0)
        (void)cudaEventSynchronize(timer->event[timer->count]);
    for (int p = 0; p < phases && n < capacity; p++) {
        double seconds = 0;
        for (int i = 0; i < timer->count; i++) {
            float ms = 0;
            if (timer->phase[i] == p &&
                cudaEventElapsedTime(&ms, timer->event[i], timer->event[i + 1]) == cudaSuccess)
                seconds += 1e-3 * ms;
        }
        if (seconds > 0)
            list[n++] = nsa_phase{names[p], seconds};
    }
    return n;
}

#endif
