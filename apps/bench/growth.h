/**
 * @file growth.h
 * @brief What follows from the times: shares of the ceilings, ratios, growth, crossings, noise.
 */
#ifndef BENCH_GROWTH_H
#define BENCH_GROWTH_H

#include "bench/bench.h"
#include "bench/ceilings.h"

/** Fill in everything of a run that follows from its rows and ceilings. */
void growth_and_ratios(bench_run *run, const bench_ceilings *ceilings);

/** @return the row of that name, pass and length if it was timed, else NULL. */
const bench_row *bench_find(const bench_run *run, const char *name, const char *pass, int64_t T);

#endif
