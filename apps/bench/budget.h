/**
 * @file budget.h
 * @brief How long a row would take, from what it took at the lengths before.
 */
#ifndef BENCH_BUDGET_H
#define BENCH_BUDGET_H

#include "bench/bench.h"

/** What one program took at the last two lengths. */
typedef struct bench_history {
    char name[64];   /**< the row's */
    int64_t T[2];    /**< lengths; [1] is the latest, 0: none */
    double cost[2];  /**< seconds of all that comes before timing */
    double first[2]; /**< seconds of one run */
} bench_history;

/** All programs of one pass. */
typedef struct bench_budget {
    bench_history history[4 * BENCH_MAX_STAGES]; /**< by name */
    int count;                                   /**< how many */
    int runs;                                    /**< that were asked for, or 0 */
} bench_budget;

/** @return how often a run of so many seconds is timed: as often as was asked for, cut to what fits
 *  into `limit` seconds, and three times at least; if nothing was asked for, by its length alone.
 */
int budget_runs(const bench_budget *b, double seconds, double limit);

/** @param limit  seconds that it may take: for the runs that were asked for, see budget_runs()
 *  @return seconds that a row would take; 0 if nothing is known yet. */
double budget_cost(const bench_budget *b, const char *name, int64_t T, double limit);

/** Note what a program took: `cost` before timing, `first` for one run. */
void budget_note(bench_budget *b, const char *name, int64_t T, double cost, double first);

#endif
