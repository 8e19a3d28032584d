/**
 * @file contender.h
 * @brief One program at one length: open, check, time. The same calls for a stage, a stage's plain
 * causal attention, the dense baseline and peers.
 *
 * A stage on a device times itself: a run's seconds are the sum of its phases, timed by events in
 * the device's queue. If it lists no phases, the host's clock runs from the call until the device
 * is done.
 */
#ifndef BENCH_CONTENDER_H
#define BENCH_CONTENDER_H

#include "bench/dense.h"
#include "bench/peers.h"
#include "bench/timing.h"
#include "bench/workload.h"

/** A program that is timed. */
typedef struct contender {
    const nsa_stage *stage;   /**< NULL for the dense baseline and for peers */
    int causal;               /**< 1 for plain causal attention */
    bench_device device;      /**< where it runs */
    peers *program;           /**< of a peer */
    const peer *peer;         /**< which, NULL for all others */
    int peer_id;              /**< of its inputs */
    int threads;              /**< that it may use */
    const bench_clock *clock; /**< the clock for its runs */
    nsa_context *ctx;         /**< of a stage */
    dense *dense;             /**< or the baseline */
    dense_inputs in;          /**< of the baseline */
    nsa_tensor cache[2];      /**< its keys and values, for decode */
    bench_row *row;           /**< its row of results */
    double first;             /**< seconds of the run that was checked */
    double cost;              /**< seconds of everything before timing: prefill, forward, ... */
    int wanted;               /**< runs to time */
    int runs;                 /**< timed so far */
    double sample[BENCH_MAX_RUNS];                  /**< their seconds */
    double phase[BENCH_MAX_PHASES][BENCH_MAX_RUNS]; /**< and those of their phases */
} contender;

/** @return its arithmetic. */
nsa_arith contender_arith(const contender *c);

/** Allocate memory and load inputs.
 *  @return NSA_ERR_DEVICE or NSA_ERR_UNSUPPORTED if it cannot run here */
nsa_status contender_open(contender *c, const workload *w);

/** Run once, as a warm-up too, and judge the sampled rows.
 *  @param c       opened
 *  @param w       after verify_truth()
 *  @param oracle  of verify_truth() */
nsa_status contender_check(contender *c, const workload *w, const nsa_stage *oracle);

/** Time one run and its phases. */
nsa_status contender_time(contender *c, const workload *w, const bench_clock *clock);

/** Free its memory. */
void contender_close(contender *c);

#endif
