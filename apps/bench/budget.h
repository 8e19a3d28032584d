/**
 * @file budget.h
 * @brief Predict how long a row will take from its times at shorter lengths.
 */
#ifndef BENCH_BUDGET_H
#define BENCH_BUDGET_H

#include "bench/bench.h"

/** Times of one program at the last two lengths. */
typedef struct bench_history {
    char name[64];   /**< the row's */
    int64_t T[2];    /**< lengths; [1] is the latest, 0: none */
    double cost[2];  /**< seconds of everything before timing */
    double first[2]; /**< seconds of one run */
} bench_history;

/** All programs of one pass. */
typedef struct bench_budget {
    bench_history history[4 * BENCH_MAX_STAGES]; /**< by name */
    int count;                                   /**< how many */
    int runs;                                    /**< --runs, or 0 */
} bench_budget;

/** @return how often a run of `seconds` is timed: as --runs says, cut to what fits into `limit`
 * seconds but at least three times; without --runs, by its length alone. */
int budget_runs(const bench_budget *b, double seconds, double limit);

/** @param b      what earlier rows took
 *  @param name   of the row's stage or baseline
 *  @param T      tokens
 *  @param limit  seconds that it may take, for budget_runs()
 *  @return predicted seconds of the row; 0 if nothing is known yet. */
double budget_cost(const bench_budget *b, const char *name, int64_t T, double limit);

/** Record a program's times: `cost` before timing, `first` for one run. */
void budget_note(bench_budget *b, const char *name, int64_t T, double cost, double first);

#endif
