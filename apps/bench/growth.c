/** @file growth.c
 *  @brief Shares, ratios, growth, crossings, noise. */
#include "bench/growth.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const bench_row *bench_find(const bench_run *run, const char *name, const char *pass, int64_t T) {
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        if (r->T == T && !r->status[0] && !strcmp(r->name, name) && !strcmp(r->pass, pass))
            return r;
    }
    return NULL;
}

/* ------------------------------------------------------- ceilings and noise */

static void set_ceilings(bench_run *run, const bench_ceilings *c) {
    double sorted[2][64];
    memcpy(sorted[0], c->gflops, sizeof c->gflops);
    memcpy(sorted[1], c->gbs, sizeof c->gbs);
    run->gflops = bench_quartiles(sorted[0], c->count).median;
    run->gbs = bench_quartiles(sorted[1], c->count).median;
    run->gflops_low = sorted[0][0];
    run->gflops_high = sorted[0][c->count - 1];
    run->gbs_low = sorted[1][0];
    run->gbs_high = sorted[1][c->count - 1];
}

/* A claim needs a machine that stands still: ceilings within 15 %, quartiles within 20 %. */
static void judge_noise(bench_run *run) {
    const bench_row *worst = NULL;
    double spread = 0.2, drift = run->gbs ? (run->gbs_high - run->gbs_low) / run->gbs : 0;
    const char *what = "copy bandwidth";
    if (run->gflops && (run->gflops_high - run->gflops_low) / run->gflops > drift) {
        drift = (run->gflops_high - run->gflops_low) / run->gflops;
        what = "sgemm";
    }
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        if (!r->status[0] && (r->q3 - r->q1) / r->median > spread) {
            spread = (r->q3 - r->q1) / r->median;
            worst = r;
        }
    }
    int used = 0;
    run->noise[0] = 0;
    if (drift > 0.15)
        used = snprintf(run->noise, sizeof run->noise, "%s differed by %.0f %% within the run",
                        what, 100 * drift);
    if (worst)
        snprintf(run->noise + used, sizeof run->noise - (size_t)used,
                 "%sthe quartiles of %s at T = %" PRId64 " lie %.0f %% apart", used ? "; " : "",
                 worst->name, worst->T, 100 * spread);
}

/* The least time that the ceilings allow, over the time taken. */
static void set_share(const bench_run *run, bench_row *r) {
    double flops = run->gflops ? r->flops / (1e9 * run->gflops) : 0;
    double bytes = run->gbs ? r->bytes / (1e9 * run->gbs) : 0;
    snprintf(r->bound, sizeof r->bound, "%s", flops >= bytes ? "flops" : "bytes");
    r->share = run->gflops ? fmax(flops, bytes) / r->median : 0;
}

/* ------------------------------------------------------------------ ratios */

static void set_below(bench_run *run, int at) {
    bench_row *r = &run->row[at];
    for (int i = at - 1; i >= 0; i--) {
        const bench_row *b = &run->row[i];
        if (b->T != r->T || strcmp(b->pass, r->pass))
            break;
        if (b->status[0] || !strncmp(b->name, BENCH_OWN, strlen(BENCH_OWN)))
            continue;
        memmove(r->below_name, b->name, sizeof r->below_name);
        r->below = b->median / r->median;
        r->below_low = b->q1 / r->q3;
        r->below_high = b->q3 / r->q1;
        break;
    }
}

static void set_ratios(bench_run *run) {
    for (int i = 0; i < run->rows; i++) {
        bench_row *r = &run->row[i];
        if (r->status[0])
            continue;
        set_share(run, r);
        if (!strcmp(r->name, BENCH_DENSE))
            continue;
        const bench_row *d = bench_find(run, BENCH_DENSE, r->pass, r->T);
        if (d) {
            r->dense = d->median / r->median;
            r->dense_low = d->q1 / r->q3;
            r->dense_high = d->q3 / r->q1;
        }
        if (strncmp(r->name, BENCH_OWN, strlen(BENCH_OWN)) != 0)
            set_below(run, i);
    }
}

/* -------------------------------------------------------------------- fits */

/* Seconds of a row, or of one of its phases; 0 if it has no such phase. */
static double seconds_of(const bench_row *r, const char *phase) {
    if (!strcmp(phase, "all"))
        return r->median;
    for (int i = 0; i < r->phases; i++) {
        if (!strcmp(r->phase[i].name, phase))
            return r->phase[i].seconds;
    }
    return 0;
}

/* Times of one name, pass and phase, by length. */
typedef struct curve {
    double T[BENCH_SIZES], seconds[BENCH_SIZES];
    int count;
} curve;

static curve collect(const bench_run *run, const bench_row *of, const char *phase, int64_t from) {
    curve c = {.count = 0};
    for (int i = 0; i < run->rows && c.count < BENCH_SIZES; i++) {
        const bench_row *r = &run->row[i];
        if (r->status[0] || strcmp(r->name, of->name) || strcmp(r->pass, of->pass) || r->T < from)
            continue;
        double seconds = seconds_of(r, phase);
        if (seconds > 0) {
            c.T[c.count] = (double)r->T;
            c.seconds[c.count++] = seconds;
        }
    }
    return c;
}

/* Least squares of the relative error: sum ((a T + b T^2) / t - 1)^2, a and b not below 0, for a
 * negative cost a token would be no cost. */
static void solve(const curve *c, bench_fit *f) {
    double xx = 0, xy = 0, yy = 0, x1 = 0, y1 = 0;
    for (int i = 0; i < c->count; i++) {
        double x = c->T[i] / c->seconds[i], y = c->T[i] * c->T[i] / c->seconds[i];
        xx += x * x;
        xy += x * y;
        yy += y * y;
        x1 += x;
        y1 += y;
    }
    double det = xx * yy - xy * xy;
    f->a = (x1 * yy - y1 * xy) / det;
    f->b = (y1 * xx - x1 * xy) / det;
    if (!(f->a > 0)) {
        f->a = 0;
        f->b = y1 / yy;
    } else if (!(f->b > 0)) {
        f->a = x1 / xx;
        f->b = 0;
    }
    for (int i = 0; i < c->count; i++) {
        double off = fabs((f->a + f->b * c->T[i]) * c->T[i] / c->seconds[i] - 1);
        f->residual = off > f->residual ? off : f->residual;
    }
}

/* Below n l' tokens the selected branch is dense attention, and only beyond does it grow as it
 * will; so fits start there where enough lengths are left. */
static bench_fit *add_fit(bench_run *run, const bench_row *of, const char *phase, int64_t settled) {
    curve c = collect(run, of, phase, settled);
    if (c.count < 3)
        c = collect(run, of, phase, 0);
    if (c.count < 3 || run->fits == BENCH_FITS)
        return NULL;
    bench_fit *f = &run->fit[run->fits++];
    *f = (bench_fit){.from = (int64_t)c.T[0], .to = (int64_t)c.T[c.count - 1], .points = c.count};
    snprintf(f->name, sizeof f->name, "%s", of->name);
    snprintf(f->pass, sizeof f->pass, "%s", of->pass);
    snprintf(f->phase, sizeof f->phase, "%s", phase);
    solve(&c, f);
    return f;
}

/* The shortest length from which on the sparse one is not slower, between which measured lengths;
 * and where both fits meet. */
static void cross(bench_run *run, bench_fit *f, const char *dense) {
    const bench_fit *d = NULL;
    for (int i = 0; i < run->fits; i++) {
        const bench_fit *g = &run->fit[i];
        if (!strcmp(g->name, dense) && !strcmp(g->pass, f->pass) && !strcmp(g->phase, "all"))
            d = g;
    }
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        const bench_row *s = bench_find(run, f->name, f->pass, r->T);
        if (r->status[0] || strcmp(r->name, dense) || strcmp(r->pass, f->pass) || !s)
            continue;
        snprintf(f->against, sizeof f->against, "%s", dense);
        if (s->median > r->median) {
            f->slower = r->T;
            f->faster = 0;
        } else if (!f->faster) {
            f->faster = r->T;
        }
    }
    if (d && d->b > f->b && f->a > d->a)
        f->crosses = (f->a - d->a) / (d->b - f->b);
}

static int fitted(const bench_run *run, const bench_row *r) {
    for (int i = 0; i < run->fits; i++) {
        if (!strcmp(run->fit[i].name, r->name) && !strcmp(run->fit[i].pass, r->pass))
            return 1;
    }
    return 0;
}

static void set_fits(bench_run *run) {
    long long n = 16, l2 = 64;
    const char *at = strstr(run->workload, "l2=");
    if (at && sscanf(at, "l2=%lld,n=%lld", &l2, &n) != 2) /* NOLINT(cert-err34-c): ours */
        n = 0;
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        if (r->status[0] || fitted(run, r) || !strcmp(r->pass, "decode"))
            continue;
        add_fit(run, r, "all", n * l2);
        for (int p = 0; p < r->phases; p++)
            add_fit(run, r, r->phase[p].name, n * l2);
    }
    for (int i = 0, own = run->fits; i < own; i++) {
        bench_fit *f = &run->fit[i];
        char causal[96];
        if (strcmp(f->phase, "all") || !strcmp(f->name, BENCH_DENSE) ||
            !strncmp(f->name, BENCH_OWN, strlen(BENCH_OWN)))
            continue;
        snprintf(causal, sizeof causal, "%s%s", BENCH_OWN, f->name);
        if (run->fits < BENCH_FITS) { /* the same curve, against its own code's dense attention */
            run->fit[run->fits] = *f;
            cross(run, &run->fit[run->fits], causal);
            run->fits += run->fit[run->fits].against[0] != 0;
        }
        cross(run, f, BENCH_DENSE);
    }
}

void growth_and_ratios(bench_run *run, const bench_ceilings *ceilings) {
    set_ceilings(run, ceilings);
    set_ratios(run);
    set_fits(run);
    judge_noise(run);
}
