/**
 * @file contender.h
 * @brief One program at one length: opened, checked, then run as often as asked. The same calls
 * for a stage, for a stage's plain causal attention and for the dense baseline.
 */
#ifndef BENCH_CONTENDER_H
#define BENCH_CONTENDER_H

#include "bench/dense.h"
#include "bench/timing.h"
#include "bench/workload.h"

/** A program that is timed. */
typedef struct contender {
    const nsa_stage *stage;   /**< NULL for the dense baseline */
    int causal;               /**< 1 for plain causal attention */
    const bench_clock *clock; /**< what its runs are timed by */
    nsa_context *ctx;         /**< of a stage */
    dense *dense;             /**< or the baseline */
    dense_inputs in;          /**< of the baseline */
    bench_row *row;           /**< where its figures go */
    double first;             /**< seconds of the run that was checked */
    double cost;              /**< seconds of all that came before timing: prefill, forward, ... */
    int wanted;               /**< runs to time */
    int runs;                 /**< timed so far */
    double sample[BENCH_SAMPLES];              /**< their seconds */
    double phase[BENCH_PHASES][BENCH_SAMPLES]; /**< and those of their phases */
} contender;

/** Take memory and load inputs.
 *  @return NSA_ERR_DEVICE or NSA_ERR_UNSUPPORTED if it cannot run here */
nsa_status contender_open(contender *c, const workload *w, int threads);

/** Run once, and judge the sampled rows; the run warms up, too.
 *  @param c       opened
 *  @param w       after verify_truth()
 *  @param oracle  of verify_truth() */
nsa_status contender_check(contender *c, const workload *w, const nsa_stage *oracle);

/** One run on the clock, its phases noted. */
nsa_status contender_time(contender *c, const workload *w, const bench_clock *clock);

/** Give memory back. */
void contender_close(contender *c);

#endif
