/** @file cmd_bench.c
 *  @brief `nsa bench`: check, then time; print tables and points of run files. */
#include "bench/bench.h"
#include "bench/growth.h"
#include "bench/report.h"
#include "bench/runfile.h"
#include "commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Print a table, or a figure's points, of a run file. */
static nsa_status show(const bench_options *o, bench_run *run) {
    const char *file = o->table ? o->table : o->plot;
    const char *what = o->what ? o->what : o->table ? "forward" : "time";
    nsa_status status = runfile_read(file, run);
    if (status)
        return status;
    return o->table ? report_table(run, what, file) : report_points(run, what);
}

/* "A,B" */
static nsa_status compare(const bench_options *o, bench_run *run, int *disagreements) {
    char first[4096];
    const char *comma = strchr(o->compare, ',');
    if (!comma || (size_t)(comma - o->compare) >= sizeof first)
        return nsa_fail(NSA_ERR_INPUT, "--compare \"%.100s\" is not two run files A,B", o->compare);
    snprintf(first, sizeof first, "%.*s", (int)(comma - o->compare), o->compare);
    bench_run *other = calloc(1, sizeof *other);
    if (!other)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for a run");
    nsa_status status = runfile_read(first, run);
    status = status ? status : runfile_read(comma + 1, other);
    if (!status)
        *disagreements = report_compare(run, other);
    free(other);
    return status;
}

static int has_own_rows(const bench_run *run) {
    int found = 0;
    for (int i = 0; i < run->rows; i++)
        found |= bench_has_prefix(run->row[i].name, BENCH_OWN_DENSE) ||
                 bench_has_prefix(run->row[i].name, BENCH_ONE_THREAD);
    return found;
}

static void print_all(const bench_options *o, const bench_run *run) {
    report_table(run, "machine", o->json);
    for (int pass = 0; pass < BENCH_PASSES; pass++) {
        if (!o->pass[pass])
            continue;
        printf("\n## %s\n\n", bench_pass_name((bench_pass)pass));
        report_table(run, bench_pass_name((bench_pass)pass), NULL);
    }
    printf("\n## phases\n\n");
    report_table(run, "phases", NULL);
    if (run->gflops > 0 || run->gpu[0]) {
        printf("\n## kernels: phases and the shortest times that the ceilings allow\n\n");
        report_table(run, "kernels", NULL);
    }
    if (run->peers[0]) {
        printf("\n## peers\n\n");
        report_table(run, "peers", NULL);
    }
    if (has_own_rows(run)) {
        printf("\n## own: vs the stage's own dense attention and its own single thread\n\n");
        report_table(run, "own", NULL);
    }
    if (run->fits) {
        printf("\n## growth: a T + b T^2\n\n");
        report_table(run, "growth", NULL);
    }
    printf("\n");
    report_table(run, "noise", NULL);
}

/* Check and time everything; count the rows that were wrong. */
static nsa_status measure(const bench_options *o, bench_run *run, int *refused) {
    nsa_status status = bench_sweep(o, run);
    if (status)
        return status;
    print_all(o, run);
    for (int i = 0; i < run->rows; i++)
        *refused += !strncmp(run->row[i].status, "REFUSED", 7);
    return o->csv ? runfile_csv(run, o->csv) : NSA_OK; /* the sweep wrote the run file */
}

int cmd_bench(int argc, char **argv) {
    bench_options o;
    int code = bench_parse(argc, argv, &o), failed = 0;
    if (code)
        return code;
    bench_run *run = calloc(1, sizeof *run);
    if (!run)
        return command_error(EXIT_FAILED, argv[0], "no memory for a run");
    nsa_status status = o.table || o.plot ? show(&o, run)
                        : o.compare       ? compare(&o, run, &failed)
                                          : measure(&o, run, &failed);
    free(run);
    if (status)
        return command_status(status, argv[0]);
    return failed ? EXIT_FAILED : EXIT_DONE;
}
