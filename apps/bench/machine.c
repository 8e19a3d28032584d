/** @file machine.c
 *  @brief Where a run took place. The Makefile hands the flags over: no program can ask for its
 * own. */
#include "bench/machine.h"
#include "bench/blas.h"
#include "bench/workload.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef BENCH_FLAGS
#define BENCH_FLAGS "not recorded"
#endif
#ifndef BENCH_OWN_FLAGS
#define BENCH_OWN_FLAGS ""
#endif

/* "model name	: ..." of the first processor. */
static void cpu_name(char *text, size_t room) {
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(text, room, "unknown");
    while (f && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon)
            continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(text, room, "%s", colon + 2);
        break;
    }
    if (f)
        fclose(f);
}

/* What git says of the tree that this program was built in: the folder above its own. */
static void commit_name(char *text, size_t room) {
    char self[PATH_MAX];
    int ends[2];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    snprintf(text, room, "unknown");
    self[length > 0 ? length : 0] = 0;
    char *slash = strrchr(self, '/');
    if (!slash || pipe(ends))
        return;
    *slash = 0;
    pid_t child = fork();
    if (!child) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        if (!freopen("/dev/null", "w", stderr))
            _exit(127);
        execlp("git", "git", "-C", self, "describe", "--always", "--dirty", "--abbrev=12",
               (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t n; used + 1 < room && (n = read(ends[0], text + used, room - 1 - used)) > 0;)
        used += (size_t)n;
    close(ends[0]);
    if (child > 0)
        waitpid(child, NULL, 0);
    text[used] = 0;
    text[strcspn(text, "\n")] = 0;
    if (!text[0])
        snprintf(text, room, "unknown");
}

void machine_describe(bench_run *run, const bench_options *o) {
    time_t now = time(NULL);
    struct tm utc;
    cpu_name(run->cpu, sizeof run->cpu);
    commit_name(run->commit, sizeof run->commit);
#ifdef __clang__
    snprintf(run->compiler, sizeof run->compiler, "%s", __VERSION__);
#else
    snprintf(run->compiler, sizeof run->compiler, "gcc %s", __VERSION__);
#endif
    snprintf(run->flags, sizeof run->flags, "%s", BENCH_FLAGS);
    snprintf(run->own_flags, sizeof run->own_flags, "%s", BENCH_OWN_FLAGS);
    snprintf(run->blas, sizeof run->blas, "%s", blas_name());
    strftime(run->date, sizeof run->date, "%Y-%m-%d %H:%M UTC", gmtime_r(&now, &utc));
    workload_text(o, 0, run->workload, sizeof run->workload);
    run->cores = sysconf(_SC_NPROCESSORS_ONLN);
    run->threads = o->threads;
    run->batch = o->batch;
    if (getloadavg(&run->load, 1) != 1)
        run->load = -1;
}
