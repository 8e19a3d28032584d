/** @file on_signal.c
 *  @brief Tidying up before a signal ends the program.
 *
 * After signals_hold() a signal is only remembered; signals_release() acts on it. Until then the
 * files may be in any state. No signal is blocked for that: the system would hand a signal that the
 * main thread blocks to another thread, and the handler, which tidies up, must run in the thread
 * that writes the files. */
#include "on_signal.h"

#include <signal.h>
#include <stddef.h>

static const int signals[] = {SIGINT, SIGTERM, SIGHUP};

enum { SIGNALS = sizeof signals / sizeof signals[0] };

static void (*volatile tidy_up)(void);
static volatile sig_atomic_t held, caught;

/* The parent shall see that a signal ended us, and not an exit code of our own. */
static void end(int number) {
    if (tidy_up)
        tidy_up();
    signal(number, SIG_DFL);
    raise(number); /* within a handler it comes when that returns */
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
        sigaddset(&action.sa_mask, signals[i]); /* a second one waits until all is tidied up */
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
