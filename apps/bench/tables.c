/** @file tables.c
 *  @brief Runs as Markdown tables with aligned columns, and as points for gnuplot. */
#include "bench/bench.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { COLUMNS = 20, CELL = 72 };

/* A table of texts, the heading first. */
typedef struct grid {
    char (*cell)[COLUMNS][CELL];
    int rows, columns;
    int next; /* the cell of the last row that cell() fills next */
} grid;

/* Fill in the next cell of the last row. */
static __attribute__((format(printf, 2, 3))) void cell(grid *g, const char *format, ...) {
    va_list args;
    if (!g->rows || g->next == COLUMNS)
        return;
    va_start(args, format);
    vsnprintf(g->cell[g->rows - 1][g->next++], CELL, format, args);
    va_end(args);
    g->columns = g->next > g->columns ? g->next : g->columns;
}

/* Begin a row with these texts, separated by '|'. Without memory it is dropped. */
static void begin(grid *g, const char *texts) {
    void *more = realloc(g->cell, (size_t)(g->rows + 1) * sizeof *g->cell);
    if (!more)
        return;
    g->cell = more;
    memset(g->cell[g->rows++], 0, sizeof *g->cell);
    g->next = 0;
    for (size_t n = 0; *texts; texts += n + (texts[n] == '|')) {
        n = strcspn(texts, "|");
        cell(g, "%.*s", (int)n, texts);
    }
}

/* Begin the row of a result with its length, pass and program. */
static void begin_row(grid *g, const bench_row *r) {
    begin(g, "");
    cell(g, "%" PRId64, r->T);
    cell(g, "%s", r->pass);
    cell(g, "%s", r->name);
}

/* Three significant figures: 0.0123, 1.23, 12.3, 123, 1234; "-" unless it is above 0. */
static void number(grid *g, double x) {
    if (!(x > 0) || x > 1e300) /* unknown, or divided by a time of 0 */
        cell(g, "-");
    else if (x < 0.0995)
        cell(g, "%.2g", x);
    else
        cell(g, "%.*f", x < 9.95 ? 2 : x < 99.5 ? 1 : 0, x);
}

/* A ratio and its spread with as many decimals, "2.34x (2.10..2.51)"; "-" unless it is above 0. */
static void ratio(grid *g, bench_stats r) {
    const double x = r.median;
    const int digits = x < 0.0995 ? 4 : x < 0.995 ? 3 : x < 9.95 ? 2 : x < 99.5 ? 1 : 0;
    cell(g, x > 0 ? "%.*fx (%.*f..%.*f)" : "-", digits, x, digits, r.low, digits, r.high);
}

/* A column is right-aligned if its first filled cell is a number; a stage's name has a '_'. */
static int is_number(const grid *g, int column) {
    for (int r = 1; r < g->rows; r++) {
        const char *text = g->cell[r][column];
        if (text[0] && strcmp(text, "-") != 0)
            return isdigit((unsigned char)text[0]) && !strchr(text, '_');
    }
    return 0;
}

/* Print the table, and free it. */
static void print(grid *g) {
    char dashes[CELL];
    int width[COLUMNS] = {0};
    memset(dashes, '-', sizeof dashes);
    for (int i = 0; i < g->rows * g->columns; i++) {
        const int c = i % g->columns, length = (int)strlen(g->cell[i / g->columns][c]);
        width[c] = length > width[c] ? length : width[c];
    }
    for (int r = 0; r < g->rows; r++) {
        for (int c = 0; c < g->columns; c++)
            printf(is_number(g, c) ? "| %*s " : "| %-*s ", width[c], g->cell[r][c]);
        printf("|\n");
        for (int c = 0; c < g->columns && !r; c++)
            printf("|-%.*s%c%s", width[c], dashes, is_number(g, c) ? ':' : '-',
                   c + 1 == g->columns ? "|\n" : "");
    }
    free(g->cell);
}

/* What a table shows. */
typedef struct view {
    const bench_run *run;
    const char *pass;  /* rows of this pass alone; NULL: of all */
    const char *stage; /* rows of this stage and of OpenBLAS alone; NULL: of all */
} view;

/* A row's name without BENCH_OWN_DENSE or BENCH_ONE_THREAD before it. */
static const char *bare(const char *name) {
    return name + bench_prefix(name, BENCH_OWN_DENSE) + bench_prefix(name, BENCH_ONE_THREAD);
}

static int is_wanted(const view *v, const bench_row *r) {
    return (!v->stage || !strcmp(bare(r->name), v->stage) || !strcmp(r->name, BENCH_DENSE)) &&
           (!v->pass || !strcmp(r->pass, v->pass));
}

static void time_row(grid *g, const view *v, const bench_row *r) {
    (void)v;
    begin(g, "");
    cell(g, "%" PRId64, r->T);
    cell(g, "%s", r->name);
    number(g, 1e3 * r->time.median);
    cell(g, "%.3g..%.3g", 1e3 * r->time.low, 1e3 * r->time.high);
    cell(g, "%" PRId64, r->runs);
    number(g, 1e-9 * r->flops / r->time.median);
    number(g, 1e-9 * r->bytes / r->time.median);
    cell(g, "%.0f", r->tokens / r->time.median);
    cell(g, r->share > 0 ? "%.2g %% of %s" : "-", 100 * r->share, r->bound);
    ratio(g, r->below);
    ratio(g, r->dense);
    number(g, (double)r->memory / 1e6);
    /* workspace: memory beyond one copy of inputs and results */
    number(g, strcmp(r->pass, "decode") ? ((double)r->memory - r->bytes) / 1e6 : 0);
    cell(g, "%s", r->checked);
}

/* The phases, and their floors: the shortest times that the ceilings of the GPU allow. Work is
 * counted for GPU stages, which compute scores twice; a CPU's rows have only times. */
static void kernel_rows(grid *g, const view *v, const bench_row *r) {
    const int half = !strcmp(r->arith, "bfloat16"), counted = !strcmp(r->device, "gpu");
    const int ceiling[] = {half ? BENCH_BF16 : BENCH_FMA, BENCH_L2, BENCH_READ};
    const char *const names[] = {half ? "MMA" : "FMA", "L2", "memory"};
    for (const bench_phase *p = r->phase; p < r->phase + r->phases; p++) {
        const double work[] = {p->flops, p->l2, p->bytes};
        const char *bound = "";
        double floor = 0;
        begin_row(g, r);
        cell(g, "%s", p->name);
        number(g, 1e3 * p->seconds);
        cell(g, "%.0f %%", 100 * p->seconds / r->time.median);
        for (int i = 0; i < 3; i++) {
            const double rate = v->run->ceiling[ceiling[i]].median;
            const double seconds = counted && rate > 0 ? 1e-9 * work[i] / rate : 0;
            number(g, counted ? 1e-12 * work[i] / p->seconds : 0);
            bound = seconds > floor ? names[i] : bound;
            floor = seconds > floor ? seconds : floor;
        }
        if (!(v->run->ceiling[ceiling[0]].median > 0) && p->flops > 0)
            floor = 0; /* without an arithmetic ceiling it would be too low */
        number(g, 1e3 * floor);
        cell(g, floor > 0 ? "%.0f %% of %s" : "-", 100 * floor / p->seconds, bound);
    }
}

/* Row i if it is the first of its name that was timed, else NULL. */
static const bench_row *first_of_name(const bench_run *run, int i) {
    for (int j = 0; j < i; j++) {
        if (!run->row[j].status[0] && !strcmp(run->row[j].name, run->row[i].name))
            return NULL;
    }
    return run->row[i].status[0] ? NULL : &run->row[i];
}

/* The name of the first peer after `name`, in the order of their first rows; NULL if there is none.
 * A peer is neither a stage nor a stage with a prefix. */
static const char *next_peer(const bench_run *run, const char *name) {
    for (int i = 0, past = !name; i < run->rows; i++) {
        const bench_row *r = first_of_name(run, i);
        if (!r || bench_is_stage(r) || bare(r->name) != r->name)
            continue;
        if (past)
            return r->name;
        past = !strcmp(r->name, name);
    }
    return NULL;
}

static void peer_row(grid *g, const view *v, const bench_row *r) {
    if (bench_prefix(r->name, BENCH_ONE_THREAD))
        return;
    begin_row(g, r);
    number(g, 1e3 * r->time.median);
    for (const char *name = NULL; (name = next_peer(v->run, name));) {
        const bench_row *d = bench_find(v->run, name, r->pass, r->T);
        ratio(g, d && d != r ? bench_ratio(r, d) : (bench_stats){0});
    }
}

/* The row of the same stage with a prefix, at the same pass and length. */
static const bench_row *prefixed(const bench_run *run, const char *prefix, const bench_row *r) {
    char name[96];
    snprintf(name, sizeof name, "%s%.49s", prefix, r->name);
    return bench_find(run, name, r->pass, r->T);
}

/* The ratios of a stage to its own dense attention, and to one thread of it. */
static void own_row(grid *g, const view *v, const bench_row *r) {
    const bench_row *dense = prefixed(v->run, BENCH_OWN_DENSE, r);
    const bench_row *one_thread = prefixed(v->run, BENCH_ONE_THREAD, r);
    if (!bench_is_stage(r) || (!dense && !one_thread))
        return;
    const bench_stats none = {0}, of = dense ? bench_ratio(r, dense) : none;
    const double flops = dense ? dense->flops / r->flops : 1;
    begin_row(g, r);
    number(g, 1e3 * r->time.median);
    number(g, dense ? 1e3 * dense->time.median : 0);
    ratio(g, of);
    cell(g, dense ? "%.3gx" : "-", flops);
    cell(g, dense ? "%.2f (%.2f..%.2f)" : "-", of.median / flops, of.low / flops, of.high / flops);
    number(g, one_thread ? 1e3 * one_thread->time.median : 0);
    ratio(g, one_thread ? bench_ratio(r, one_thread) : none);
}

/* The floor of load and read is the time of a copy of as many bytes. */
static void io_row(grid *g, const view *v, const bench_row *r) {
    const double rate = 1e9 * v->run->ceiling[BENCH_COPY].median;
    const double floor = rate > 0 ? r->bytes_io / rate : 0;
    const double io = r->with_io.median - r->time.median;
    const bench_row *flash = bench_find(v->run, "torch_flash2", r->pass, r->T);
    const bench_row with = {.time = r->with_io};
    if (!(r->with_io.median > 0))
        return;
    begin_row(g, r);
    number(g, 1e3 * r->time.median);
    number(g, 1e3 * r->with_io.median);
    number(g, 1e3 * io);
    number(g, 1e3 * floor);
    number(g, floor > 0 ? io / floor : 0);
    ratio(g, flash ? bench_ratio(&with, flash) : with.below); /* its time has both in it */
}

static void print_gpu(const bench_run *run) {
    static const char *const names[GPU_CEILINGS] = {"float32 multiply-add", "cuBLAS sgemm 8192",
                                                    "cuBLAS bfloat16 8192", "reading L2 (32 MiB)",
                                                    "reading memory",       "copying"};
    printf("GPU: %s. Its ceilings in the same run:", run->gpu);
    for (int i = 0; i < GPU_CEILINGS; i++) {
        const bench_stats c = run->ceiling[i];
        const char *end = i + 1 < GPU_CEILINGS ? "," : ".";
        if (c.median > 0)
            printf(" %s %.3g %s (%.3g..%.3g)%s", names[i], 1e-3 * c.median,
                   i < BENCH_L2 ? "TFLOP/s" : "TB/s", 1e-3 * c.low, 1e-3 * c.high, end);
        else
            printf(" no %s%s", names[i], end);
    }
    printf("\n");
}

/* "NAME: FLAGS; NAME: FLAGS", the flags as code: Markdown may show the hyphens of --param as one.
 */
static void print_own_flags(const char *text) {
    for (const char *before = " ("; *text; before = "; ") {
        const int name = (int)strcspn(text, ":"), part = (int)strcspn(text, ";");
        if (name + 2 < part)
            printf("%s%.*s: `%.*s`", before, name, text, part - name - 2, text + name + 2);
        else
            printf("%s%.*s", before, part, text);
        text += part;
        text += strspn(text, "; ");
    }
    printf(")");
}

static void print_machine(const bench_run *run, const char *file) {
    if (file)
        printf("Run `%s`: ", file);
    printf("%s, %" PRId64 " cores, %" PRId64 " thread%s, load %.1f; %s, `%s`", run->cpu, run->cores,
           run->threads, run->threads == 1 ? "" : "s", run->load, run->compiler, run->flags);
    if (run->own_flags[0])
        print_own_flags(run->own_flags);
    printf("; commit %s, %s. Inputs `%s`, %" PRId64 " sequence%s.\n", run->commit, run->date,
           run->workload, run->batch, run->batch == 1 ? "" : "s");
    if (run->ceiling[CPU_SGEMM].median > 0)
        printf("Ceilings of the same run: sgemm %.0f GFLOP/s (%.0f..%.0f; %s), ",
               run->ceiling[CPU_SGEMM].median, run->ceiling[CPU_SGEMM].low,
               run->ceiling[CPU_SGEMM].high, run->blas);
    else
        printf("Ceilings of the same run: no sgemm (SKIP: %s), ", run->blas);
    printf("copying %.1f GB/s (%.1f..%.1f).%s%s\n", run->ceiling[CPU_COPY].median,
           run->ceiling[CPU_COPY].low, run->ceiling[CPU_COPY].high,
           run->peers[0] ? " Beside it: " : "", run->peers);
    if (run->gpu[0])
        print_gpu(run);
}

/* Below a table in a page: which run it is from, and whether that was too noisy for a claim. */
static void print_source(const bench_run *run, const char *file) {
    printf("\nRun `%s`: %s, %" PRId64 " thread%s, commit %s, %s.", file, run->cpu, run->threads,
           run->threads == 1 ? "" : "s", run->commit, run->date);
    if (run->rounds)
        printf(" %" PRId64 " of %" PRId64 " rounds%s.", run->kept, run->rounds,
               run->kept < run->rounds ? "; the others were interrupted" : "");
    if (run->noise[0])
        printf(" The machine was too noisy for a claim: %s.", run->noise);
    printf("\n");
}

static const char times[] =
    "T|program|ms|quartiles|runs|GFLOP/s|GB/s|tokens/s|share of ceiling|vs stage below|"
    "vs dense attention|memory, MB|workspace, MB|checked against";
static const struct table {
    const char *name, *heading;
    void (*row)(grid *g, const view *v, const bench_row *r);
} tables[] = {{"forward", times, time_row},
              {"backward", times, time_row},
              {"decode", times, time_row},
              {"kernels",
               "T|pass|program|phase|ms|of the call|TFLOP/s|L2, TB/s|memory, TB/s|floor, ms|"
               "share of ceiling",
               kernel_rows},
              {"io",
               "T|pass|program|ms|with load and read, ms|load and read, ms|floor, ms|"
               "times the floor|with both vs torch_flash2",
               io_row},
              {"peers", "T|pass|program|ms", peer_row},
              {"own",
               "T|pass|program|ms|own dense attention, ms|vs own dense attention|"
               "ratio of FLOPs|share of that ratio|one thread, ms|vs one thread",
               own_row}};

nsa_status report_table(const bench_run *run, const char *what, const char *file) {
    const size_t length = strcspn(what, "/");
    const struct table *t = tables, *end = tables + sizeof tables / sizeof *tables;
    grid g = {0};
    if (!strcmp(what, "machine")) {
        print_machine(run, file);
        return NSA_OK;
    }
    while (t < end && (strlen(t->name) != length || strncmp(what, t->name, length) != 0))
        t++;
    if (t == end)
        return nsa_fail(NSA_ERR_INPUT,
                        "no table \"%s\": expected machine, forward, backward, decode, kernels, "
                        "io, peers or own",
                        what);
    const view v = {run, t->row == time_row ? t->name : NULL,
                    what[length] ? what + length + 1 : NULL};
    begin(&g, t->heading);
    for (const char *name = NULL; t->row == peer_row && (name = next_peer(run, name));)
        cell(&g, "vs %s", name);
    for (int i = 0; i < run->rows; i++) {
        if (!run->row[i].status[0] && is_wanted(&v, &run->row[i]))
            t->row(&g, &v, &run->row[i]);
    }
    print(&g);
    for (int i = 0, missing = 0; i < run->rows && v.pass; i++) {
        const bench_row *r = &run->row[i];
        if (r->status[0] && is_wanted(&v, r))
            printf("%s- %s at T = %" PRId64 ": %s\n", missing++ ? "" : "\nNot timed:\n\n", r->name,
                   r->T, r->status);
    }
    if (file)
        print_source(run, file);
    return NSA_OK;
}

nsa_status report_points(const bench_run *run, const char *what) {
    const int speedup = !strcmp(what, "speedup");
    if (!speedup && strcmp(what, "time") != 0)
        return nsa_fail(NSA_ERR_INPUT, "no figure \"%s\": expected time or speedup", what);
    for (int i = 0; i < run->rows; i++) {
        const bench_row *curve = first_of_name(run, i);
        int points = 0;
        for (const bench_row *r = curve; r && r < run->row + run->rows; r++) {
            const bench_stats y = speedup ? r->dense : r->time;
            if (strcmp(r->pass, "forward") || strcmp(r->name, curve->name) || r->status[0] ||
                !(y.median > 0))
                continue;
            if (!points++)
                printf("\"%s\"\n", r->name);
            printf("%" PRId64 " %.6g %.6g %.6g\n", r->T, y.median, y.low, y.high);
        }
        if (points)
            printf("\n\n");
    }
    return NSA_OK;
}
