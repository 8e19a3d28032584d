/**
 * @file judge.h
 * @brief The oracle of a row: stage 00, or where it would take too long a CPU stage that stage 00
 * has checked on the same heads and dims.
 */
#ifndef BENCH_JUDGE_H
#define BENCH_JUDGE_H

#include "bench/workload.h"
#include "nsa_find.h"

/** The stages that can be the oracle. */
typedef struct bench_judge {
    const bench_options *o; /**< budget, --judge, where the stages are */
    nsa_found oracle;       /**< stage 00 */
    nsa_found second;       /**< --judge, or stage 02 or 01; no stage if there is none */
    double oracle_seconds;  /**< stage 00's seconds for the rows, over T; 0 if unknown (for this
                               pass) */
    int tried;              /**< 1 if the second stage was checked (for this pass) */
    int proven;             /**< 1 if that check passed */
} bench_judge;

/** Find both stages.
 *  @return an error if stage 00 is not there, or the stage that --judge names does not qualify */
nsa_status judge_open(bench_judge *j, const bench_options *o);

/** Reset for another pass. */
void judge_begin(bench_judge *j);

/** Choose the oracle at this length.
 *  @param j     the judges
 *  @param pass  which
 *  @param T     tokens of a sequence
 *  @return the second stage if stage 00 would take more than half of a row's budget (for decode an
 * eighth), or --judge is given, and if its own rows are right at 1024 tokens; else stage 00 */
const nsa_found *judge_of(bench_judge *j, bench_pass pass, int64_t T);

/** Record how long stage 00 took. */
void judge_note(bench_judge *j, int64_t T, double seconds);

/** Unload both. */
void judge_close(bench_judge *j);

#endif
