/**
 * @file demo_judge.h
 * @brief Compares a stage's rows with stage 00, by the specification's "How close is equal".
 */
#ifndef DEMO_JUDGE_H
#define DEMO_JUDGE_H

#include "demo/demo_run.h"
#include "nsa_stage.h"

/** One row of the tolerance table. */
typedef struct demo_tolerance {
    double rms;   /**< maximum rms(a-b)/rms(b) of the outputs */
    double worst; /**< maximum max abs(a-b)/max abs(b) */
    double slack; /**< near-ties of the selection, relative to the smallest freely selected
                     importance */
} demo_tolerance;

/** What the comparison found. */
typedef struct demo_verdict {
    int ok;           /**< 1 if everything holds */
    char why[200];    /**< the first comparison that does not hold */
    double rms;       /**< rms(a-b)/rms(b) of the outputs */
    double worst;     /**< max abs(a-b)/max abs(b) */
    int64_t compared; /**< rows times groups whose selection was compared */
    int64_t same;     /**< of these, equal as sets */
    int64_t tied;     /**< of these, different only by near-ties within the slack */
} demo_verdict;

/** @return the tolerances of an arithmetic.
 *  @param arith  a stage's `arith` */
demo_tolerance demo_tolerances(nsa_arith arith);

/** Judge the selection (Eq. 11) on the oracle's rows.
 *  @param cfg        the config
 *  @param slack      of the tolerances
 *  @param oracle     stage 00 selecting freely, with importance
 *  @param candidate  a run with at least those rows
 *  @param[out] v     counts and, if a row is wrong, why
 *  @return NSA_OK or NSA_ERR_MEMORY */
nsa_status demo_judge_selection(const nsa_config *cfg, double slack, const demo_run *oracle,
                                const demo_run *candidate, demo_verdict *v);

/** Judge every computed row without an oracle: all outputs finite, every selection a legal list.
 *  @param c    the config
 *  @param run  the run
 *  @param v    `ok` is cleared and why is filled in if something is wrong
 *  @return NSA_OK or NSA_ERR_MEMORY */
nsa_status demo_judge_all_rows(const nsa_config *c, const demo_run *run, demo_verdict *v);

/** Judge the outputs on the oracle's rows; NaN fails.
 *  @param cfg        the config
 *  @param limits     the tolerances
 *  @param oracle     stage 00 with the candidate's blocks forced
 *  @param candidate  a run with at least those rows
 *  @param v          gets rms, worst and, if they are too large, why */
void demo_judge_output(const nsa_config *cfg, const demo_tolerance *limits, const demo_run *oracle,
                       const demo_run *candidate, demo_verdict *v);

/** Replace an oracle's importance and selection by those computed in float64 from the compressed
 * keys of a bfloat16 stage (Eq. 8 to 11), whose rounding is allowed.
 *  @param model   the rounded inputs
 *  @param k_phi   [N,Hkv,dk] as the stage emitted them
 *  @param oracle  with memory for importance; changed in place
 *  @return NSA_OK or NSA_ERR_MEMORY */
nsa_status demo_reselect(const demo_model *model, const double *k_phi, demo_run *oracle);

#endif
