/**
 * @file run_output.h
 * @brief The output folder of `nsa run`: all results or none, never some that look like all.
 *
 * Results are written to a folder of their own first. Then that folder takes the name of the
 * output folder, or, where one with files exists, its files change places with the old results.
 * A signal removes what was written and not yet put in place; what a killed run left is removed by
 * the next one into the same folder.
 */
#ifndef RUN_OUTPUT_H
#define RUN_OUTPUT_H

#include "output_lock.h"

#include <sys/types.h>

/** An output folder in the making. */
typedef struct run_output {
    char dir[PATH_MAX];                /**< where results go */
    char partial[PATH_MAX];            /**< where they are written first; "" when it is not there */
    int exists;                        /**< dir is there already */
    mode_t mode;                       /**< its permissions, then */
    int inside;                        /**< partial stands in dir, which is a disk of its own */
    output_lock lock;                  /**< no other run may write there */
    unsigned char fresh[NSA_ID_COUNT]; /**< which results were added */
    int count;                         /**< how many */
    int broken;                        /**< writing failed, which is no mistake of the caller's */
} run_output;

/** Check that results can go there, and decide how; from then on no other run can. No result is
 * written yet.
 *  @param[out] o  for output_discard(), whatever is returned, and for the other calls
 *  @param dir     the output folder; its parent must exist
 *  @param input   the case folder, which must be another
 *  @return NSA_ERR_IO naming the folder and what is wrong with it, NSA_ERR_STATE if another run is
 *          at work there */
nsa_status output_check(run_output *o, const char *dir, const char *input);

/** Write one result.
 *  @param o       from output_check()
 *  @param id      its name
 *  @param tensor  its elements
 *  @return NSA_ERR_IO; then only output_discard() is left to do */
nsa_status output_add(run_output *o, nsa_id id, const nsa_tensor *tensor);

/** Put what was added in its place, and remove results of earlier runs.
 *  @param o  from output_check()
 *  @return NSA_ERR_IO; then the folder is as it was, and output_discard() is left to do */
nsa_status output_publish(run_output *o);

/** Remove what was written but not published, and let other runs have the folder.
 *  @param o  from output_check() */
void output_discard(run_output *o);

#endif
