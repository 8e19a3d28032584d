/**
 * @file demo_run.h
 * @brief Running one stage on rows of the text: its time, and its results as doubles.
 */
#ifndef DEMO_RUN_H
#define DEMO_RUN_H

#include "demo/embed.h"

/** A request to run a stage. */
typedef struct demo_request {
    const nsa_stage *stage;  /**< the stage */
    const demo_model *model; /**< config and inputs */
    const int32_t *row;      /**< [R] query rows, ascending; NULL for all */
    int64_t R;               /**< how many; T for all */
    int32_t *forced;         /**< [T,Hkv,n] blocks to use; NULL to let the stage select */
    int importance;          /**< 1 to read the importance too */
    int k_phi;               /**< 1 to read the compressed keys too */
    const char *label;       /**< label of the progress line; NULL for none */
    double seconds;          /**< expected time, for the progress line; 0 if not known */
} demo_request;

/** The results. Floats are converted to double. */
typedef struct demo_run {
    int64_t R;          /**< rows */
    int64_t J;          /**< selection blocks of the text */
    int32_t *row;       /**< [R] the rows, also if all are computed */
    double *out;        /**< [R,Hq,dv] */
    int32_t *block_idx; /**< [R,Hkv,n] */
    double *importance; /**< [R,Hkv,J], NULL unless asked for */
    double *k_phi;      /**< [N,Hkv,dk], NULL unless asked for */
    double seconds;     /**< nsa_forward() alone, without load and read */
} demo_run;

/** Open the stage, load, time the forward, read, close.
 *  @param request       what to run
 *  @param[out] run  for demo_run_free(), on success
 *  @return the stage's status */
nsa_status demo_run_stage(const demo_request *request, demo_run *run);

/** Free a run's memory; a zeroed run is allowed.
 *  @param run  of demo_run_stage() */
void demo_run_free(demo_run *run);

/** @return the index of a row of the text in the run, -1 if it was not computed.
 *  @param run  the run
 *  @param t    the row */
int64_t demo_run_find(const demo_run *run, int64_t t);

/** @return seconds on a monotonic clock. */
double demo_now(void);

/** A set of query rows. */
typedef struct demo_rows {
    int64_t T;     /**< rows of the text */
    int64_t count; /**< rows in the list */
    char *in_set;  /**< [T] 1 if in the set */
    int32_t *list; /**< [count] ascending; NULL until demo_rows_list() */
} demo_rows;

/** Start with an empty set.
 *  @param[out] rows  for demo_rows_free()
 *  @param T          rows of the text
 *  @return NSA_OK or NSA_ERR_MEMORY */
nsa_status demo_rows_new(demo_rows *rows, int64_t T);

/** Add `count` rows spread evenly over [from, to), both ends included.
 *  @param rows   the set
 *  @param from   first row
 *  @param to     past the last row
 *  @param count  how many, at most to - from */
void demo_rows_spread(demo_rows *rows, int64_t from, int64_t to, int64_t count);

/** Make the ascending list of the set's rows.
 *  @param rows  the set
 *  @return NSA_OK or NSA_ERR_MEMORY */
nsa_status demo_rows_list(demo_rows *rows);

/** Free a set's memory.
 *  @param rows  of demo_rows_new() */
void demo_rows_free(demo_rows *rows);

#endif
