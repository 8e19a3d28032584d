/**
 * @file growth.h
 * @brief What is computed from the times: shares of the ceilings, ratios, growth, crossings, noise.
 */
#ifndef BENCH_GROWTH_H
#define BENCH_GROWTH_H

#include "bench/bench.h"
#include "bench/ceilings.h"

/** Fill in everything that is computed from a run's rows and ceilings. */
void growth_and_ratios(bench_run *run, const bench_ceilings *ceilings);

/** @return the row of that name, pass and length if it was timed, else NULL. */
const bench_row *bench_find(const bench_run *run, const char *name, const char *pass, int64_t T);

/** @return 1 if the row's name is that of a stage: those begin with a digit. */
int bench_is_stage(const bench_row *row);

/** @return 1 if the name begins with `prefix`: BENCH_OWN_DENSE or BENCH_ONE_THREAD. */
int bench_has_prefix(const char *name, const char *prefix);

#endif
