/**
 * @file machine.h
 * @brief Where a run took place: processor, compiler, flags, commit, date.
 */
#ifndef BENCH_MACHINE_H
#define BENCH_MACHINE_H

#include "bench/bench.h"

/** Fill in what does not depend on any measurement.
 *  @param run  the fields up to `load`
 *  @param o    what was asked */
void machine_describe(bench_run *run, const bench_options *o);

#endif
