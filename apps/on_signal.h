/**
 * @file on_signal.h
 * @brief Cleaning up when a signal ends the program: INT (Ctrl-C), TERM or HUP.
 */
#ifndef ON_SIGNAL_H
#define ON_SIGNAL_H

/** From now on these signals call `clean` and then end the program as usual. A signal that was
 * ignored from the start, by nohup or in a background job, stays ignored.
 *  @param clean  async-signal-safe; NULL to stop cleaning up */
void on_signal(void (*clean)(void));

/** From now on signals wait: what `clean` uses is about to change. */
void signals_hold(void);

/** What `clean` uses is consistent again; a signal that waited ends the program now. */
void signals_release(void);

#endif
