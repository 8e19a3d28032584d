/** @file demo_progress.c
 *  @brief A thread prints the elapsed time, because a forward is a single call. */
#include "demo/demo_progress.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

struct demo_progress {
    pthread_t thread;
    pthread_mutex_t lock; /* protects `done` */
    pthread_cond_t wake;
    int done;
    int terminal;
    char label[64];
    double seconds; /* expected, 0 if not known */
};

static void tell(const demo_progress *p, int elapsed) {
    char line[128], about[32] = ""; /* large enough for all of it */
    if (p->seconds >= 1.5)
        snprintf(about, sizeof about, " of about %.0f", p->seconds);
    snprintf(line, sizeof line, "%s: %d%s s", p->label, elapsed, about);
    /* Overwrite the line with padding and a carriage return, without other control codes. */
    if (p->terminal)
        fprintf(stderr, "\r%-78s\r%s", "", line);
    else
        fprintf(stderr, "%s\n", line);
    fflush(stderr);
}

static void *watch(void *argument) {
    demo_progress *p = argument;
    struct timespec when;
    clock_gettime(CLOCK_REALTIME, &when);
    pthread_mutex_lock(&p->lock);
    for (int elapsed = 1; !p->done; elapsed++) {
        when.tv_sec++;
        while (!p->done && pthread_cond_timedwait(&p->wake, &p->lock, &when) == 0)
            ; /* a spurious wake-up: wait on */
        if (!p->done && (p->terminal || elapsed % 10 == 0))
            tell(p, elapsed);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

demo_progress *demo_progress_start(const char *label, double seconds) {
    demo_progress *p = label ? calloc(1, sizeof *p) : NULL;
    if (!p) /* optional: go on without it */
        return NULL;
    p->terminal = isatty(STDERR_FILENO);
    p->seconds = seconds;
    snprintf(p->label, sizeof p->label, "%s", label);
    fflush(stdout); /* keep the order of output */
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    if (pthread_create(&p->thread, NULL, watch, p)) {
        free(p);
        return NULL;
    }
    return p;
}

void demo_progress_stop(demo_progress *p) {
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->done = 1;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    if (p->terminal)
        fprintf(stderr, "\r%-78s\r", "");
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    free(p);
}
