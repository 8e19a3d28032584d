/**
 * @file report.h
 * @brief Runs as tables and as points for gnuplot; and whether two runs agree.
 */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include "bench/bench.h"

/** Print one table of a run.
 *  @param run   the run
 *  @param what  "machine", "forward", "backward", "decode", "phases", "kernels", "peers", "own",
 *               "growth" or "noise"; with "/STAGE" behind it, that stage's rows alone
 *  @param file  the run file's name, told below the table; NULL if there is none
 *  @return NSA_ERR_INPUT if there is no such table */
nsa_status report_table(const bench_run *run, const char *what, const char *file);

/** @return 1 if a table of one stage (NULL: of all) is to have this program's rows. */
int report_wanted(const char *name, const char *stage);

/** Print every phase beside its floor, the least time that the ceilings allow for it. */
void report_kernels(const bench_run *run, const char *stage);

/** Print how many times faster than each peer every stage is. */
void report_peers(const bench_run *run, const char *stage);

/** Print each stage beside its own plain causal attention, with the ratio of their operations and
 *  what part of it the times reach; and beside its own run with one thread, where there is one. */
void report_own(const bench_run *run, const char *stage);

/** Print points, a block for each curve: its name in quotes, then lines of numbers.
 *  @param run   the run
 *  @param what  "time", "speedup" or "share" (T, value, low, high), or "phases" (name, then shares
 *               of the time at the longest length); "/backward" behind it for another pass
 *  @return NSA_ERR_INPUT if there is no such figure */
nsa_status report_points(const bench_run *run, const char *what);

/** Say for every ratio that both runs have whether their spreads overlap: the quartiles of rounds,
 *  or in a file without rounds the worst and the best of both quartiles.
 *  @return how many do not */
int report_compare(const bench_run *a, const bench_run *b);

#endif
