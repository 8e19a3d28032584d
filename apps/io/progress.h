/**
 * @file progress.h
 * @brief The progress line of a long command on a terminal; nothing if standard error is a file or
 * pipe.
 */
#ifndef PROGRESS_H
#define PROGRESS_H

#include <stdint.h>
#include <time.h>

/** The line. */
typedef struct progress {
    const char *who;      /**< "nsa run" */
    int shows;            /**< standard error is a terminal */
    struct timespec last; /**< when the line last changed */
} progress;

/** Begin.
 *  @param who  the prefix of the line
 *  @return for the other calls */
progress progress_begin(const char *who);

/** Show the current phase.
 *  @param p     from progress_begin()
 *  @param what  a word or two */
void progress_phase(progress *p, const char *what);

/** Show a count; the line changes at most a few times a second.
 *  @param p      from progress_begin()
 *  @param what   what is counted
 *  @param done   the count
 *  @param total  the total */
void progress_count(progress *p, const char *what, int64_t done, int64_t total);

/** Erase the line, before anything else is printed.
 *  @param p  from progress_begin() */
void progress_end(progress *p);

#endif
