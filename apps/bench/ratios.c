/** @file ratios.c
 *  @brief What is computed from times: ratios, shares of the ceilings, noise. */
#include "bench/bench.h"

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

int bench_is_stage(const bench_row *row) {
    return row->name[0] >= '0' && row->name[0] <= '9';
}

int bench_has_prefix(const char *name, const char *prefix) {
    return !strncmp(name, prefix, strlen(prefix));
}

static double spread(bench_stats s) {
    return s.median > 0 ? (s.high - s.low) / s.median : 0;
}

/* Times and shares need a quiet machine: quartiles within 20 %, and within 15 % the ceilings that
 * rows are compared with; without any row, those of the CPU. Ratios have their own spreads. */
static void set_noise(bench_run *run) {
    static const char *const names[BENCH_CEILINGS] = {
        "fma", "sgemm", "bf16", "l2", "read", "copy", "OpenBLAS sgemm", "copy bandwidth"};
    const bench_row *row = NULL;
    int ceiling = -1, timed[2] = {0, 0}, used = 0;
    for (const bench_row *r = run->row; r < run->row + run->rows; r++) {
        timed[!strcmp(r->device, "gpu")] |= !r->status[0];
        if (!r->status[0] && spread(r->time) > (row ? spread(row->time) : 0.2))
            row = r;
    }
    for (int i = 0; i < BENCH_CEILINGS; i++) {
        const int counts = i < GPU_CEILINGS ? timed[1] : timed[0] || !timed[1];
        if (counts &&
            spread(run->ceiling[i]) > (ceiling < 0 ? 0.15 : spread(run->ceiling[ceiling])))
            ceiling = i;
    }
    run->noise[0] = 0;
    if (ceiling >= 0)
        used = snprintf(run->noise, sizeof run->noise, "%s differed by %.0f %% within the run",
                        names[ceiling], 100 * spread(run->ceiling[ceiling]));
    if (row)
        snprintf(run->noise + used, sizeof run->noise - (size_t)used,
                 "%sthe quartiles of %s at T = %" PRId64 " differ by %.0f %%", used ? "; " : "",
                 row->name, row->T, 100 * spread(row->time));
}

bench_stats bench_ratio(const bench_row *r, const bench_row *than) {
    enum { MIN_SHARED = 3 };
    double ratio[BENCH_MAX_RUNS];
    int shared = 0;
    for (int i = 0; i < r->rounds && i < than->rounds; i++) {
        if (r->round[i] > 0 && than->round[i] > 0)
            ratio[shared++] = than->round[i] / r->round[i];
    }
    if (shared >= MIN_SHARED)
        return bench_quartiles(ratio, shared);
    return (bench_stats){than->time.low / r->time.high, than->time.median / r->time.median,
                         than->time.high / r->time.low};
}

/* The shortest time that the ceilings allow, over the time taken. */
static void set_share(const bench_run *run, bench_row *r) {
    const int half = !strcmp(r->arith, "bfloat16");
    const bench_stats *c = run->ceiling;
    double gflops = r->gflops > 0 ? r->gflops : c[CPU_SGEMM].median;
    double gbs = r->gbs > 0 ? r->gbs : c[CPU_COPY].median;
    if (!strcmp(r->device, "gpu")) {
        gflops = c[half ? BENCH_BF16 : BENCH_FMA].median;
        gbs = c[BENCH_READ].median;
    }
    const double flops = gflops > 0 ? r->flops / (1e9 * gflops) : 0;
    const double bytes = gbs > 0 ? r->bytes / (1e9 * gbs) : 0;
    snprintf(r->bound, sizeof r->bound, "%s", flops >= bytes ? "flops" : "bytes");
    r->share = gflops > 0 ? fmax(flops, bytes) / r->time.median : 0;
}

/* The dense attention of the ratio: OpenBLAS's, or without that, on a GPU and for a backward, the
 * fastest plain causal attention by a stage's own code. */
static const bench_row *dense_of(const bench_run *run, const bench_row *r) {
    const bench_row *best =
        !strcmp(r->device, "gpu") ? NULL : bench_find(run, BENCH_DENSE, r->pass, r->T);
    for (int i = 0, own = !best; i < run->rows && own; i++) {
        const bench_row *d = &run->row[i];
        if (d->T == r->T && !d->status[0] && !strcmp(d->pass, r->pass) &&
            !strcmp(d->device, r->device) && bench_has_prefix(d->name, BENCH_OWN_DENSE) &&
            (!best || d->time.median < best->time.median))
            best = d;
    }
    return best;
}

/* The nearest stage before this one, at the same pass and length on the same device. */
static const bench_row *below_of(const bench_run *run, int index) {
    const bench_row *r = &run->row[index];
    for (int i = index - 1; i >= 0; i--) {
        const bench_row *b = &run->row[i];
        if (b->T != r->T || strcmp(b->pass, r->pass))
            return NULL;
        if (!b->status[0] && bench_is_stage(b) && !strcmp(b->device, r->device))
            return b;
    }
    return NULL;
}

void bench_compute(bench_run *run) {
    for (int i = 0; i < run->rows; i++) {
        bench_row *r = &run->row[i];
        /* the ceilings and dense attention use all threads: one thread is compared only with its
         * own stage */
        if (r->status[0] || bench_has_prefix(r->name, BENCH_ONE_THREAD))
            continue;
        set_share(run, r);
        const bench_row *dense = dense_of(run, r);
        const bench_row *below = bench_is_stage(r) ? below_of(run, i) : NULL;
        if (dense && dense != r)
            r->dense = bench_ratio(r, dense);
        if (below && dense != r)
            r->below = bench_ratio(r, below);
    }
    set_noise(run);
}
