/** @file machine.c
 *  @brief The machine and build of a run. The Makefile defines the flags as macros. */
#include "bench/machine.h"
#include "bench/blas.h"
#include "bench/workload.h"
#include "io/file.h"

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
#ifndef BENCH_DENSE_FLAGS
#define BENCH_DENSE_FLAGS "not recorded"
#endif

/* "model name	: ..." of the first processor. */
static void cpu_name(char *text, size_t capacity) {
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(text, capacity, "unknown");
    while (f && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon)
            continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(text, capacity, "%s", colon + 2);
        break;
    }
    if (f)
        fclose(f);
}

/* The commit of the tree that this program was built in: `git describe` in the program's folder. */
static void commit_name(char *text, size_t capacity) {
    char self[PATH_MAX];
    int ends[2];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    snprintf(text, capacity, "unknown");
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
    for (ssize_t n;
         used + 1 < capacity && (n = read(ends[0], text + used, capacity - 1 - used)) > 0;)
        used += (size_t)n;
    close(ends[0]);
    if (child > 0)
        waitpid(child, NULL, 0);
    text[used] = 0;
    text[strcspn(text, "\n")] = 0;
    if (!text[0])
        snprintf(text, capacity, "unknown");
}

/* Extra flags of one stage; the build writes them to NN_name.flags beside the stage. */
static void add_flags(bench_run *run, const char *dir, const char *stage) {
    char path[PATH_MAX], line[256];
    size_t used = strlen(run->own_flags);
    snprintf(path, sizeof path, "%s/%s.flags", dir, stage);
    FILE *f;
    if (file_stream(path, &f))
        return;
    if (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        if (line[0])
            snprintf(run->own_flags + used, sizeof run->own_flags - used, "; %s: %s", stage, line);
    }
    fclose(f);
}

void machine_describe(bench_run *run, const bench_options *o, const nsa_found *found,
                      size_t stages) {
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
    snprintf(run->own_flags, sizeof run->own_flags, "%s: %s", BENCH_DENSE, BENCH_DENSE_FLAGS);
    for (size_t i = 0; i < stages; i++)
        add_flags(run, o->stage_dir ? o->stage_dir : nsa_stage_dir(), found[i].name);
    snprintf(run->blas, sizeof run->blas, "%s", blas_name());
    strftime(run->date, sizeof run->date, "%Y-%m-%d %H:%M UTC", gmtime_r(&now, &utc));
    workload_text(o, 0, run->workload, sizeof run->workload);
    run->cores = sysconf(_SC_NPROCESSORS_ONLN);
    run->threads = o->threads;
    run->batch = o->batch;
    if (getloadavg(&run->load, 1) != 1)
        run->load = -1;
}
