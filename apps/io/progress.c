/** @file progress.c
 *  @brief The progress line of a long command. */
#include "io/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

/* Carriage return, and erase the line. */
#define WIPE "\r\033[K"

progress progress_begin(const char *who) {
    progress p = {.who = who, .shows = isatty(STDERR_FILENO)};
    clock_gettime(CLOCK_MONOTONIC, &p.last);
    return p;
}

void progress_phase(progress *p, const char *what) {
    if (p->shows)
        fprintf(stderr, WIPE "%s: %s ...", p->who, what);
}

void progress_count(progress *p, const char *what, int64_t done, int64_t total) {
    struct timespec now;
    if (!p->shows)
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double passed =
        (double)(now.tv_sec - p->last.tv_sec) + 1e-9 * (double)(now.tv_nsec - p->last.tv_nsec);
    if (passed < 0.2) /* at most five updates a second */
        return;
    p->last = now;
    fprintf(stderr, WIPE "%s: %s %" PRId64 " of %" PRId64, p->who, what, done, total);
}

void progress_end(progress *p) {
    if (p->shows)
        fputs(WIPE, stderr);
}
