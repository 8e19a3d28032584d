/**
 * @file on_signal.h
 * @brief What has to be tidied up when a signal ends the program: INT (Ctrl-C), TERM or HUP.
 */
#ifndef ON_SIGNAL_H
#define ON_SIGNAL_H

/** From here on these signals call `clean` before they end the program as ever. One that was
 * ignored from the start, by nohup or for a background job, stays so.
 *  @param clean  calls only what a signal handler may; NULL: nothing is left to tidy up */
void on_signal(void (*clean)(void));

/** From here on a signal waits: what `clean` looks at is about to change. */
void signals_hold(void);

/** What `clean` looks at is in order again; a signal that waited ends the program now. */
void signals_release(void);

#endif
