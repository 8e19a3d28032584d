/**
 * @file progress.h
 * @brief Says on standard error that a long call is still at work.
 */
#ifndef DEMO_PROGRESS_H
#define DEMO_PROGRESS_H

/** Progress of one call. */
typedef struct demo_progress demo_progress;

/** Start telling. Nothing is printed in the first second. A terminal gets one line that renews
 * itself, a pipe a plain line every ten seconds.
 *  @param label    what is being done, NULL to say nothing
 *  @param seconds  how long it may take, 0 if not known
 *  @return for demo_progress_stop(); NULL, which it takes too, if nothing is told */
demo_progress *demo_progress_start(const char *label, double seconds);

/** Stop telling, and clear the line on a terminal.
 *  @param progress  of demo_progress_start() */
void demo_progress_stop(demo_progress *progress);

#endif
