/**
 * @file machine.h
 * @brief The machine and build of a run: processor, compiler, flags, commit, date.
 */
#ifndef BENCH_MACHINE_H
#define BENCH_MACHINE_H

#include "bench/bench.h"
#include "nsa_find.h"

/** Fill in everything that is not measured.
 *  @param run     filled in up to `load`
 *  @param o       the options
 *  @param found   the stages, whose extra flags are recorded
 *  @param stages  how many */
void machine_describe(bench_run *run, const bench_options *o, const nsa_found *found,
                      size_t stages);

#endif
