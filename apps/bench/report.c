/** @file report.c
 *  @brief Runs as tables. */
#include "bench/report.h"
#include "bench/grid.h"
#include "bench/growth.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ------------------------------------------------------------------- times */

static void time_row(grid *g, const bench_row *r) {
    grid_row(g);
    grid_cell(g, "%" PRId64, r->T);
    grid_cell(g, "%s", r->name);
    grid_number(g, 1e3 * r->median);
    grid_cell(g, "%.3g..%.3g", 1e3 * r->q1, 1e3 * r->q3);
    grid_cell(g, "%" PRId64, r->runs);
    grid_number(g, 1e-9 * r->flops / r->median);
    grid_number(g, 1e-9 * r->bytes / r->median);
    grid_cell(g, "%.0f", r->tokens / r->median);
    if (r->share > 0)
        grid_cell(g, "%.2g %% of %s", 100 * r->share, r->bound);
    else
        grid_cell(g, "-");
    grid_ratio(g, r->below, r->below_low, r->below_high);
    grid_ratio(g, r->dense, r->dense_low, r->dense_high);
    grid_number(g, (double)r->memory / 1e6);
    if (strcmp(r->pass, "decode") !=
        0) /* workspace: memory beyond one copy of inputs and results */
        grid_number(g, ((double)r->memory - r->bytes) / 1e6);
    else
        grid_cell(g, "-");
    grid_cell(g, "%s", r->checked);
}

static void print_times(const bench_run *run, const char *pass, const char *stage) {
    static const char *const texts[] = {"T",
                                        "program",
                                        "ms",
                                        "quartiles",
                                        "runs",
                                        "GFLOP/s",
                                        "GB/s",
                                        "tokens/s",
                                        "share of ceiling",
                                        "vs stage below",
                                        "vs dense attention",
                                        "memory, MB",
                                        "workspace, MB",
                                        "checked against",
                                        NULL};
    grid g = {0};
    grid_heading(&g, texts);
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        if (!strcmp(r->pass, pass) && report_wanted(r->name, stage) && !r->status[0])
            time_row(&g, r);
    }
    grid_print(&g, stdout);
    int missing = 0;
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        if (strcmp(r->pass, pass) || !report_wanted(r->name, stage) || !r->status[0])
            continue;
        printf("%s- %s at T = %" PRId64 ": %s\n", missing++ ? "" : "\nNot timed:\n\n", r->name,
               r->T, r->status);
    }
}

/* ------------------------------------------------------------------ phases */

static void print_phases(const bench_run *run, const char *stage) {
    grid g = {0};
    /* in the order they run; a stage may have others */
    const char *name[BENCH_MAX_PHASES * 2] = {"compress", "cmp", "select", "slc", "win"};
    int names = 5;
    for (int i = 0; i < run->rows; i++) {
        for (int p = 0; p < run->row[i].phases; p++) {
            int known = 0;
            for (int n = 0; n < names; n++)
                known |= !strcmp(name[n], run->row[i].phase[p].name);
            if (!known && names < BENCH_MAX_PHASES * 2)
                name[names++] = run->row[i].phase[p].name;
        }
    }
    grid_heading(&g, (const char *const[]){"T", "program", "pass", NULL});
    for (int n = 0; n < names; n++)
        grid_cell(&g, "%s, ms", name[n]);
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        if (r->status[0] || !r->phases || !report_wanted(r->name, stage))
            continue;
        grid_row(&g);
        grid_cell(&g, "%" PRId64, r->T);
        grid_cell(&g, "%s", r->name);
        grid_cell(&g, "%s", r->pass);
        for (int n = 0; n < names; n++) {
            double seconds = -1;
            for (int p = 0; p < r->phases; p++)
                seconds = strcmp(name[n], r->phase[p].name) ? seconds : r->phase[p].seconds;
            if (seconds < 0)
                grid_cell(&g, "-");
            else
                grid_cell(&g, "%.3g (%.0f %%)", 1e3 * seconds, 100 * seconds / r->median);
        }
    }
    grid_print(&g, stdout);
}

/* ------------------------------------------------------------------ growth */

static void cell_crossing(grid *g, const bench_fit *f) {
    if (!f->against[0])
        grid_cell(g, "-");
    else if (!f->faster)
        grid_cell(g, "beyond %" PRId64, f->slower);
    else if (!f->slower)
        grid_cell(g, "below %" PRId64, f->faster);
    else
        grid_cell(g, "%" PRId64 "..%" PRId64, f->slower, f->faster);
    if (!f->against[0])
        grid_cell(g, "-");
    else if (!(f->crosses > 0))
        grid_cell(g, "never");
    else
        grid_cell(g, "%.0f%s", f->crosses, f->crosses > 2 * (double)f->to ? " (far outside)" : "");
}

static void print_growth(const bench_run *run, const char *stage) {
    grid g = {0};
    grid_heading(&g, (const char *const[]){"pass", "program", "part", "a, us a token",
                                           "b, ns a token squared", "fitted T", "max error",
                                           "share of b at the longest T", "b vs b of its FLOPs",
                                           "dense attention", "overtaken, measured",
                                           "overtaken, by the fits", NULL});
    for (int i = 0; i < run->fits; i++) {
        const bench_fit *f = &run->fit[i];
        if (!report_wanted(f->name, stage))
            continue;
        grid_row(&g);
        grid_cell(&g, "%s", f->pass);
        grid_cell(&g, "%s", f->name);
        grid_cell(&g, "%s", f->phase);
        grid_cell(&g, "%.3g", 1e6 * f->a);
        grid_cell(&g, "%.3g", 1e9 * f->b);
        grid_cell(&g, "%" PRId64 "..%" PRId64 " (%" PRId64 ")", f->from, f->to, f->points);
        grid_cell(&g, "%.0f %%", 100 * f->residual);
        if (f->curved > 0 || !(f->b > 0))
            grid_cell(&g, "%.0f %%", 100 * f->curved);
        else
            grid_cell(&g, "-");
        if (f->by_flops > 0)
            grid_cell(&g, "%.2fx%s", f->by_flops, f->by_flops > 1.3 ? ", above 1.3x" : "");
        else
            grid_cell(&g, "-");
        grid_cell(&g, "%s", f->against[0] ? f->against : "-");
        cell_crossing(&g, f);
    }
    grid_print(&g, stdout);
}

/* ----------------------------------------------------------------- machine */

static void print_gpu(const bench_run *run) {
    static const char *const names[BENCH_CEILINGS] = {"float32 multiply-add", "cuBLAS sgemm 8192",
                                                      "cuBLAS bfloat16 8192", "reading L2 (32 MiB)",
                                                      "reading memory",       "copying"};
    printf("GPU: %s. Its ceilings in the same run:", run->gpu);
    for (int i = 0; i < BENCH_CEILINGS; i++) {
        const char *unit = i < BENCH_L2 ? "TFLOP/s" : "TB/s",
                   *end = i + 1 < BENCH_CEILINGS ? "," : ".";
        if (run->ceiling[i] > 0)
            printf(" %s %.3g %s (%.3g..%.3g)%s", names[i], 1e-3 * run->ceiling[i], unit,
                   1e-3 * run->ceiling_low[i], 1e-3 * run->ceiling_high[i], end);
        else
            printf(" no %s%s", names[i], end);
    }
    printf("\n");
}

static void print_machine(const bench_run *run, const char *file) {
    if (file)
        printf("Run `%s`: ", file);
    printf("%s, %" PRId64 " cores, %" PRId64 " thread%s, load %.1f; %s, `%s`", run->cpu, run->cores,
           run->threads, run->threads == 1 ? "" : "s", run->load, run->compiler, run->flags);
    if (run->own_flags[0])
        printf(" (%s)", run->own_flags);
    printf("; commit %s, %s. Inputs `%s`, %" PRId64 " sequence%s.\n", run->commit, run->date,
           run->workload, run->batch, run->batch == 1 ? "" : "s");
    if (run->gflops > 0)
        printf("Ceilings of the same run: sgemm %.0f GFLOP/s (%.0f..%.0f; %s), ", run->gflops,
               run->gflops_low, run->gflops_high, run->blas);
    else
        printf("Ceilings of the same run: no sgemm (SKIP: %s), ", run->blas);
    printf("copying %.1f GB/s (%.1f..%.1f).%s%s\n", run->gbs, run->gbs_low, run->gbs_high,
           run->peers[0] ? " Beside it: " : "", run->peers);
    if (run->gpu[0])
        print_gpu(run);
}

static void print_noise(const bench_run *run) {
    if (run->noise[0])
        printf("This machine is too noisy for a claim: %s.\n", run->noise);
    else
        printf("The machine was quiet: ceilings within 15 %%, quartiles within 20 %%.\n");
}

/* Below a table in a page: which run it is from, and whether that was too noisy for a claim. */
static void print_source(const bench_run *run, const char *file) {
    if (!file)
        return;
    printf("\nRun `%s`: %s, %" PRId64 " thread%s, commit %s, %s.", file, run->cpu, run->threads,
           run->threads == 1 ? "" : "s", run->commit, run->date);
    if (run->noise[0])
        printf(" The machine was too noisy for a claim: %s.", run->noise);
    printf("\n");
}

nsa_status report_table(const bench_run *run, const char *what, const char *file) {
    char kind[16];
    const char *slash = strchr(what, '/'), *stage = slash ? slash + 1 : NULL;
    snprintf(kind, sizeof kind, "%.*s", (int)(slash ? slash - what : 15), what);
    for (int p = 0; p < BENCH_PASSES; p++) {
        if (!strcmp(kind, bench_pass_name((bench_pass)p))) {
            print_times(run, kind, stage);
            print_source(run, file);
            return NSA_OK;
        }
    }
    if (!strcmp(kind, "phases"))
        print_phases(run, stage);
    else if (!strcmp(kind, "kernels"))
        report_kernels(run, stage);
    else if (!strcmp(kind, "peers"))
        report_peers(run, stage);
    else if (!strcmp(kind, "own"))
        report_own(run, stage);
    else if (!strcmp(kind, "growth"))
        print_growth(run, stage);
    else if (!strcmp(kind, "machine"))
        print_machine(run, file);
    else if (!strcmp(kind, "noise"))
        print_noise(run);
    else
        return nsa_fail(NSA_ERR_INPUT,
                        "no table \"%s\": expected machine, forward, backward, decode, phases, "
                        "kernels, peers, own, growth or noise",
                        what);
    if (strcmp(kind, "machine") != 0 && strcmp(kind, "noise") != 0)
        print_source(run, file);
    return NSA_OK;
}

/* -------------------------------------------------------------- comparison */

static int disagree(const bench_row *a, const char *of, const double x[3], const double y[3]) {
    if (!(x[0] > 0) || !(y[0] > 0))
        return 0;
    int overlap = x[1] <= y[2] && y[1] <= x[2];
    printf("%-8s %s, %s, T = %" PRId64 ", %s: %.3gx (%.3g..%.3g) and %.3gx (%.3g..%.3g)\n",
           overlap ? "agree" : "DISAGREE", a->name, a->pass, a->T, of, x[0], x[1], x[2], y[0], y[1],
           y[2]);
    return !overlap;
}

int report_compare(const bench_run *a, const bench_run *b) {
    int disagreements = 0, compared = 0;
    for (int i = 0; i < a->rows; i++) {
        const bench_row *x = &a->row[i], *y = bench_find(b, x->name, x->pass, x->T);
        if (x->status[0] || !y)
            continue;
        compared++;
        disagreements +=
            disagree(x, "vs dense attention", (double[]){x->dense, x->dense_low, x->dense_high},
                     (double[]){y->dense, y->dense_low, y->dense_high});
        disagreements +=
            disagree(x, "vs stage below", (double[]){x->below, x->below_low, x->below_high},
                     (double[]){y->below, y->below_low, y->below_high});
    }
    printf("%d rows in both runs, %d ratios whose spreads do not overlap\n", compared,
           disagreements);
    return disagreements;
}
