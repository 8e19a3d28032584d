/**
 * @file demo_progress.h
 * @brief Progress of a long call on standard error.
 */
#ifndef DEMO_PROGRESS_H
#define DEMO_PROGRESS_H

/** Progress of one call. */
typedef struct demo_progress demo_progress;

/** Start reporting. Nothing is printed in the first second. A terminal gets one line that is
 * updated every second, a pipe a line every ten seconds.
 *  @param label    what is being done; NULL to print nothing
 *  @param seconds  expected time, 0 if not known
 *  @return for demo_progress_stop(), which accepts NULL; NULL if nothing is printed */
demo_progress *demo_progress_start(const char *label, double seconds);

/** Stop reporting, and clear the line on a terminal.
 *  @param progress  of demo_progress_start() */
void demo_progress_stop(demo_progress *progress);

#endif
