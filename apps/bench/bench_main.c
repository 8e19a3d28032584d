/** @file bench_main.c
 *  @brief The program `nsa-bench`, which `nsa bench` starts: command line, and what it prints. */
#include "bench/bench.h"
#include "commands.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

const char *bench_pass_name(bench_pass pass) {
    static const char *const names[] = {"forward", "backward", "decode"};
    return names[pass];
}

enum { HEADS = 256, DIMS, PHI, QUICK, DEVICE, ALONE, BATCH, ROWS, SEED, BUDGET, RUNS };
#define AT(member)   offsetof(bench_options, member)
#define TEXT(member) (1 << 16 | (int)AT(member)) /* the key of a text that is kept as it is */

/* Options that are whole numbers. */
static const struct range {
    int key;
    int64_t low, high;
    size_t offset;
} ranges[] = {{BATCH, 1, BENCH_MAX_BATCH, AT(batch)},
              {'t', 1, 256, AT(threads)},
              {ROWS, 1, 4096, AT(rows)},
              {SEED, 0, 1000000000, AT(seed)},
              {BUDGET, 1, 1000000, AT(budget)},
              {RUNS, 3, BENCH_MAX_RUNS, AT(runs)}};

static const struct argp_option known[] = {
    {NULL, 0, NULL, 0, "What to time:", 1},
    {"stage", 's', "NAME", 0, "a stage by name, number or path, may be repeated; default: all", 1},
    {"pass", 'p', "LIST", 0, "forward, backward, decode with commas, or all; default: forward", 1},
    {"seq", 'T', "LIST", 0, "tokens of a sequence; default: 256,512,1k,2k,4k,8k,16k", 1},
    {"heads", HEADS, "HQ/HKV", 0, "query and key-value heads; default: 16/1", 1},
    {"dims", DIMS, "DK/DV", 0, "head dims; default: 64/64", 1},
    {"phi", PHI, "NAME", 0, "the compressor: mean, gated or mlp; default: mlp", 1},
    {"batch", BATCH, "B", 0, "sequences of a pack (to 16), slots of a decode (64); default: 1", 1},
    {"threads", 't', "N", 0, "for stages, dense attention and ceilings alike; default: 1", 1},
    {"one-thread", ALONE, NULL, 0, "with --threads N: each CPU stage with one thread as well", 1},
    {"device", DEVICE, "NAME", 0, "cpu, gpu or all: time what runs there; default: all", 1},
    {"peers", TEXT(peers), "COMMAND", 0, "time other libraries: \"python3 apps/peers.py\"", 1},
    {"judge", TEXT(judge), "NAME", 0, "the CPU stage used as oracle, checked first; default: 00",
     1},
    {"rows", ROWS, "R", 0, "rows (decode: slots) to check before timing; default: 9", 1},
    {"seed", SEED, "N", 0, "seed of the inputs; default: 1", 1},
    {"budget", BUDGET, "S", 0, "skip rows that would take longer than S seconds; default: 120", 1},
    {"runs", RUNS, "N", 0, "timed runs of a row within its budget, 3 to 60; default: 3 to 20", 1},
    {"quick", QUICK, NULL, 0, "finish within a minute: three short lengths", 1},
    {"stages", TEXT(stage_dir), "DIR", 0, "folder of the stages' shared objects", 1},
    {"json", TEXT(json), "FILE", 0, "write the run: machine, commit, rows", 1},
    {NULL, 0, NULL, 0, "From run files, without timing:", 2},
    {"table", TEXT(table), "RUN", 0, "print a table of a run file; --what chooses it", 2},
    {"plot-data", TEXT(plot), "RUN", 0, "print points for gnuplot; --what chooses them", 2},
    {"what", TEXT(what), "NAME", 0,
     "machine, forward, backward, decode, kernels (phases), io (with load and read), peers or own "
     "(vs own dense attention), and /STAGE for one stage; for points: time or speedup",
     2},
    {0}};

/* Parse an integer in [low,high]; "4k" is 4096, "1m" 1048576. @return -1 for anything else */
static int64_t whole(const char *text, size_t length, int64_t low, int64_t high) {
    int64_t value = 0;
    size_t i = 0;
    for (; i < length && text[i] >= '0' && text[i] <= '9' && i < 10; i++)
        value = 10 * value + (text[i] - '0');
    const int digits = i > 0;
    if (i + 1 == length && (text[i] == 'k' || text[i] == 'm'))
        value <<= text[i++] == 'k' ? 10 : 20;
    return digits && i == length && value >= low && value <= high ? value : -1;
}

/* The parsers below return 0 for a good text, else EINVAL and have printed why. */
#define WRONG(...) (command_error(EXIT_USAGE, "nsa bench", __VA_ARGS__), EINVAL)

static error_t number(const struct range *t, const char *arg, bench_options *o) {
    const struct argp_option *option = known;
    const int64_t value = whole(arg, strlen(arg), t->low, t->high);
    while (option->key != t->key)
        option++;
    if (value < 0)
        return WRONG("--%s \"%s\" is not a whole number in %lld..%lld", option->name, arg,
                     (long long)t->low, (long long)t->high);
    memcpy((char *)o + t->offset, &value, sizeof value);
    return 0;
}

/* "16/1" */
static error_t pair(const char *option, const char *arg, int64_t *first, int64_t *second) {
    const size_t length = strcspn(arg, "/");
    *first = whole(arg, length, 1, 4096);
    *second = arg[length] ? whole(arg + length + 1, strlen(arg + length + 1), 1, 4096) : -1;
    if (*first < 0 || *second < 0)
        return WRONG("--%s \"%s\" is not two numbers from 1, as in 16/1", option, arg);
    return 0;
}

static error_t sizes(const char *arg, bench_options *o) {
    o->sizes = 0;
    for (const char *item = arg, *end; item; item = *end ? end + 1 : NULL) {
        end = item + strcspn(item, ",");
        int64_t T = whole(item, (size_t)(end - item), 1, (int64_t)1 << 30);
        if (T < 0 || o->sizes == BENCH_MAX_SIZES || (o->sizes && T <= o->T[o->sizes - 1]))
            return WRONG("--seq \"%s\": expected up to %d lengths, ascending, as in 256,1k,16k",
                         arg, BENCH_MAX_SIZES);
        o->T[o->sizes++] = T;
    }
    return 0;
}

static error_t passes(char *arg, bench_options *o) {
    memset(o->pass, 0, sizeof o->pass);
    for (char *item; (item = strsep(&arg, ","));) {
        int found = 0;
        for (int p = 0; p < BENCH_PASSES; p++) {
            if (!strcmp(item, "all") || !strcmp(item, bench_pass_name((bench_pass)p)))
                o->pass[p] = found = 1;
        }
        if (!found)
            return WRONG("--pass \"%s\": expected forward, backward, decode or all", item);
    }
    return 0;
}

/* "gpu", "cpu" or "all": which devices to use, if present. */
static error_t device(const char *arg, bench_options *o) {
    const int all = !strcmp(arg, "all");
    o->device[BENCH_ON_CPU] = all || !strcmp(arg, "cpu");
    o->device[BENCH_ON_GPU] = all || !strcmp(arg, "gpu");
    if (!o->device[BENCH_ON_CPU] && !o->device[BENCH_ON_GPU])
        return WRONG("--device \"%s\": expected cpu, gpu or all", arg);
    return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state) {
    bench_options *o = state->input;
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        if (ranges[i].key == key)
            return number(&ranges[i], arg, o);
    }
    if (key >> 16 == 1) {
        memcpy((char *)o + (key & 0xffff), &arg, sizeof arg);
        return 0;
    }
    switch (key) {
    case 's':
        if (o->stages == BENCH_MAX_STAGES)
            return WRONG("--stage \"%s\": more than %d stages", arg, BENCH_MAX_STAGES);
        o->stage[o->stages++] = arg;
        return 0;
    case 'p':
        return passes(arg, o);
    case 'T':
        return sizes(arg, o);
    case HEADS:
        return pair("heads", arg, &o->cfg.q_heads, &o->cfg.kv_heads);
    case DIMS:
        return pair("dims", arg, &o->cfg.qk_dim, &o->cfg.v_dim);
    case PHI:
        return nsa_config_set(&o->cfg, "phi", 0, arg) ? WRONG("%s", nsa_last_error()) : 0;
    case DEVICE:
        return device(arg, o);
    case ALONE:
        o->one_thread = 1;
        return 0;
    case QUICK:
        o->sizes = 3; /* 256, 512, 1024; finishes within a minute on two cores */
        o->runs = 3, o->budget = 6;
        return 0;
    default:
        return command_key(key, arg, state);
    }
}

static const struct argp argp = {
    .options = known,
    .parser = parse,
    .doc = "Check stages, then time them, all in the same way.\v"
           "A stage that is wrong on a sampled row is not timed. Exit status: 0 done, 1 a stage is "
           "wrong, 2 bad usage."};

/* Fill in the options from the command line. @return an exit_code */
static int parse_options(int argc, char **argv, bench_options *o) {
    *o = (bench_options){.sizes = 7, .T = {256, 512, 1024, 2048, 4096, 8192, 16384}};
    o->cfg = nsa_config_defaults();
    o->cfg.q_heads = 16, o->cfg.kv_heads = 1, o->cfg.qk_dim = o->cfg.v_dim = 64;
    o->pass[BENCH_FORWARD] = o->device[BENCH_ON_CPU] = o->device[BENCH_ON_GPU] = 1;
    o->batch = o->threads = o->seed = 1, o->rows = 9, o->budget = 120;
    int code = command_parse(&argp, 0, argc, argv, NULL, o);
    if (code)
        return code;
    /* the simulator's times say nothing about a GPU, so a stage runs there only if it is named */
    o->device[BENCH_ON_SIMULATOR] = o->stages > 0;
    const int packs = o->pass[BENCH_FORWARD] || o->pass[BENCH_BACKWARD];
    if (o->one_thread && o->threads == 1)
        return command_error(EXIT_USAGE, argv[0], "--one-thread needs --threads 2 or more");
    if (packs && o->batch > BENCH_MAX_PACK)
        return command_error(EXIT_USAGE, argv[0],
                             "--batch %d: forward and backward pack up to %d sequences",
                             (int)o->batch, BENCH_MAX_PACK);
    nsa_config cfg = o->cfg; /* check the contract's rules before drawing inputs */
    cfg.seq_len = o->T[o->sizes - 1] * (packs ? o->batch : 1);
    nsa_status status = nsa_config_resolve(&cfg);
    return status ? command_status(status, argv[0]) : EXIT_DONE;
}

static void print_all(const bench_options *o, const bench_run *run) {
    static const char *const tables[] = {"forward", "backward", "decode", "kernels",
                                         "own",     "peers",    "io"};
    int shown[] = {o->pass[0], o->pass[1], o->pass[2], 1, 1, run->peers[0] != 0, 0};
    for (int i = 0; i < run->rows; i++)
        shown[6] |= run->row[i].with_io.median > 0;
    report_table(run, "machine", o->json);
    for (int i = 0; i < 7; i++) {
        if (shown[i]) {
            printf("\n## %s\n\n", tables[i]);
            report_table(run, tables[i], NULL);
        }
    }
    if (run->noise[0])
        printf("\nThis machine is too noisy for a claim: %s.\n", run->noise);
    else
        printf("\nThe machine was quiet: ceilings within 15 %%, quartiles within 20 %%.\n");
}

static int run_bench(int argc, char **argv) {
    bench_options o;
    int code = parse_options(argc, argv, &o), failed = 0;
    if (code)
        return code;
    bench_run *run = calloc(1, sizeof *run);
    if (!run)
        return command_error(EXIT_FAILED, argv[0], "no memory for a run");
    const char *file = o.table ? o.table : o.plot;
    nsa_status status = file ? runfile_read(file, run) : bench_sweep(&o, run);
    if (!status && o.table)
        status = report_table(run, o.what ? o.what : "forward", file);
    else if (!status && o.plot)
        status = report_points(run, o.what ? o.what : "time");
    else if (!status)
        print_all(&o, run);
    for (int i = 0; i < run->rows && !file; i++)
        failed |= !strncmp(run->row[i].status, "REFUSED", 7);
    free(run);
    return status ? command_status(status, argv[0]) : failed ? EXIT_FAILED : EXIT_DONE;
}

int main(int argc, char **argv) {
    char name[] = "nsa bench";
    return command_main(argc, argv, name, run_bench);
}
