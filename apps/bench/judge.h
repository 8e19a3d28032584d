/**
 * @file judge.h
 * @brief Who says what is right: stage 00, or where it would take too long a CPU stage that it
 * proved on the same heads and dims.
 */
#ifndef BENCH_JUDGE_H
#define BENCH_JUDGE_H

#include "bench/workload.h"
#include "nsa_find.h"

/** The stages that judge. */
typedef struct bench_judge {
    const bench_options *o; /**< budget, --judge, where the stages are */
    nsa_found oracle;       /**< stage 00 */
    nsa_found second;       /**< --judge, or stage 02 or 01; no stage if there is none */
    double oracle_seconds;  /**< seconds of stage 00's rows, a token; 0 if unknown (of this pass) */
    int tried;              /**< 1 if the second was put to the proof (of this pass) */
    int proven;             /**< 1 if it passed */
} bench_judge;

/** Find both.
 *  @return an error if stage 00 is not there, or the stage that --judge names does not qualify */
nsa_status judge_open(bench_judge *j, const bench_options *o);

/** Forget what was found out: another pass begins. */
void judge_begin(bench_judge *j);

/** Who judges at this length.
 *  @param j     the judges
 *  @param pass  which
 *  @param T     tokens of a sequence
 *  @return one of the two: the second where stage 00 would take more than half the budget of a
 *          row, or --judge is given, and only if its own rows are right at 1024 tokens */
const nsa_found *judge_of(bench_judge *j, bench_pass pass, int64_t T);

/** Note how long stage 00 took. */
void judge_note(bench_judge *j, int64_t T, double seconds);

/** Give both back. */
void judge_close(bench_judge *j);

#endif
