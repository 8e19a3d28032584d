/** @file growth.c
 *  @brief Shares, ratios, growth, crossings, noise. */
#include "bench/growth.h"
#include "bench/ratio.h"
#include "common/counts.h"

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
    for (int i = 0; i < BENCH_CEILINGS && c->gpu_count; i++) {
        double all[64];
        int known = 0; /* 0: that measurement failed */
        for (int j = 0; j < c->gpu_count; j++) {
            if (c->gpu[i][j] > 0)
                all[known++] = c->gpu[i][j];
        }
        run->ceiling[i] = bench_quartiles(all, known).median;
        run->ceiling_low[i] = known ? all[0] : 0;
        run->ceiling_high[i] = known ? all[known - 1] : 0;
    }
}

static int on_gpu(const bench_row *r) {
    return !strcmp(r->device, "gpu");
}

/* 1 if any row of that device was timed; without any row, the CPU counts. */
static int timed_on(const bench_run *run, int gpu) {
    int timed[2] = {0, 0};
    for (int i = 0; i < run->rows; i++)
        timed[on_gpu(&run->row[i])] |= !run->row[i].status[0];
    return gpu ? timed[1] : timed[0] || !timed[1];
}

/* Spread of a ceiling within the run, relative to its median. */
static double drift_of(double ceiling, double low, double high) {
    return ceiling > 0 ? (high - low) / ceiling : 0;
}

/* The largest drift among the ceilings that rows of this run are compared with. */
static double worst_drift(const bench_run *run, const char **what) {
    static const char *const names[] = {"FMA",      "cuBLAS sgemm", "cuBLAS bfloat16",
                                        "L2 reads", "memory reads", "device copies"};
    double worst = 0;
    const double cpu[] = {drift_of(run->gbs, run->gbs_low, run->gbs_high),
                          drift_of(run->gflops, run->gflops_low, run->gflops_high)};
    for (int i = 0; i < 2 && timed_on(run, 0); i++) {
        if (cpu[i] > worst) {
            worst = cpu[i];
            *what = i ? "sgemm" : "copy bandwidth";
        }
    }
    for (int i = 0; i < BENCH_CEILINGS && timed_on(run, 1); i++) {
        const double drift = drift_of(run->ceiling[i], run->ceiling_low[i], run->ceiling_high[i]);
        if (drift > worst) {
            worst = drift;
            *what = names[i];
        }
    }
    return worst;
}

/* Times and shares need a quiet machine: ceilings within 15 %, quartiles within 20 %. Ratios have
 * their own spreads. */
static void judge_noise(bench_run *run) {
    const bench_row *worst = NULL;
    const char *what = "";
    double spread = 0.2, drift = worst_drift(run, &what);
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
                 "%sthe quartiles of %s at T = %" PRId64 " differ by %.0f %%", used ? "; " : "",
                 worst->name, worst->T, 100 * spread);
}

/* The shortest time that the ceilings allow, over the time taken. */
static void set_share(const bench_run *run, bench_row *r) {
    const int half = !strcmp(r->arith, "bfloat16");
    const double gflops = on_gpu(r)       ? run->ceiling[half ? BENCH_BF16 : BENCH_FMA]
                          : r->gflops > 0 ? r->gflops
                                          : run->gflops;
    const double gbs = on_gpu(r) ? run->ceiling[BENCH_READ] : r->gbs > 0 ? r->gbs : run->gbs;
    double flops = gflops > 0 ? r->flops / (1e9 * gflops) : 0;
    double bytes = gbs > 0 ? r->bytes / (1e9 * gbs) : 0;
    snprintf(r->bound, sizeof r->bound, "%s", flops >= bytes ? "flops" : "bytes");
    r->share = gflops > 0 ? fmax(flops, bytes) / r->median : 0;
}

/* ------------------------------------------------------------------ ratios */

int bench_is_stage(const bench_row *row) {
    return row->name[0] >= '0' && row->name[0] <= '9';
}

int bench_has_prefix(const char *name, const char *prefix) {
    return !strncmp(name, prefix, strlen(prefix));
}

/* One thread in a run of several: the ceilings and dense attention use all threads, so it is
 * compared only with its own stage. */
static int is_one_thread(const bench_row *r) {
    return bench_has_prefix(r->name, BENCH_ONE_THREAD);
}

/* The dense attention of the ratio: on the CPU OpenBLAS's, on a GPU the first float32 stage's own
 * plain causal attention. */
static const bench_row *dense_of(const bench_run *run, const bench_row *r) {
    if (!strcmp(r->device, "cpu") || !r->device[0])
        return bench_find(run, BENCH_DENSE, r->pass, r->T);
    for (int i = 0; i < run->rows; i++) {
        const bench_row *d = &run->row[i];
        if (d->T == r->T && !d->status[0] && !strcmp(d->pass, r->pass) &&
            !strcmp(d->device, r->device) && bench_has_prefix(d->name, BENCH_OWN_DENSE))
            return d;
    }
    return NULL;
}

static void set_below(bench_run *run, int index) {
    bench_row *r = &run->row[index];
    for (int i = index - 1; i >= 0; i--) {
        const bench_row *b = &run->row[i];
        if (b->T != r->T || strcmp(b->pass, r->pass))
            break;
        if (b->status[0] || !bench_is_stage(b) || strcmp(b->device, r->device))
            continue;
        memmove(r->below_name, b->name, sizeof r->below_name);
        const bench_stats ratio = bench_ratio(r, b);
        r->below = ratio.median;
        r->below_low = ratio.q1;
        r->below_high = ratio.q3;
        break;
    }
}

static void set_ratios(bench_run *run) {
    for (int i = 0; i < run->rows; i++) {
        bench_row *r = &run->row[i];
        if (r->status[0] || is_one_thread(r))
            continue;
        set_share(run, r);
        const bench_row *d = dense_of(run, r);
        if (d == r)
            continue;
        if (d) {
            const bench_stats ratio = bench_ratio(r, d);
            r->dense = ratio.median;
            r->dense_low = ratio.q1;
            r->dense_high = ratio.q3;
        }
        if (bench_is_stage(r))
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

/* The config of a run, parsed from its case string. */
static nsa_config config_of(const bench_run *run) {
    nsa_config c = nsa_config_defaults();
    long long v[9] = {16, 1, 64, 64, 32, 16, 64, 16, 512};
    const char *dims = strstr(run->workload, "Hq=");
    if (dims) /* NOLINTNEXTLINE(cert-err34-c): ours */
        (void)sscanf(dims, "Hq=%lld,Hkv=%lld,dk=%lld,dv=%lld,l=%lld,d=%lld,l2=%lld,n=%lld,w=%lld",
                     &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7], &v[8]);
    c.q_heads = v[0], c.kv_heads = v[1], c.qk_dim = v[2], c.v_dim = v[3], c.cmp_block = v[4];
    c.cmp_stride = v[5], c.slc_block = v[6], c.slc_count = v[7], c.window = v[8];
    return c;
}

/* The variable of the fit: T, or for a branch that reads at most `max_keys` keys a query, all keys
 * read over `max_keys`. */
static double length_of(const nsa_config *c, const char *phase, int64_t T) {
    const int selected = !strcmp(phase, "slc"), window = !strcmp(phase, "win");
    double keys = 0;
    for (int64_t t = 0; t < T && (selected || window); t++) {
        const nsa_reads r = nsa_reads_at(c, t);
        keys += (double)(selected ? r.slc : r.win);
    }
    const int64_t max_keys = selected ? c->slc_count * c->slc_block : c->window;
    return selected || window ? keys / (double)max_keys : (double)T;
}

/* Times of one name, pass and phase, by length. */
typedef struct curve {
    double T[BENCH_MAX_SIZES], seconds[BENCH_MAX_SIZES];
    int64_t from, to; /* tokens */
    double rate;      /* seconds a FLOP of the whole pass at the longest T */
    int count;
} curve;

static curve collect(const bench_run *run, const bench_row *of, const char *phase, int64_t from) {
    const nsa_config config = config_of(run);
    curve c = {.count = 0};
    for (int i = 0; i < run->rows && c.count < BENCH_MAX_SIZES; i++) {
        const bench_row *r = &run->row[i];
        if (r->status[0] || strcmp(r->name, of->name) || strcmp(r->pass, of->pass) || r->T < from)
            continue;
        double seconds = seconds_of(r, phase);
        if (seconds > 0) {
            c.from = c.count ? c.from : r->T;
            c.to = r->T;
            c.rate = r->median / r->flops;
            c.T[c.count] = length_of(&config, phase, r->T);
            c.seconds[c.count++] = seconds;
        }
    }
    return c;
}

/* Least squares of the relative error: sum ((a T + b T^2) / t - 1)^2, with a, b >= 0, for a cost
 * cannot be negative. */
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
    const double T = c->T[c->count - 1];
    f->curved = f->b * T / (f->a + f->b * T);
}

/* FLOPs of the compressed branch over T^2: T / 2d keys a query on average, two products forward,
 * five backward. */
static double cmp_flops(const bench_run *run, const char *pass) {
    const nsa_config c = config_of(run);
    const double dk = (double)c.qk_dim, dv = (double)c.v_dim, keys = 0.5 / (double)c.cmp_stride;
    return (double)run->batch * keys * (double)c.q_heads *
           (strcmp(pass, "backward") != 0 ? 2 * dk + 2 * dv : 6 * dk + 4 * dv);
}

/* Up to n l' tokens the selected branch is dense attention and grows differently, so the fit starts
 * there if enough lengths remain. */
static bench_fit *add_fit(bench_run *run, const bench_row *of, const char *phase, int64_t min_T) {
    curve c = collect(run, of, phase, min_T);
    if (c.count < 3)
        c = collect(run, of, phase, 0);
    if (c.count < 3 || run->fits == BENCH_MAX_FITS)
        return NULL;
    bench_fit *f = &run->fit[run->fits++];
    *f = (bench_fit){.from = c.from, .to = c.to, .points = c.count};
    snprintf(f->name, sizeof f->name, "%s", of->name);
    snprintf(f->pass, sizeof f->pass, "%s", of->pass);
    snprintf(f->phase, sizeof f->phase, "%s", phase);
    solve(&c, f);
    if (!strcmp(phase, "cmp") && c.rate > 0)
        f->by_flops = f->b / (cmp_flops(run, of->pass) * c.rate);
    return f;
}

/* Find where the sparse program overtakes dense attention: between which measured lengths, and
 * where the fits cross. */
static void find_crossing(bench_run *run, bench_fit *f, const char *dense) {
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
        if (bench_ratio(s, r).median < 1) {
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
    const nsa_config c = config_of(run);
    const int64_t min_T = c.slc_count * c.slc_block;
    for (int i = 0; i < run->rows; i++) {
        const bench_row *r = &run->row[i];
        if (r->status[0] || fitted(run, r) || !strcmp(r->pass, "decode") || is_one_thread(r))
            continue;
        add_fit(run, r, "all", min_T);
        for (int p = 0; p < r->phases; p++)
            add_fit(run, r, r->phase[p].name, min_T);
    }
    for (int i = 0, count = run->fits; i < count; i++) {
        bench_fit *f = &run->fit[i];
        char causal[96];
        if (strcmp(f->phase, "all") || !strcmp(f->name, BENCH_DENSE) ||
            bench_has_prefix(f->name, BENCH_OWN_DENSE))
            continue;
        snprintf(causal, sizeof causal, "%s%s", BENCH_OWN_DENSE, f->name);
        if (run->fits < BENCH_MAX_FITS) { /* once more, against the stage's own dense attention */
            run->fit[run->fits] = *f;
            find_crossing(run, &run->fit[run->fits], causal);
            run->fits += run->fit[run->fits].against[0] != 0;
        }
        find_crossing(run, f, BENCH_DENSE);
    }
}

void growth_and_ratios(bench_run *run, const bench_ceilings *ceilings) {
    set_ceilings(run, ceilings);
    set_ratios(run);
    set_fits(run);
    judge_noise(run);
}
