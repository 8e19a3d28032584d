/**
 * @file progress.h
 * @brief One line on a terminal that says what a long command is at; nothing where standard error
 * is a file or pipe.
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
 *  @param who  what the line starts with
 *  @return for the other calls */
progress progress_begin(const char *who);

/** Say what comes now.
 *  @param p     from progress_begin()
 *  @param what  a word or two */
void progress_phase(progress *p, const char *what);

/** Say how far it has come; the line changes a few times a second at most.
 *  @param p      from progress_begin()
 *  @param what   what is counted
 *  @param done   so many
 *  @param total  of so many */
void progress_count(progress *p, const char *what, int64_t done, int64_t total);

/** Wipe the line, before anything else is printed.
 *  @param p  from progress_begin() */
void progress_end(progress *p);

#endif
