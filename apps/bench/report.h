/**
 * @file report.h
 * @brief Print runs as tables and as points for gnuplot; compare two runs.
 */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include "bench/bench.h"

/** Print one table of a run.
 *  @param run   the run
 *  @param what  "machine", "forward", "backward", "decode", "phases", "kernels", "peers", "own",
 *               "growth" or "noise"; with "/STAGE" appended, only that stage's rows
 *  @param file  the run file's name, printed below the table; NULL if there is none
 *  @return NSA_ERR_INPUT if there is no such table */
nsa_status report_table(const bench_run *run, const char *what, const char *file);

/** @return 1 if a table of one stage (NULL: of all) shows this program's rows. */
int report_wanted(const char *name, const char *stage);

/** Print every phase and its floor, the shortest time that the ceilings allow. */
void report_kernels(const bench_run *run, const char *stage);

/** Print how many times faster than each peer every stage is. */
void report_peers(const bench_run *run, const char *stage);

/** Print each stage's ratio to its own plain causal attention, the ratio of their FLOPs and what
 * share of it is reached; and its ratio to its own run with one thread, if there is one. */
void report_own(const bench_run *run, const char *stage);

/** Print points, a block for each curve: its name in quotes, then lines of numbers.
 *  @param run   the run
 *  @param what  "time", "speedup" or "share" (T, value, low, high), or "phases" (name, then shares
 *               of the time at the longest length); "/backward" appended for another pass
 *  @return NSA_ERR_INPUT if there is no such figure */
nsa_status report_points(const bench_run *run, const char *what);

/** Print for every ratio that both runs have whether the spreads overlap: the quartiles by rounds,
 * or without rounds the lowest and the highest from both quartiles.
 *  @return how many do not */
int report_compare(const bench_run *a, const bench_run *b);

#endif
