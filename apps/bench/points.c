/** @file points.c
 *  @brief Runs as points for gnuplot: blocks separated by two empty lines, each begins with its
 * name. */
#include "bench/report.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef enum figure { TIME, SPEEDUP, SHARE, PHASES, FIGURES } figure;

static const char *const figures[] = {"time", "speedup", "share", "phases"};

/* The value of a row in a figure, with its spread; 0 if it has none. */
static double value_of(const bench_row *r, figure f, double *low, double *high) {
    *low = f == TIME ? r->q1 : f == SPEEDUP ? r->dense_low : 0;
    *high = f == TIME ? r->q3 : f == SPEEDUP ? r->dense_high : 0;
    if (f == SHARE) { /* inverse to the quartiles of the time */
        *low = 100 * r->share * r->median / r->q3;
        *high = 100 * r->share * r->median / r->q1;
    }
    return f == TIME ? r->median : f == SPEEDUP ? r->dense : 100 * r->share;
}

static int is_first(const bench_run *run, int index) {
    for (int i = 0; i < index; i++) {
        if (!strcmp(run->row[i].name, run->row[index].name) &&
            !strcmp(run->row[i].pass, run->row[index].pass))
            return 0;
    }
    return 1;
}

/* All lengths of one program. */
static void print_curve(const bench_run *run, const bench_row *of, figure f) {
    int points = 0;
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        double low, high, value = value_of(r, f, &low, &high);
        if (r->status[0] || strcmp(r->name, of->name) || strcmp(r->pass, of->pass) || !(value > 0))
            continue;
        if (!points++)
            printf("\"%s\"\n", of->name);
        printf("%" PRId64 " %.6g %.6g %.6g\n", r->T, value, low, high);
    }
    if (points)
        printf("\n\n");
}

/* Phases in per cent of the time, at each stage's longest length. */
static void print_phases(const bench_run *run, const char *pass) {
    static const char *const name[] = {"compress", "cmp", "select", "slc", "win"};
    printf("program compress cmp select slc win other\n");
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        int later = 0;
        for (int j = i + 1; j < run->rows; j++)
            later |= !run->row[j].status[0] && !strcmp(run->row[j].name, r->name) &&
                     !strcmp(run->row[j].pass, r->pass);
        if (r->status[0] || strcmp(r->pass, pass) || !r->phases || later)
            continue;
        double other = 100;
        printf("\"%s\\nT = %" PRId64 "\"", r->name, r->T);
        for (int n = 0; n < 5; n++) {
            double share = 0;
            for (int p = 0; p < r->phases; p++)
                share +=
                    strcmp(r->phase[p].name, name[n]) ? 0 : 100 * r->phase[p].seconds / r->median;
            printf(" %.3f", share);
            other -= share;
        }
        printf(" %.3f\n", other > 0 ? other : 0);
    }
}

nsa_status report_points(const bench_run *run, const char *what) {
    const char *slash = strchr(what, '/'), *pass = slash ? slash + 1 : "forward";
    const size_t length = slash ? (size_t)(slash - what) : strlen(what);
    for (int f = 0; f < FIGURES; f++) {
        if (strlen(figures[f]) != length || strncmp(what, figures[f], length) != 0)
            continue;
        if (f == PHASES)
            print_phases(run, pass);
        for (int i = 0; i < run->rows && f != PHASES; i++) {
            if (!strcmp(run->row[i].pass, pass) && is_first(run, i))
                print_curve(run, &run->row[i], (figure)f);
        }
        return NSA_OK;
    }
    return nsa_fail(NSA_ERR_INPUT, "no figure \"%s\": expected time, speedup, share or phases",
                    what);
}
