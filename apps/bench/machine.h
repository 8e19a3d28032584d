/**
 * @file machine.h
 * @brief Where a run took place: processor, compiler, flags, commit, date.
 */
#ifndef BENCH_MACHINE_H
#define BENCH_MACHINE_H

#include "bench/bench.h"
#include "nsa_find.h"

/** Fill in what does not depend on any measurement.
 *  @param run     filled in up to `load`
 *  @param o       what was asked
 *  @param found   the stages, whose own flags are told
 *  @param stages  how many */
void machine_describe(bench_run *run, const bench_options *o, const nsa_found *found,
                      size_t stages);

#endif
