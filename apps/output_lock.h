/**
 * @file output_lock.h
 * @brief One run at a time into a folder, and what a killed one left there.
 *
 * A run holds a lock on a small file beside the output folder, NAME.partial-lock. The lock dies
 * with its process, so the file of a run that was killed is in nobody's way; the next run takes it
 * over and removes it at its end.
 */
#ifndef OUTPUT_LOCK_H
#define OUTPUT_LOCK_H

#include "nsa.h"

#include <limits.h>

/** A lock that is held, or not. */
typedef struct output_lock {
    char path[PATH_MAX]; /**< the file; "" when the lock is not held */
    int fd;              /**< the open file that the lock is on */
} output_lock;

/** Take the lock.
 *  @param[out] lock  for output_unlock()
 *  @param stem       what the names of partial folders start with, ".partial-" included
 *  @param dir        the output folder, for errors
 *  @return NSA_ERR_STATE if another run holds it, NSA_ERR_IO if there can be no such file */
nsa_status output_lock_acquire(output_lock *lock, const char *stem, const char *dir);

/** Give the lock back and remove its file; a lock that is not held stays so. For signal handlers,
 * too.
 *  @param lock  of output_lock_acquire() */
void output_unlock(output_lock *lock);

/** Remove the partial folders of runs that are no more: those whose process does not live. Call it
 * with the lock held.
 *  @param stem  as for output_lock_acquire() */
void output_clear_leftovers(const char *stem);

/** Remove the results in a partial folder, and the folder. For signal handlers, too.
 *  @param partial  the folder */
void output_remove_partial(const char *partial);

/** A result's path, folder/prefix name.npy. For signal handlers, too.
 *  @param[out] path  the path
 *  @param folder     where
 *  @param prefix     "" or "old-"
 *  @param id         the result
 *  @return 0, or -1 if it is too long */
int output_path(char path[PATH_MAX], const char *folder, const char *prefix, int id);

#endif
