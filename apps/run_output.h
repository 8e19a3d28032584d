/**
 * @file run_output.h
 * @brief The output folder of `nsa run`: all results or none, never an incomplete set.
 *
 * Results are first written to a partial folder. Then that folder is renamed to the output folder,
 * or, if one with files exists, its files replace the old results. A signal removes what is not
 * published yet; what a killed run left is removed by the next run into the same folder.
 */
#ifndef RUN_OUTPUT_H
#define RUN_OUTPUT_H

#include "output_lock.h"

#include <sys/types.h>

/** An output folder that is being written. */
typedef struct run_output {
    char dir[PATH_MAX];     /**< where results go */
    char partial[PATH_MAX]; /**< the partial folder; "" while there is none */
    int exists;             /**< dir exists already */
    mode_t mode;            /**< its permissions, if so */
    int inside;             /**< the partial folder is inside dir, which is a mounted disk */
    output_lock lock;       /**< keeps other runs out */
    unsigned char fresh[NSA_ID_COUNT]; /**< 1 for each result that was added */
    int count;                         /**< how many */
    int broken;                        /**< writing failed: not a usage error */
} run_output;

/** Check that results can be written there, and lock the folder against other runs. Writes no
 * result yet.
 *  @param[out] o  for output_discard(), also on an error, and for the other calls
 *  @param dir     the output folder; its parent must exist
 *  @param input   the case folder, which must be a different one
 *  @return NSA_ERR_IO naming the folder and what is wrong with it, NSA_ERR_STATE if another run
 * writes there */
nsa_status output_check(run_output *o, const char *dir, const char *input);

/** Write one result.
 *  @param o       from output_check()
 *  @param id      its name
 *  @param tensor  its elements
 *  @return NSA_ERR_IO; then call output_discard() */
nsa_status output_add(run_output *o, nsa_id id, const nsa_tensor *tensor);

/** Publish what was added, and remove results of earlier runs.
 *  @param o  from output_check()
 *  @return NSA_ERR_IO; then the folder is unchanged; call output_discard() */
nsa_status output_publish(run_output *o);

/** Remove what was not published, and unlock the folder.
 *  @param o  from output_check() */
void output_discard(run_output *o);

#endif
