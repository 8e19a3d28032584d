/** @file report_kernels.c
 *  @brief Tables: phases and their floors; ratios to peers, and to a stage's own dense
 * attention. */
#include "bench/grid.h"
#include "bench/growth.h"
#include "bench/kernels.h"
#include "bench/ratio.h"
#include "bench/report.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

int report_wanted(const char *name, const char *stage) {
    const char *own = name;
    if (bench_has_prefix(name, BENCH_OWN_DENSE))
        own = name + strlen(BENCH_OWN_DENSE);
    else if (bench_has_prefix(name, BENCH_ONE_THREAD))
        own = name + strlen(BENCH_ONE_THREAD);
    return !stage || !strcmp(own, stage) || !strcmp(name, BENCH_DENSE);
}

/* ----------------------------------------------------------------- kernels */

static void kernel_row(grid *g, const bench_run *run, const bench_row *r, const bench_phase *p) {
    const kernel_floor floor = kernels_floor(run, r, p);
    grid_row(g);
    grid_cell(g, "%" PRId64, r->T);
    grid_cell(g, "%s", r->pass);
    grid_cell(g, "%s", r->name);
    grid_cell(g, "%s", p->name);
    grid_number(g, 1e3 * p->seconds);
    grid_cell(g, "%.0f %%", 100 * p->seconds / r->median);
    grid_number(g, 1e-12 * p->flops / p->seconds);
    grid_number(g, 1e-12 * p->l2 / p->seconds);
    grid_number(g, 1e-12 * p->bytes / p->seconds);
    grid_number(g, 1e3 * floor.seconds);
    if (floor.seconds > 0)
        grid_cell(g, "%.0f %% of %s", 100 * floor.seconds / p->seconds, floor.bound);
    else
        grid_cell(g, "-");
}

void report_kernels(const bench_run *run, const char *stage) {
    grid g = {0};
    grid_heading(&g, (const char *const[]){"T", "pass", "program", "phase", "ms", "of the call",
                                           "TFLOP/s", "L2, TB/s", "memory, TB/s", "floor, ms",
                                           "share of ceiling", NULL});
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        /* floors are counted for GPU stages, which compute scores twice */
        const int shown = !r->status[0] && !strcmp(r->device, "gpu");
        for (int p = 0; p < r->phases && shown && report_wanted(r->name, stage); p++)
            kernel_row(&g, run, r, &r->phase[p]);
    }
    grid_print(&g, stdout);
}

/* ------------------------------------------------------------------- peers */

/* A peer: neither a stage nor a stage with a prefix. */
static int is_peer(const bench_row *r) {
    return !bench_is_stage(r) && !bench_has_prefix(r->name, BENCH_OWN_DENSE) &&
           !bench_has_prefix(r->name, BENCH_ONE_THREAD);
}

/* The names of all peers. @return how many */
static int list_peers(const bench_run *run, const char **name, int capacity) {
    int names = 0;
    for (int i = 0; i < run->rows; i++) {
        int known = !is_peer(&run->row[i]) || run->row[i].status[0] != 0;
        for (int n = 0; n < names; n++)
            known |= !strcmp(name[n], run->row[i].name);
        if (!known && names < capacity)
            name[names++] = run->row[i].name;
    }
    return names;
}

static void ratio_cell(grid *g, bench_stats ratio) {
    grid_ratio(g, ratio.median, ratio.q1, ratio.q3);
}

void report_peers(const bench_run *run, const char *stage) {
    const char *name[GRID_COLUMNS - 4];
    const int names = list_peers(run, name, GRID_COLUMNS - 4);
    grid g = {0};
    grid_heading(&g, (const char *const[]){"T", "pass", "program", "ms", NULL});
    for (int n = 0; n < names; n++)
        grid_cell(&g, "vs %s", name[n]);
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        if (r->status[0] || !report_wanted(r->name, stage) ||
            bench_has_prefix(r->name, BENCH_ONE_THREAD))
            continue;
        grid_row(&g);
        grid_cell(&g, "%" PRId64, r->T);
        grid_cell(&g, "%s", r->pass);
        grid_cell(&g, "%s", r->name);
        grid_number(&g, 1e3 * r->median);
        for (int n = 0; n < names; n++) {
            const bench_row *d = bench_find(run, name[n], r->pass, r->T);
            if (d && d != r)
                ratio_cell(&g, bench_ratio(r, d));
            else
                grid_cell(&g, "-");
        }
    }
    grid_print(&g, stdout);
}

/* --------------------------------------------------------------------- own */

/* The same stage with a prefix, at the same pass and length; NULL if it was not timed. */
static const bench_row *find_variant(const bench_run *run, const char *prefix, const bench_row *r) {
    char name[96];
    snprintf(name, sizeof name, "%s%.49s", prefix, r->name);
    return bench_find(run, name, r->pass, r->T);
}

static void own_row(grid *g, const bench_row *r, const bench_row *dense,
                    const bench_row *one_thread) {
    grid_row(g);
    grid_cell(g, "%" PRId64, r->T);
    grid_cell(g, "%s", r->pass);
    grid_cell(g, "%s", r->name);
    grid_number(g, 1e3 * r->median);
    grid_number(g, dense ? 1e3 * dense->median : 0);
    if (dense) {
        const double flops = dense->flops / r->flops;
        const bench_stats ratio = bench_ratio(r, dense);
        ratio_cell(g, ratio);
        grid_cell(g, "%.3gx", flops);
        grid_cell(g, "%.2f (%.2f..%.2f)", ratio.median / flops, ratio.q1 / flops, ratio.q3 / flops);
    } else {
        for (int i = 0; i < 3; i++)
            grid_cell(g, "-");
    }
    grid_number(g, one_thread ? 1e3 * one_thread->median : 0);
    if (one_thread)
        ratio_cell(g, bench_ratio(r, one_thread));
    else
        grid_cell(g, "-");
}

void report_own(const bench_run *run, const char *stage) {
    grid g = {0};
    grid_heading(&g, (const char *const[]){"T", "pass", "program", "ms", "own dense attention, ms",
                                           "vs own dense attention", "ratio of FLOPs",
                                           "share of that ratio", "one thread, ms", "vs one thread",
                                           NULL});
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        const bench_row *dense = find_variant(run, BENCH_OWN_DENSE, r);
        const bench_row *one_thread = find_variant(run, BENCH_ONE_THREAD, r);
        if (!r->status[0] && bench_is_stage(r) && report_wanted(r->name, stage) &&
            (dense || one_thread))
            own_row(&g, r, dense, one_thread);
    }
    grid_print(&g, stdout);
}
