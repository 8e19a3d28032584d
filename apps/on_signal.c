/** @file on_signal.c
 *  @brief Cleaning up before a signal ends the program.
 *
 * After signals_hold() a signal is only recorded; signals_release() acts on it. In between, files
 * may be in any state. Signals are not blocked for this: the system would deliver a blocked signal
 * to another thread, but the handler must run in the thread that writes the files. */
#include "on_signal.h"

#include <signal.h>
#include <stddef.h>

static const int signals[] = {SIGINT, SIGTERM, SIGHUP};

enum { SIGNALS = sizeof signals / sizeof signals[0] };

static void (*volatile tidy_up)(void);
static volatile sig_atomic_t held, caught;

/* End by the signal itself, so that the parent sees it, and not an exit code. */
static void end(int number) {
    if (tidy_up)
        tidy_up();
    signal(number, SIG_DFL);
    raise(number); /* inside a handler, delivered when that returns */
}

static void handle(int number) {
    if (held)
        caught = number;
    else
        end(number);
}

void on_signal(void (*clean)(void)) {
    struct sigaction action = {.sa_handler = clean ? handle : SIG_DFL, .sa_flags = SA_RESTART}, was;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < SIGNALS; i++)
        sigaddset(&action.sa_mask,
                  signals[i]); /* a second signal waits until cleaning up is done */
    if (clean)
        tidy_up = clean;
    for (int i = 0; i < SIGNALS; i++) {
        if (!sigaction(signals[i], NULL, &was) && was.sa_handler != SIG_IGN)
            (void)sigaction(signals[i], &action, NULL);
    }
    if (!clean)
        tidy_up = NULL;
}

void signals_hold(void) {
    held = 1;
}

void signals_release(void) {
    held = 0;
    if (caught)
        end((int)caught);
}
