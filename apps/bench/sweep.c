/** @file sweep.c
 *  @brief The sweep: for each pass and length, check every program, then time them in turn, so that
 * a machine that slows down slows all of them. */
#include "bench/contender.h"
#include "io/progress.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum { CONTENDERS = 3 * BENCH_MAX_STAGES + 1 + PEERS_MAX };

/* Measurements of one ceiling; zeros, which mean a failure, are left out. */
typedef struct samples {
    double value[4096]; /* a round has less than 64 */
    int count, kept;    /* so far, and before the current round */
} samples;

static void samples_add(samples *s, double value) {
    if (value > 0 && s->count < (int)(sizeof s->value / sizeof s->value[0]))
        s->value[s->count++] = value;
}

/* Median, lowest and highest. */
static bench_stats samples_stats(samples *s) {
    const double median = bench_quartiles(s->value, s->count).median;
    return s->count ? (bench_stats){s->value[0], median, s->value[s->count - 1]} : (bench_stats){0};
}

typedef struct sweep {
    const bench_options *o;
    bench_run *run;
    nsa_found *found;
    size_t stages;
    int uses[3];     /* for each bench_device: 1 if a timed program runs there */
    int alone;       /* 1 if all of them run on the CPU */
    int bfloat16;    /* 1 if a stage computes in it: its inputs are rounded */
    nsa_found judge; /* the oracle of all rows: --judge, or stage 00 */
    peers peers;
    samples ceiling[BENCH_CEILINGS];
    double best[BENCH_CEILINGS]; /* so far: whoever interrupts can only make it slower */
    int round, rounds, thrown;   /* of a length: the current one, wanted, thrown away */
    double spare;                /* seconds that may yet be thrown away */
    double began;
    progress bar;
} sweep;

static int is_wanted(const sweep *s, const nsa_found *found) {
    return found->stage && s->o->device[bench_device_of(found->stage)];
}

/* The stages that were asked for, or all. */
static nsa_status list_stages(sweep *s) {
    const bench_options *o = s->o;
    nsa_status status = NSA_OK;
    if (!o->stages)
        return nsa_find_stages(o->stage_dir, &s->found, &s->stages);
    s->found = calloc(BENCH_MAX_STAGES, sizeof *s->found);
    if (!s->found)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for the stages");
    for (int i = 0; i < o->stages && !status; i++) {
        status = nsa_find_stage(o->stage_dir, o->stage[i], &s->found[i]);
        s->stages += !status;
    }
    return status;
}

static nsa_status find_stages(sweep *s) {
    nsa_status status =
        nsa_find_stage(s->o->stage_dir, s->o->judge ? s->o->judge : "00", &s->judge);
    if (!status && (s->judge.stage->device || s->judge.stage->arith == NSA_BFLOAT16))
        status = nsa_fail(NSA_ERR_INPUT, "--judge %s: not a float stage of the CPU", s->o->judge);
    status = status ? status : list_stages(s);
    for (size_t i = 0; i < s->stages && !status; i++) {
        const nsa_stage *stage = s->found[i].stage;
        if (!is_wanted(s, &s->found[i])) {
            fprintf(stderr, "nsa bench: SKIP %s: %s\n", s->found[i].name,
                    stage ? "its device, or the simulator, is not asked for" : s->found[i].problem);
            continue;
        }
        s->uses[bench_device_of(stage)] = 1;
        s->bfloat16 |= stage->arith == NSA_BFLOAT16;
    }
    /* with a GPU, peers alone are worth a run */
    s->uses[BENCH_ON_GPU] |= s->o->peers && s->o->device[BENCH_ON_GPU] && gpu(NULL);
    s->alone = s->uses[BENCH_ON_CPU] && !s->uses[BENCH_ON_GPU] && !s->uses[BENCH_ON_SIMULATOR];
    return status;
}

/* How often a run of `seconds` is timed: as --runs says, cut to what fits into `limit` seconds but
 * at least three times; without --runs, by its length alone. */
static int runs_of(const bench_options *o, double seconds, double limit) {
    if (o->runs)
        return (int)fmin((double)o->runs, fmax(3, limit / seconds));
    return seconds <= 0.05 ? 20 : seconds <= 2 ? 10 : seconds <= 20.0 / 3 ? (int)(20 / seconds) : 3;
}

/* Predicted seconds of a row that may take `limit`, from the rows of the same program at the last
 * two lengths; 0 without any. Time grows as T^e: e from both, in 1..2.2; from one length, e = 2. */
static double predict_row(const sweep *s, const bench_row *row, double limit) {
    const bench_row *last = NULL, *before = NULL;
    double e = 2;
    for (const bench_row *r = s->run->row; r < row; r++) {
        if (!r->status[0] && !strcmp(r->name, row->name) && !strcmp(r->pass, row->pass))
            before = last, last = r;
    }
    if (!last)
        return 0;
    if (before)
        e = log(last->time.median / before->time.median) / log((double)last->T / (double)before->T);
    const double growth = pow((double)row->T / (double)last->T, fmin(fmax(e, 1), 2.2));
    const double one = growth * last->time.median, cost = growth * last->cost;
    const int times = 1 + (last->with_io.median > 0); /* that each run is timed */
    return cost + times * runs_of(s->o, one, (limit - cost) / times) * one;
}

/* Is a row that would take `cost` more seconds left out? Then its status says so, after `what`. */
static int is_too_long(const sweep *s, bench_row *row, const char *what, double cost) {
    const double limit = (double)s->o->budget;
    if (cost <= limit)
        return 0;
    snprintf(row->status, sizeof row->status,
             "%s: would take about %.0f s, over its budget of %.0f s", what, cost, limit);
    return 1;
}

/* Open and check; the row gets the result. @return 1 if it may be timed */
static int admit(sweep *s, contender *c, workload *w) {
    const double limit = (double)s->o->budget;
    if (is_too_long(s, c->row, "not run", predict_row(s, c->row, limit)))
        return 0;
    progress_phase(&s->bar, c->row->name);
    nsa_status status = contender_open(c, w);
    if (!status && !c->peer) { /* the peers' program checks itself */
        status = verify_truth(w, s->judge.stage, c->causal);
        snprintf(c->row->checked, sizeof c->row->checked, "%s, %" PRId64 " rows", s->judge.name,
                 w->rows.shape[0]);
        status = status ? status : contender_check(c, w, s->judge.stage);
    }
    if (!status) {
        const int times = c->has_io ? 2 : 1; /* that each run is timed: also with load and read */
        c->wanted = runs_of(s->o, c->first, (limit - c->row->cost) / times);
        if (w->pass == BENCH_DECODE && c->wanted > DECODE_RUNS)
            c->wanted = DECODE_RUNS;
        if (!is_too_long(s, c->row, "agrees, but is not timed",
                         c->row->cost + 3 * times * c->first))
            return 1;
    } else {
        const int cannot = status == NSA_ERR_DEVICE || status == NSA_ERR_UNSUPPORTED;
        snprintf(c->row->status, sizeof c->row->status, "%s: %.200s", cannot ? "SKIP" : "REFUSED",
                 nsa_last_error());
        if (!cannot)
            fprintf(stderr, "nsa bench: %s, %s at T = %" PRId64 ", is refused a time: %s\n",
                    c->row->name, c->row->pass, w->T, nsa_last_error());
    }
    contender_close(c);
    return 0;
}

static void summarize(contender *c, const workload *w, int rounds, samples *ceiling) {
    bench_row *row = c->row;
    row->rounds = rounds;
    if (c->device == BENCH_ON_CPU) {
        row->gflops = samples_stats(&ceiling[CPU_SGEMM]).median;
        row->gbs = samples_stats(&ceiling[CPU_COPY]).median;
    }
    for (int i = 0; i < row->phases; i++) {
        row->phase[i].seconds = bench_quartiles(c->phase[i], c->runs).median;
        phase_work(w, contender_arith(c), &row->phase[i]);
    }
    row->runs = c->runs;
    row->time = bench_quartiles(c->sample, c->runs);
    row->with_io = bench_quartiles(c->with_io, c->runs);
    workload_count(w, c->causal, contender_arith(c), row);
}

/* The rank of a round: even rounds come before odd ones, and recursively within each half. */
static int round_rank(int round, int rounds) {
    const int even = (rounds + 1) / 2;
    if (rounds < 2)
        return 0;
    return round % 2 ? even + round_rank(round / 2, rounds / 2) : round_rank(round / 2, even);
}

/* A row with k runs takes the rounds of the lowest k ranks: its runs are spread over all rounds,
 * and every round of a row with fewer runs is one of each row with more, which ratios need. */
static int takes_part(const sweep *s, const contender *c) {
    return round_rank(s->round, s->rounds) < c->wanted;
}

static nsa_status time_one(contender *c, const workload *w, int round) {
    if (c->device == BENCH_ON_CPU)
        bench_flush();
    nsa_status status = contender_time(c, w);
    if (!status) {
        c->row->round[round] = c->sample[c->runs - 1];
    } else if (c->peer) { /* a peer's failure does not end the run */
        snprintf(c->row->status, sizeof c->row->status, "SKIP: %.200s", nsa_last_error());
        c->wanted = 0;
        status = NSA_OK;
    }
    return status;
}

/* Keep the GPU busy for 0.2 s, so that it leaves its idle clock. */
static void gpu_warm(void) {
    const double start = nsa_now();
    while (gpu(NULL) && nsa_now() - start < 0.2)
        gpu(NULL)->flush();
}

/* Measure the processor's ceilings, and with `all` the GPU's; `to` may be NULL. */
static void measure(sweep *s, int all, samples *to) {
    double rate[BENCH_CEILINGS] = {0};
    ceilings_measure((int)s->o->threads, all ? 5 : 3, rate);
    if (all && s->uses[BENCH_ON_GPU] && gpu(NULL)) {
        gpu_warm();
        gpu(NULL)->ceilings(rate);
    }
    for (int k = 0; k < BENCH_CEILINGS; k++) {
        if (to)
            samples_add(&to[k], rate[k]);
        s->best[k] = fmax(s->best[k], rate[k]);
    }
}

/* Is each probe of the current round within the bound of the best so far? */
static int is_quiet(const sweep *s, const samples *probe) {
    int quiet = 1;
    for (int k = GPU_CEILINGS; k < BENCH_CEILINGS; k++)
        for (int i = probe[k].kept; i < probe[k].count; i++)
            quiet &= s->best[k] <= (1 + BENCH_APART) * probe[k].value[i];
    return quiet;
}

/* One round; programs with fewer runs skip it. A probe is of the ceilings: before the first row,
 * and on a CPU alone after each. There a round with one that is not quiet is thrown away, all its
 * rows and probes: at most as many rounds as are wanted, and while there is time to spare. */
static nsa_status time_round(sweep *s, contender *c, int count, const workload *w, samples *probe) {
    const int spare = s->alone && s->thrown < s->rounds && s->spare > 0;
    const double start = nsa_now();
    nsa_status status = NSA_OK;
    int timed = 0;
    if (s->uses[BENCH_ON_CPU])
        measure(s, 0, probe);
    for (; timed < count && !status && (!spare || is_quiet(s, probe)); timed++) {
        if (!takes_part(s, &c[timed]))
            continue;
        status = time_one(&c[timed], w, s->round);
        if (s->alone)
            measure(s, 0, probe);
    }
    const int quiet = status || !spare || is_quiet(s, probe);
    for (int k = 0; k < BENCH_CEILINGS; k++)
        probe[k].kept = probe[k].count = quiet ? probe[k].count : probe[k].kept;
    for (int i = 0; i < timed && !quiet; i++)
        c[i].runs -= takes_part(s, &c[i]);
    s->thrown += !quiet && timed; /* without a row it was but a wait */
    s->spare -= quiet ? 0 : nsa_now() - start;
    s->round += quiet;
    return status;
}

static nsa_status time_all(sweep *s, contender *c, int count, const workload *w) {
    samples length[BENCH_CEILINGS] = {0};
    nsa_status status = NSA_OK;
    s->round = s->rounds = s->thrown = 0, s->spare = 0;
    for (int i = 0; i < count; i++) {
        s->rounds = c[i].wanted > s->rounds ? c[i].wanted : s->rounds;
        s->spare += 2 * c[i].wanted * (0.15 + c[i].first); /* with a probe each */
    }
    if (s->uses[BENCH_ON_GPU])
        gpu_warm(); /* it was idle while results were checked */
    while (s->round < s->rounds && !status) {
        progress_count(&s->bar, "round", s->round + 1, s->rounds);
        status = time_round(s, c, count, w, length);
    }
    for (int i = 0; i < count && !status; i++) {
        if (!c[i].row->status[0])
            summarize(&c[i], w, s->rounds, length);
    }
    for (int k = GPU_CEILINGS; k < BENCH_CEILINGS && s->alone; k++) {
        const bench_stats of = samples_stats(&length[k]);
        samples_add(&s->ceiling[k], of.low);
        samples_add(&s->ceiling[k], of.median);
        samples_add(&s->ceiling[k], s->best[k]); /* of.high, unless all of it is slow */
    }
    s->run->kept += s->alone ? s->round : 0;
    s->run->rounds += s->alone ? s->round + s->thrown : 0;
    return status;
}

/* Add a contender to those that are timed, or write to its row why not. */
static void add(sweep *s, contender *list, int *count, workload *w, contender c) {
    if (s->run->rows == BENCH_MAX_ROWS)
        return;
    static const char *const ariths[] = {"float64", "float32", "bfloat16"};
    static const char *const devices[] = {"cpu", "gpu", "simulator"};
    c.device = c.peer ? c.peer->device : bench_device_of(c.stage);
    c.peer_id = -1;
    const int one_thread = c.threads == 1 && s->o->threads > 1;
    c.threads = one_thread ? 1 : (int)s->o->threads;
    const char *prefix = c.stage && c.causal ? BENCH_OWN_DENSE : one_thread ? BENCH_ONE_THREAD : "";
    c.row = &s->run->row[s->run->rows++];
    *c.row = (bench_row){.T = w->T};
    snprintf(c.row->name, sizeof c.row->name, "%s%.49s", prefix, c.name);
    snprintf(c.row->pass, sizeof c.row->pass, "%s", bench_pass_name(w->pass));
    snprintf(c.row->device, sizeof c.row->device, "%s", devices[c.device]);
    snprintf(c.row->arith, sizeof c.row->arith, "%s", ariths[contender_arith(&c)]);
    list[*count] = c; /* before it is opened: its tensors may point into it */
    *count += admit(s, &list[*count], w);
}

static nsa_status one_length(sweep *s, bench_pass pass, int64_t T, nsa_arith arith) {
    contender list[CONTENDERS];
    workload w;
    int count = 0;
    nsa_status status = workload_open(s->o, pass, T, arith, &w);
    for (size_t i = 0; i < s->stages && !status; i++) {
        const nsa_stage *stage = s->found[i].stage;
        const char *name = s->found[i].name;
        if (!is_wanted(s, &s->found[i]) ||
            (stage->arith == NSA_BFLOAT16) != (arith == NSA_BFLOAT16))
            continue;
        add(s, list, &count, &w, (contender){.stage = stage, .name = name});
        /* plain causal attention by its own code shows what sparsity alone is worth */
        if (stage->arith != NSA_FLOAT64 &&
            (pass == BENCH_BACKWARD || (pass == BENCH_FORWARD && stage->causal)))
            add(s, list, &count, &w, (contender){.stage = stage, .name = name, .causal = 1});
        if (s->o->one_thread && s->o->threads > 1 && bench_device_of(stage) == BENCH_ON_CPU)
            add(s, list, &count, &w, (contender){.stage = stage, .name = name, .threads = 1});
    }
    if (!status && arith == NSA_FLOAT32 && s->uses[BENCH_ON_CPU] && pass != BENCH_BACKWARD)
        add(s, list, &count, &w, (contender){.name = BENCH_DENSE, .causal = 1});
    for (int i = 0; i < s->peers.count && !status && arith == NSA_FLOAT32; i++) {
        const peer *p = &s->peers.list[i];
        if (s->uses[p->device] && p->pass[pass])
            add(s, list, &count, &w,
                (contender){
                    .program = &s->peers, .peer = p, .name = p->name, .causal = !p->sparse});
    }
    status = status ? status : time_all(s, list, count, &w);
    for (int i = 0; i < count; i++)
        contender_close(&list[i]);
    workload_close(&w);
    measure(s, 1, s->alone ? NULL : s->ceiling);
    return status;
}

static nsa_status one_pass(sweep *s, bench_pass pass) {
    nsa_status status = s->o->judge ? verify_judge(s->o, pass, s->judge.stage) : NSA_OK;
    for (int i = 0; i < s->o->sizes && !status; i++) {
        status = one_length(s, pass, s->o->T[i], NSA_FLOAT32);
        if (!status && s->bfloat16)
            status = one_length(s, pass, s->o->T[i], NSA_BFLOAT16);
        for (int k = 0; k < BENCH_CEILINGS; k++)
            s->run->ceiling[k] = samples_stats(&s->ceiling[k]);
        snprintf(s->run->blas, sizeof s->run->blas, "%s", blas_name()); /* it may be missing now */
        bench_compute(s->run);
        if (!status && s->o->json) /* now, so that an interrupted run keeps its results */
            status = runfile_write(s->run, s->o->json);
        progress_end(&s->bar);
        fprintf(stderr, "nsa bench: %s, T = %" PRId64 " done after %.0f s\n", bench_pass_name(pass),
                s->o->T[i], nsa_now() - s->began);
    }
    return status;
}

nsa_status bench_sweep(const bench_options *o, bench_run *run) {
    sweep s = {.o = o, .run = run, .began = nsa_now()};
    if (!bench_arena_open())
        return nsa_fail(NSA_ERR_MEMORY, "no memory for flushing the caches");
    s.bar = progress_begin("nsa bench");
    nsa_status status = find_stages(&s);
    if (!status) {
        machine_describe(run, o, s.found, s.stages);
        if (s.uses[BENCH_ON_GPU] && gpu(NULL))
            gpu(NULL)->describe(run->gpu, sizeof run->gpu);
        if (o->peers && peers_start(&s.peers, o->peers, o))
            fprintf(stderr, "nsa bench: SKIP peers: %s\n", s.peers.about);
        snprintf(run->peers, sizeof run->peers, "%s", s.peers.about);
        for (int i = 0; i < (s.alone ? 8 : 1); i++) /* alone, to know the best */
            measure(&s, 1, s.alone ? NULL : s.ceiling);
    }
    for (int pass = 0; pass < BENCH_PASSES && !status; pass++) {
        if (o->pass[pass])
            status = one_pass(&s, (bench_pass)pass);
    }
    progress_end(&s.bar);
    peers_stop(&s.peers);
    nsa_free_stages(s.found, s.stages);
    nsa_free_stage(&s.judge);
    return status;
}
