/**
 * @file ratio.h
 * @brief How many times as fast one program is as another.
 */
#ifndef BENCH_RATIO_H
#define BENCH_RATIO_H

#include "bench/bench.h"
#include "bench/timing.h"

/** Minimum rounds that two rows must share for a ratio by rounds. */
enum { BENCH_MIN_SHARED = 3 };

/**
 * Median and quartiles of than's time over r's, round by round: a machine speed that changes slowly
 * compared to a round cancels. With fewer than BENCH_MIN_SHARED shared rounds, or a run file
 * without rounds, the ratio of the medians; the quartiles of both then give the lowest and the
 * highest.
 */
bench_stats bench_ratio(const bench_row *r, const bench_row *than);

#endif
