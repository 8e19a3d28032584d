/**
 * @file output_lock.h
 * @brief One run at a time into a folder, and cleaning up after a killed run.
 *
 * A run holds a lock on a small file beside the output folder, NAME.partial-lock. The lock ends
 * with its process, so the file of a killed run blocks nobody; the next run locks it and removes it
 * at its end.
 */
#ifndef OUTPUT_LOCK_H
#define OUTPUT_LOCK_H

#include "nsa.h"

#include <limits.h>

/** A lock, held or not. */
typedef struct output_lock {
    char path[PATH_MAX]; /**< the file; "" when the lock is not held */
    int fd;              /**< the open file that the lock is on */
} output_lock;

/** Acquire the lock.
 *  @param[out] lock  for output_unlock()
 *  @param stem       prefix of the names of partial folders, ".partial-" included
 *  @param dir        the output folder, for errors
 *  @return NSA_ERR_STATE if another run holds it, NSA_ERR_IO if the file cannot be created */
nsa_status output_lock_acquire(output_lock *lock, const char *stem, const char *dir);

/** Release the lock, if it is held, and remove its file. Async-signal-safe.
 *  @param lock  of output_lock_acquire() */
void output_unlock(output_lock *lock);

/** Remove the partial folders of processes that no longer exist. Call it with the lock held.
 *  @param stem  as for output_lock_acquire() */
void output_clear_leftovers(const char *stem);

/** Remove the results in a partial folder, and the folder. Async-signal-safe.
 *  @param partial  the folder */
void output_remove_partial(const char *partial);

/** Format a result's path: folder, "/", prefix, name, ".npy". Async-signal-safe.
 *  @param[out] path  the path
 *  @param folder     where
 *  @param prefix     "" or "old-"
 *  @param id         the result
 *  @return 0, or -1 if it is too long */
int output_path(char path[PATH_MAX], const char *folder, const char *prefix, int id);

#endif
