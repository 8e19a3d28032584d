/**
 * @file trial.h
 * @brief Running and judging the stages, each on as many queries as time allows.
 */
#ifndef DEMO_TRIAL_H
#define DEMO_TRIAL_H

#include "demo/demo_report.h"

enum { DEMO_MAX_NAMED = 32 /**< maximum stages named on the command line */ };

/** The command line. */
typedef struct demo_options {
    const char *file;                  /**< NULL for the essay */
    const char *output;                /**< folder of the pictures */
    const char *named[DEMO_MAX_NAMED]; /**< stages, all if none */
    size_t names;                      /**< how many */
    double seconds;                    /**< total time, approximately */
} demo_options;

/** Everything the demo holds. */
typedef struct demo_state {
    demo_options options; /**< the command line */
    demo_text text;       /**< the text */
    demo_model model;     /**< inputs */
    demo_model rounded;   /**< the same in bfloat16, made when a stage needs it */
    nsa_found oracle;     /**< stage 00 */
    nsa_found *list;      /**< the stages to try; 00 may be among them */
    size_t count;         /**< how many */
    demo_rows rows;       /**< queries of the oracle */
    demo_run reference;   /**< stage 00 on these, without forced blocks */
    double oracle_query;  /**< seconds a query of stage 00 */
    demo_run widest;      /**< the run with the most queries, for the map; may be empty */
    double widest_query;  /**< its seconds a query */
    char widest_name[64]; /**< its stage */
    double end;           /**< when the time is used up, by demo_now() */
    int failed;           /**< 1 if any comparison failed */
} demo_state;

/** Find stage 00 and the stages to compare with it; errors are printed.
 *  @param s  options are set
 *  @return an exit_code */
int demo_find_stages(demo_state *s);

/** @return 1 if that stage is stage 00 itself.
 *  @param s      the state
 *  @param found  of its list */
int demo_is_oracle(const demo_state *s, const nsa_found *found);

/** @return how many stages of the list will run: those that can run here, except 00.
 *  @param s  the state */
int demo_runners(const demo_state *s);

/** Run stage 00 on sampled queries; errors are printed.
 *  @param s  text, model and stages are there
 *  @return an exit_code */
int demo_run_oracle(demo_state *s);

/** Plan, run and judge one stage, and print its line.
 *  @param s      after demo_run_oracle()
 *  @param found  the stage
 *  @param left   how many stages still have to run, this one included */
void demo_try_stage(demo_state *s, const nsa_found *found, int left);

#endif
