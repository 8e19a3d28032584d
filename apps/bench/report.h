/**
 * @file report.h
 * @brief Runs as tables and as points for gnuplot; and whether two runs agree.
 */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include "bench/bench.h"

/** Print one table of a run.
 *  @param run   the run
 *  @param what  "machine", "forward", "backward", "decode", "phases", "growth" or "noise"; with
 *               "/STAGE" behind it, that stage's rows alone
 *  @param file  the run file's name, told below the table; NULL if there is none
 *  @return NSA_ERR_INPUT if there is no such table */
nsa_status report_table(const bench_run *run, const char *what, const char *file);

/** Print points, a block for each curve: its name in quotes, then lines of numbers.
 *  @param run   the run
 *  @param what  "time", "speedup" or "share" (T, value, low, high), or "phases" (name, then shares
 *               of the time at the longest length); "/backward" behind it for another pass
 *  @return NSA_ERR_INPUT if there is no such figure */
nsa_status report_points(const bench_run *run, const char *what);

/** Say for every ratio that both runs have whether their spreads overlap.
 *  @return how many do not */
int report_compare(const bench_run *a, const bench_run *b);

#endif
