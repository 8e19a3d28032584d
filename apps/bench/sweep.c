/** @file sweep.c
 *  @brief The sweep: for each pass and length, check every program, then time them in turn, so that
 * a machine that slows down slows all of them. */
#include "bench/blas.h"
#include "bench/budget.h"
#include "bench/ceilings.h"
#include "bench/contender.h"
#include "bench/gpu.h"
#include "bench/growth.h"
#include "bench/judge.h"
#include "bench/kernels.h"
#include "bench/machine.h"
#include "bench/runfile.h"
#include "bench/verify.h"
#include "harness/properties.h"
#include "io/progress.h"
#include "nsa_find.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTENDERS = 3 * BENCH_MAX_STAGES + 1 + PEERS_MAX };

typedef struct sweep {
    const bench_options *o;
    bench_run *run;
    nsa_found *found;
    size_t stages;
    int uses[3]; /* for each bench_device: 1 if a timed program runs there */
    bench_judge judge;
    peers peers;
    /* for this pass: why a stage is not timed at any length, or "" */
    char wrong[BENCH_MAX_STAGES][240];
    bench_budget budget; /* for this pass */
    double reserved;     /* seconds reserved for runs at this length */
    bench_ceilings ceilings;
    bench_arena arena;
    double began;
    progress bar;
} sweep;

/* ------------------------------------------------------------------ stages */

/* The simulator's times say nothing about a GPU, so a stage runs there only if it is named. */
static int is_wanted(const sweep *s, const nsa_found *found) {
    const bench_device device = bench_device_of(found->stage);
    if (device == BENCH_ON_SIMULATOR)
        return s->o->stages > 0;
    return found->stage && s->o->device[device];
}

static void report_skipped(const sweep *s, const nsa_found *found) {
    const bench_device device = bench_device_of(found->stage);
    const char *why = !found->stage                  ? found->problem
                      : device == BENCH_ON_SIMULATOR ? "the simulator's times say nothing"
                      : s->o->device[BENCH_ON_GPU]   ? "--device gpu leaves out the CPU's stages"
                                                     : "--device cpu leaves out the GPU's stages";
    fprintf(stderr, "nsa bench: SKIP %s: %s\n", found->name, why);
}

/* The stages that were asked for, or all. */
static nsa_status list_stages(sweep *s) {
    const bench_options *o = s->o;
    nsa_status status = NSA_OK;
    if (!o->stages)
        return nsa_find_stages(o->stage_dir, &s->found, &s->stages);
    s->found = calloc((size_t)o->stages, sizeof *s->found);
    if (!s->found)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for %d stages", o->stages);
    for (int i = 0; i < o->stages && !status; i++) {
        status = nsa_find_stage(o->stage_dir, o->stage[i], &s->found[i]);
        s->stages += !status;
    }
    return status;
}

static nsa_status find_stages(sweep *s) {
    nsa_status status = judge_open(&s->judge, s->o);
    status = status ? status : list_stages(s);
    for (size_t i = 0; i < s->stages && !status; i++) {
        if (is_wanted(s, &s->found[i]))
            s->uses[bench_device_of(s->found[i].stage)] = 1;
        else
            report_skipped(s, &s->found[i]);
    }
    /* with a GPU, peers alone are worth a run */
    s->uses[BENCH_ON_GPU] |= s->o->peers && s->o->device[BENCH_ON_GPU] && !gpu_missing();
    return status;
}

/* Check each stage on a small case: with small blocks every boundary, such as the window's edge or
 * the first rejected block, is within 130 tokens. */
static void judge_small(sweep *s, bench_pass pass) {
    static nsa_status (*const judge[])(const subject *, const test_case *) = {
        judge_forward, judge_backward, judge_decode};
    char text[64];
    test_case c;
    snprintf(text, sizeof text, "T=130,phi=%s,hidden=12,seed=%d", nsa_phi_name(s->o->cfg.phi),
             (int)s->o->seed);
    for (size_t i = 0; i < s->stages && i < BENCH_MAX_STAGES; i++) {
        const subject who = {s->found[i].stage, s->judge.oracle.stage, s->found[i].name};
        s->wrong[i][0] = 0;
        if (!is_wanted(s, &s->found[i]) || who.stage->available() || case_parse(text, &c))
            continue; /* contender_open() reports the reason */
        nsa_status status = judge[pass](&who, &c);
        if (!status || status == NSA_ERR_UNSUPPORTED)
            continue;
        snprintf(s->wrong[i], sizeof s->wrong[i], "%.120s (%s)", nsa_last_error(), text);
        fprintf(stderr, "nsa bench: %s, %s, is refused a time: %s\n", who.name,
                bench_pass_name(pass), s->wrong[i]);
    }
}

/* ----------------------------------------------------------------- one row */

static bench_row *new_row(sweep *s, const workload *w, const char *prefix, const char *name) {
    if (s->run->rows == BENCH_MAX_ROWS)
        return NULL;
    bench_row *row = &s->run->row[s->run->rows++];
    *row = (bench_row){.T = w->T};
    snprintf(row->name, sizeof row->name, "%s%.49s", prefix, name);
    snprintf(row->pass, sizeof row->pass, "%s", bench_pass_name(w->pass));
    return row;
}

static nsa_status check(sweep *s, contender *c, workload *w) {
    progress_phase(&s->bar, c->row->name);
    nsa_status status = contender_open(c, w);
    if (status || c->peer)
        return status;
    const nsa_found *judge = judge_of(&s->judge, w->pass, w->T);
    const double start = bench_now();
    status = verify_truth(w, judge->stage, judge->name, c->causal);
    if (judge == &s->judge.oracle && bench_now() - start > 1e-3)
        judge_note(&s->judge, w->T, bench_now() - start);
    snprintf(c->row->checked, sizeof c->row->checked, "%s, %" PRId64 " rows", w->oracle,
             w->rows.shape[0]);
    return status ? status : contender_check(c, w, judge->stage);
}

/* Open and check; the row gets the result. @return 1 if it may be timed */
static int admit(sweep *s, contender *c, workload *w) {
    const double left = s->o->deadline - (bench_now() - s->began) - s->reserved;
    const double limit = s->o->budget < left ? s->o->budget : left;
    const double cost = budget_cost(&s->budget, c->row->name, w->T, limit);
    if (cost > limit) {
        snprintf(c->row->status, sizeof c->row->status,
                 "not run: would take about %.0f s, over its budget of %.0f s", cost,
                 limit > 0 ? limit : 0);
        return 0;
    }
    nsa_status status = check(s, c, w);
    if (!status) {
        budget_note(&s->budget, c->row->name, w->T, c->cost, c->first);
        c->wanted = budget_runs(&s->budget, c->first, limit - c->cost);
        if (w->pass == BENCH_DECODE && c->wanted > DECODE_RUNS)
            c->wanted = DECODE_RUNS;
        s->reserved += c->wanted * c->first;
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

static void summarize(contender *c, const workload *w) {
    bench_row *row = c->row;
    const workload_cost cost = workload_count(w, c->causal, contender_arith(c));
    for (int i = 0; i < row->phases; i++) {
        row->phase[i].seconds = bench_quartiles(c->phase[i], c->runs).median;
        kernels_count(w, c->causal, contender_arith(c), &row->phase[i]);
    }
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

/* The processor's ceilings, once a round: if the machine slows down, they do too. */
typedef struct rounds {
    double gflops[BENCH_MAX_RUNS], gbs[BENCH_MAX_RUNS];
    int count;
} rounds;

static void sample_ceilings(const sweep *s, rounds *r) {
    if (!s->uses[BENCH_ON_CPU])
        return;
    ceilings_sample(&s->arena, (int)s->o->threads, &r->gflops[r->count], &r->gbs[r->count]);
    r->count++;
}

/* Time round by round; programs with fewer runs skip some rounds. */
static nsa_status time_all(sweep *s, contender *c, int count, const workload *w) {
    int max_runs = 0;
    rounds sampled = {.count = 0};
    nsa_status status = NSA_OK;
    for (int i = 0; i < count; i++)
        max_runs = c[i].wanted > max_runs ? c[i].wanted : max_runs;
    if (s->uses[BENCH_ON_GPU])
        gpu_warm(0.2); /* it was idle while results were checked */
    for (int round = 0; round < max_runs && !status; round++) {
        progress_count(&s->bar, "round", round + 1, max_runs);
        sample_ceilings(s, &sampled);
        for (int i = 0; i < count && !status; i++) {
            if (!bench_takes_part(round, max_runs, c[i].wanted))
                continue;
            if (c[i].device == BENCH_ON_CPU)
                bench_flush(&s->arena);
            status = contender_time(&c[i], w, c[i].clock);
            if (!status)
                c[i].row->round[round] = c[i].sample[c[i].runs - 1];
            if (status && c[i].peer) { /* a peer's failure does not end the run */
                snprintf(c[i].row->status, sizeof c[i].row->status, "SKIP: %.200s",
                         nsa_last_error());
                c[i].wanted = 0;
                status = NSA_OK;
            }
        }
    }
    for (int i = 0; i < count && !status; i++) {
        if (c[i].row->status[0])
            continue;
        c[i].row->rounds = max_runs;
        summarize(&c[i], w);
        if (c[i].device == BENCH_ON_CPU && sampled.count) {
            c[i].row->gflops = bench_quartiles(sampled.gflops, sampled.count).median;
            c[i].row->gbs = bench_quartiles(sampled.gbs, sampled.count).median;
        }
    }
    return status;
}

static void measure_ceilings(sweep *s) {
    ceilings_measure(&s->ceilings, &s->arena, (int)s->o->threads);
    snprintf(s->run->blas, sizeof s->run->blas, "%s", blas_name()); /* it may be missing now */
    if (s->uses[BENCH_ON_GPU])
        ceilings_measure_gpu(&s->ceilings);
}

/* Add a contender to those that are timed, or write to its row why not. */
static void add(sweep *s, contender *list, int *count, workload *w, contender c) {
    const char *name = c.peer ? c.peer->name : BENCH_DENSE, *wrong = "";
    static const char *const ariths[] = {"float64", "float32", "bfloat16"};
    for (size_t i = 0; i < s->stages && c.stage; i++) {
        if (s->found[i].stage == c.stage) {
            name = s->found[i].name;
            wrong = i < BENCH_MAX_STAGES ? s->wrong[i] : "";
        }
    }
    c.clock = bench_cpu_clock(); /* a stage on a device times its phases */
    c.device = c.peer ? c.peer->device : bench_device_of(c.stage);
    c.peer_id = -1;
    const int one_thread = c.threads == 1 && s->o->threads > 1;
    c.threads = one_thread ? 1 : (int)s->o->threads;
    const char *prefix = c.stage && c.causal ? BENCH_OWN_DENSE : one_thread ? BENCH_ONE_THREAD : "";
    c.row = new_row(s, w, prefix, name);
    if (!c.row)
        return;
    snprintf(c.row->device, sizeof c.row->device, "%s", bench_device_name(c.device));
    snprintf(c.row->arith, sizeof c.row->arith, "%s", ariths[contender_arith(&c)]);
    if (wrong[0])
        snprintf(c.row->status, sizeof c.row->status, "REFUSED: %s", wrong);
    if (wrong[0] || !admit(s, &c, w))
        return;
    list[(*count)++] = c;
}

/* Plain causal attention by a stage's own code shows what sparsity alone is worth. On a device,
 * where no library is compared with, it also gets a backward. */
static int has_causal(const nsa_stage *stage, bench_pass pass) {
    if (stage->arith != NSA_FLOAT32)
        return 0;
    return pass == BENCH_FORWARD ? stage->causal != NULL
                                 : pass == BENCH_BACKWARD && stage->device != NULL;
}

static nsa_status one_length(sweep *s, bench_pass pass, int64_t T, nsa_arith arith) {
    contender list[CONTENDERS];
    workload w;
    int count = 0;
    nsa_status status = workload_open(s->o, pass, T, arith, &w);
    for (size_t i = 0; i < s->stages && !status; i++) {
        const nsa_stage *stage = s->found[i].stage;
        if (!is_wanted(s, &s->found[i]) ||
            (stage->arith == NSA_BFLOAT16) != (arith == NSA_BFLOAT16))
            continue;
        add(s, list, &count, &w, (contender){.stage = stage});
        if (has_causal(stage, pass))
            add(s, list, &count, &w, (contender){.stage = stage, .causal = 1});
        if (s->o->one_thread && s->o->threads > 1 && bench_device_of(stage) == BENCH_ON_CPU)
            add(s, list, &count, &w, (contender){.stage = stage, .threads = 1});
    }
    if (!status && arith == NSA_FLOAT32 && s->uses[BENCH_ON_CPU])
        add(s, list, &count, &w, (contender){.causal = 1});
    for (int i = 0; i < s->peers.count && !status && arith == NSA_FLOAT32; i++) {
        const peer *p = &s->peers.list[i];
        if (s->uses[p->device] && p->pass[pass])
            add(s, list, &count, &w,
                (contender){.program = &s->peers, .peer = p, .causal = !p->sparse});
    }
    status = status ? status : time_all(s, list, count, &w);
    s->reserved = 0;
    for (int i = 0; i < count; i++)
        contender_close(&list[i]);
    workload_close(&w);
    measure_ceilings(s);
    return status;
}

static int wants_bfloat16(const sweep *s) {
    for (size_t i = 0; i < s->stages; i++) {
        if (is_wanted(s, &s->found[i]) && s->found[i].stage->arith == NSA_BFLOAT16)
            return 1;
    }
    return 0;
}

/* Called after each length, so that an interrupted run keeps its results. */
static nsa_status save_run(sweep *s) {
    s->run->fits = 0;
    growth_and_ratios(s->run, &s->ceilings);
    return s->o->json ? runfile_write(s->run, s->o->json) : NSA_OK;
}

static nsa_status one_pass(sweep *s, bench_pass pass) {
    nsa_status status = NSA_OK;
    s->budget.count = 0;
    s->budget.runs = (int)s->o->runs;
    judge_begin(&s->judge);
    judge_small(s, pass);
    for (int i = 0; i < s->o->sizes && !status; i++) {
        status = one_length(s, pass, s->o->T[i], NSA_FLOAT32);
        if (!status && wants_bfloat16(s))
            status = one_length(s, pass, s->o->T[i], NSA_BFLOAT16);
        if (!status)
            status = save_run(s);
        progress_end(&s->bar);
        fprintf(stderr, "nsa bench: %s, T = %" PRId64 " done after %.0f s\n", bench_pass_name(pass),
                s->o->T[i], bench_now() - s->began);
    }
    return status;
}

/* Describe the machine, and start the peers. */
static void describe(sweep *s) {
    machine_describe(s->run, s->o, s->found, s->stages);
    if (s->uses[BENCH_ON_GPU])
        gpu_describe(s->run->gpu, sizeof s->run->gpu);
    if (!s->o->peers)
        return;
    if (peers_start(&s->peers, s->o->peers, s->o))
        fprintf(stderr, "nsa bench: SKIP peers: %s\n", s->peers.about);
    snprintf(s->run->peers, sizeof s->run->peers, "%s", s->peers.about);
}

static void close_sweep(sweep *s) {
    peers_stop(&s->peers);
    for (size_t i = 0; i < s->stages && s->o->stages; i++)
        nsa_free_stage(&s->found[i]);
    if (s->o->stages)
        free(s->found);
    else
        nsa_free_stages(s->found, s->stages);
    judge_close(&s->judge);
    bench_arena_close(&s->arena);
}

nsa_status bench_sweep(const bench_options *o, bench_run *run) {
    sweep s = {.o = o, .run = run, .peers = {.to = -1, .from = -1}, .began = bench_now()};
    if (!bench_arena_open(&s.arena))
        return nsa_fail(NSA_ERR_MEMORY, "no memory for flushing the caches");
    s.bar = progress_begin("nsa bench");
    nsa_status status = find_stages(&s);
    if (!status) {
        describe(&s);
        measure_ceilings(&s);
    }
    for (int pass = 0; pass < BENCH_PASSES && !status; pass++) {
        if (o->pass[pass])
            status = one_pass(&s, (bench_pass)pass);
    }
    progress_end(&s.bar);
    close_sweep(&s);
    return status;
}
