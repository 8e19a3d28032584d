/**
 * @file runfile.h
 * @brief Run files: all results of one run as JSON; its rows as CSV.
 */
#ifndef BENCH_RUNFILE_H
#define BENCH_RUNFILE_H

#include "bench/bench.h"

/** Write a run file, whole or not at all.
 *  @return NSA_ERR_IO or NSA_ERR_MEMORY */
nsa_status runfile_write(const bench_run *run, const char *path);

/** Write the rows as CSV.
 *  @return NSA_ERR_IO */
nsa_status runfile_csv(const bench_run *run, const char *path);

/** Read a run file.
 *  @param path  of a file that runfile_write() wrote, or one with the same keys
 *  @param run   filled in
 *  @return NSA_ERR_IO, NSA_ERR_INPUT or NSA_ERR_MEMORY, naming the file */
nsa_status runfile_read(const char *path, bench_run *run);

#endif
