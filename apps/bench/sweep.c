/** @file sweep.c
 *  @brief The sweep: for each pass and length, every program is checked, then all take turns at
 * being timed, so that a machine that slows down slows all of them. */
#include "bench/blas.h"
#include "bench/ceilings.h"
#include "bench/contender.h"
#include "bench/growth.h"
#include "bench/machine.h"
#include "bench/runfile.h"
#include "bench/verify.h"
#include "harness/properties.h"
#include "io/progress.h"
#include "nsa_find.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTENDERS = 2 * BENCH_STAGES + 1 };

/* What one program took at the lengths before, to foretell the next. */
typedef struct history {
    char name[64];
    int64_t T[2];
    double cost[2], first[2]; /* [1] is the latest; T = 0: none */
} history;

typedef struct sweep {
    const bench_options *o;
    bench_run *run;
    nsa_found *found;
    size_t stages;
    const nsa_stage *oracle; /* stage 00 */
    nsa_found oracle_found;
    int proven;         /* the fastest stage that passed at every length so far; -1: none */
    double oracle_took; /* seconds of stage 00's rows at the length before */
    char wrong[BENCH_STAGES][240]; /* of this pass: why a stage is refused at any length, or "" */
    history past[CONTENDERS];      /* of this pass */
    int pasts;
    bench_ceilings ceilings;
    bench_arena arena;
    double began;
    progress bar;
} sweep;

/* ------------------------------------------------------------------ stages */

/* The stages that were asked for, in the order of their names. */
static nsa_status find_stages(sweep *s) {
    const bench_options *o = s->o;
    nsa_status status = nsa_find_stage(o->stage_dir, "00", &s->oracle_found);
    s->oracle = s->oracle_found.stage;
    if (!status && !o->stages)
        status = nsa_find_stages(o->stage_dir, &s->found, &s->stages);
    for (size_t i = 0; i < s->stages; i++) {
        if (!s->found[i].stage)
            fprintf(stderr, "nsa bench: SKIP %s: %s\n", s->found[i].name, s->found[i].problem);
    }
    if (status || !o->stages)
        return status;
    s->found = calloc((size_t)o->stages, sizeof *s->found);
    if (!s->found)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for %d stages", o->stages);
    for (int i = 0; i < o->stages && !status; i++) {
        status = nsa_find_stage(o->stage_dir, o->stage[i], &s->found[i]);
        s->stages += !status;
    }
    return status;
}

/* Small blocks put every boundary within 130 tokens: an error that a short text would hide, of the
 * window's edge or the choice of blocks, shows here at any length that is timed. */
static void judge_small(sweep *s, bench_pass pass) {
    static nsa_status (*const judge[])(const subject *, const test_case *) = {
        judge_forward, judge_backward, judge_decode};
    char text[64];
    test_case c;
    snprintf(text, sizeof text, "T=130,phi=%s,hidden=12,seed=%d", nsa_phi_name(s->o->cfg.phi),
             (int)s->o->seed);
    for (size_t i = 0; i < s->stages && i < BENCH_STAGES; i++) {
        const subject who = {s->found[i].stage, s->oracle, s->found[i].name};
        s->wrong[i][0] = 0;
        if (!who.stage || who.stage->available() || case_parse(text, &c))
            continue; /* contender_open() will say why */
        nsa_status status = judge[pass](&who, &c);
        if (!status || status == NSA_ERR_UNSUPPORTED)
            continue;
        snprintf(s->wrong[i], sizeof s->wrong[i], "%.120s (%s)", nsa_last_error(), text);
        fprintf(stderr, "nsa bench: %s, %s, is refused a time: %s\n", who.name,
                bench_pass_name(pass), s->wrong[i]);
    }
}

/* ------------------------------------------------------------------ budget */

static int runs_wanted(double seconds) {
    if (seconds <= 0.05)
        return BENCH_SAMPLES;
    if (seconds <= BENCH_SLOW)
        return BENCH_LEAST;
    int many = (int)(20 / seconds);
    return many < 3 ? 3 : many < BENCH_LEAST ? many : BENCH_LEAST;
}

static history *past_of(sweep *s, const char *name) {
    for (int i = 0; i < s->pasts; i++) {
        if (!strcmp(s->past[i].name, name))
            return &s->past[i];
    }
    history *h = &s->past[s->pasts++];
    *h = (history){0};
    snprintf(h->name, sizeof h->name, "%s", name);
    return h;
}

/* T^e from the last two lengths, e in 1..2.2; from one length alone, T^2. */
static double foretell(const history *h, const double seconds[2], int64_t T) {
    double e = 2;
    if (h->T[0])
        e = log(seconds[1] / seconds[0]) / log((double)h->T[1] / (double)h->T[0]);
    e = e < 1 ? 1 : e > 2.2 ? 2.2 : e;
    return seconds[1] * pow((double)T / (double)h->T[1], e);
}

/* Seconds that a row would take; 0 if nothing is known yet. */
static double row_cost(const history *h, int64_t T) {
    if (!h->T[1])
        return 0;
    double first = foretell(h, h->first, T), cost = foretell(h, h->cost, T);
    return cost + runs_wanted(first) * first;
}

static void remember(sweep *s, const contender *c) {
    history *h = past_of(s, c->row->name);
    h->T[0] = h->T[1];
    h->cost[0] = h->cost[1];
    h->first[0] = h->first[1];
    h->T[1] = c->row->T;
    h->cost[1] = c->cost;
    h->first[1] = c->first;
}

/* ----------------------------------------------------------------- one row */

static bench_row *new_row(sweep *s, const workload *w, const char *prefix, const char *name) {
    if (s->run->rows == BENCH_ROWS)
        return NULL;
    bench_row *row = &s->run->row[s->run->rows++];
    *row = (bench_row){.T = w->T};
    snprintf(row->name, sizeof row->name, "%s%.50s", prefix, name);
    snprintf(row->pass, sizeof row->pass, "%s", bench_pass_name(w->pass));
    return row;
}

/* Stage 00 judges as long as its rows take less than the budget; then a stage that it proved. */
static const nsa_stage *judge_of(const sweep *s, const workload *w, const char **name) {
    if (s->oracle_took * 2 > s->o->budget && s->proven >= 0 && w->arith != NSA_BFLOAT16) {
        *name = s->found[s->proven].name;
        return s->found[s->proven].stage;
    }
    *name = s->oracle_found.name;
    return s->oracle;
}

static nsa_status check(sweep *s, contender *c, workload *w) {
    const char *name;
    const nsa_stage *judge = judge_of(s, w, &name);
    progress_phase(&s->bar, c->row->name);
    nsa_status status = contender_open(c, w, (int)s->o->threads);
    const double start = bench_now();
    status = status ? status : verify_truth(w, judge, name, c->causal);
    if (judge == s->oracle && bench_now() - start > 1e-3)
        s->oracle_took = bench_now() - start;
    snprintf(c->row->checked, sizeof c->row->checked, "%s, %" PRId64 " rows", w->oracle,
             w->rows.shape[0]);
    return status ? status : contender_check(c, w, judge);
}

/* Open and check; the row says what came of it. @return 1 if it may be timed */
static int admit(sweep *s, contender *c, workload *w) {
    const double left = s->o->deadline - (bench_now() - s->began);
    const double limit = s->o->budget < left ? s->o->budget : left;
    const double cost = row_cost(past_of(s, c->row->name), w->T);
    if (cost > limit) {
        snprintf(c->row->status, sizeof c->row->status,
                 "not run: would take about %.0f s, over its budget of %.0f s", cost,
                 limit > 0 ? limit : 0);
        return 0;
    }
    nsa_status status = check(s, c, w);
    if (!status) {
        remember(s, c);
        c->wanted = runs_wanted(c->first);
        return 1;
    }
    contender_close(c);
    const int cannot = status == NSA_ERR_DEVICE || status == NSA_ERR_UNSUPPORTED;
    snprintf(c->row->status, sizeof c->row->status, "%s: %.200s", cannot ? "SKIP" : "REFUSED",
             nsa_last_error());
    if (!cannot)
        fprintf(stderr, "nsa bench: %s, %s at T = %" PRId64 ", is refused a time: %s\n",
                c->row->name, c->row->pass, w->T, nsa_last_error());
    return 0;
}

static void sum_up(contender *c, const workload *w) {
    bench_row *row = c->row;
    const workload_cost cost =
        workload_count(w, c->causal, c->stage ? c->stage->arith : NSA_FLOAT32);
    for (int i = 0; i < row->phases; i++)
        row->phase[i].seconds = bench_quartiles(c->phase[i], c->runs).median;
    const bench_stats stats = bench_quartiles(c->sample, c->runs);
    row->runs = c->runs;
    row->median = stats.median;
    row->q1 = stats.q1;
    row->q3 = stats.q3;
    row->flops = cost.flops;
    row->bytes = cost.bytes;
    row->tokens = cost.tokens;
}

/* -------------------------------------------------------------- one length */

/* Round by round; who needs fewer runs sits some rounds out, evenly spread. */
static nsa_status time_all(sweep *s, contender *c, int count, const workload *w) {
    int most = 0;
    nsa_status status = NSA_OK;
    for (int i = 0; i < count; i++)
        most = c[i].wanted > most ? c[i].wanted : most;
    for (int round = 0; round < most && !status; round++) {
        progress_count(&s->bar, "round", round + 1, most);
        for (int i = 0; i < count && !status; i++) {
            if (round * c[i].wanted / most == (round + 1) * c[i].wanted / most)
                continue;
            bench_flush(&s->arena);
            status = contender_time(&c[i], w, c[i].clock);
        }
    }
    for (int i = 0; i < count && !status; i++)
        sum_up(&c[i], w);
    return status;
}

/* A contender joins those that are timed, or its row says why not. */
static void add(sweep *s, contender *list, int *count, workload *w, contender c) {
    const char *name = c.stage ? "" : BENCH_DENSE, *wrong = "";
    for (size_t i = 0; i < s->stages && c.stage; i++) {
        if (s->found[i].stage == c.stage) {
            name = s->found[i].name;
            wrong = i < BENCH_STAGES ? s->wrong[i] : "";
        }
    }
    c.clock = bench_cpu_clock(); /* a device stage's events will stand here */
    c.row = new_row(s, w, c.stage && c.causal ? BENCH_OWN : "", name);
    if (c.row && wrong[0])
        snprintf(c.row->status, sizeof c.row->status, "REFUSED: %s", wrong);
    if (!c.row || wrong[0] || !admit(s, &c, w))
        return;
    if (c.stage && !c.causal && c.stage->arith == NSA_FLOAT32)
        for (size_t i = 0; i < s->stages; i++)
            s->proven = s->found[i].stage == c.stage ? (int)i : s->proven;
    list[(*count)++] = c;
}

static nsa_status one_length(sweep *s, bench_pass pass, int64_t T, nsa_arith arith) {
    contender list[CONTENDERS];
    workload w;
    int count = 0;
    nsa_status status = workload_open(s->o, pass, T, arith, &w);
    for (size_t i = 0; i < s->stages && !status; i++) {
        const nsa_stage *stage = s->found[i].stage;
        if (!stage || (stage->arith == NSA_BFLOAT16) != (arith == NSA_BFLOAT16))
            continue;
        add(s, list, &count, &w, (contender){.stage = stage});
        /* dense attention by the same code: what sparsity alone is worth */
        if (pass == BENCH_FORWARD && stage->causal && stage->arith == NSA_FLOAT32)
            add(s, list, &count, &w, (contender){.stage = stage, .causal = 1});
    }
    if (!status && arith == NSA_FLOAT32)
        add(s, list, &count, &w, (contender){.causal = 1});
    status = status ? status : time_all(s, list, count, &w);
    for (int i = 0; i < count; i++)
        contender_close(&list[i]);
    workload_close(&w);
    ceilings_measure(&s->ceilings, &s->arena, (int)s->o->threads);
    return status;
}

static int wants_bfloat16(const sweep *s) {
    for (size_t i = 0; i < s->stages; i++) {
        if (s->found[i].stage && s->found[i].stage->arith == NSA_BFLOAT16)
            return 1;
    }
    return 0;
}

/* After each length, so that a run that is ended early leaves what it found. */
static nsa_status keep(sweep *s) {
    s->run->fits = 0;
    growth_and_ratios(s->run, &s->ceilings);
    return s->o->json ? runfile_write(s->run, s->o->json) : NSA_OK;
}

static nsa_status one_pass(sweep *s, bench_pass pass) {
    nsa_status status = NSA_OK;
    s->pasts = 0;
    s->oracle_took = 0;
    judge_small(s, pass);
    for (int i = 0; i < s->o->sizes && !status; i++) {
        status = one_length(s, pass, s->o->T[i], NSA_FLOAT32);
        if (!status && wants_bfloat16(s))
            status = one_length(s, pass, s->o->T[i], NSA_BFLOAT16);
        if (!status)
            status = keep(s);
        progress_end(&s->bar);
        fprintf(stderr, "nsa bench: %s, T = %" PRId64 " done after %.0f s\n", bench_pass_name(pass),
                s->o->T[i], bench_now() - s->began);
    }
    return status;
}

nsa_status bench_sweep(const bench_options *o, bench_run *run) {
    sweep s = {.o = o, .run = run, .proven = -1, .began = bench_now()};
    if (!bench_arena_open(&s.arena))
        return nsa_fail(NSA_ERR_MEMORY, "no memory to flush the caches with");
    s.bar = progress_begin("nsa bench");
    nsa_status status = find_stages(&s);
    machine_describe(run, o, s.found, s.stages);
    if (!status)
        ceilings_measure(&s.ceilings, &s.arena, (int)o->threads);
    for (int pass = 0; pass < BENCH_PASSES && !status; pass++) {
        if (o->pass[pass])
            status = one_pass(&s, (bench_pass)pass);
    }
    progress_end(&s.bar);
    for (size_t i = 0; i < s.stages && o->stages; i++)
        nsa_free_stage(&s.found[i]);
    if (o->stages)
        free(s.found);
    else
        nsa_free_stages(s.found, s.stages);
    nsa_free_stage(&s.oracle_found);
    bench_arena_close(&s.arena);
    return status;
}
