/**
 * @file ratio.h
 * @brief How many times as fast one program is as another.
 */
#ifndef BENCH_RATIO_H
#define BENCH_RATIO_H

#include "bench/bench.h"
#include "bench/timing.h"

/** Rounds that two rows must share for a ratio of rounds. */
enum { BENCH_MIN_SHARED = 3 };

/**
 * Median and quartiles of than's time over r's, round by round: a speed of the machine that changes
 * slowly beside a round falls out of each of them. Where fewer than BENCH_MIN_SHARED rounds timed
 * both, or a run file does not have them, the ratio of the medians, and by the quartiles of both
 * the worst and the best.
 */
bench_stats bench_ratio(const bench_row *r, const bench_row *than);

#endif
