/** @file options.c
 *  @brief The command line of `nsa bench`. */
#include "bench/bench.h"
#include "commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEY_HEADS = 256,
    KEY_DIMS,
    KEY_PHI,
    KEY_BATCH,
    KEY_ROWS,
    KEY_SEED,
    KEY_BUDGET,
    KEY_RUNS,
    KEY_DIR,
    KEY_JSON,
    KEY_CSV,
    KEY_QUICK,
    KEY_TABLE,
    KEY_PLOT,
    KEY_WHAT,
    KEY_COMPARE,
    KEY_DEVICE,
    KEY_JUDGE,
    KEY_PEERS,
    KEY_ONE_THREAD
};

const char *bench_pass_name(bench_pass pass) {
    static const char *const names[] = {"forward", "backward", "decode"};
    return names[pass];
}

/* Parse an integer in [low,high]; "4k" is 4096, "1m" 1048576. @return -1 for anything else */
static int64_t whole(const char *text, size_t length, int64_t low, int64_t high) {
    int64_t value = 0;
    size_t i = 0;
    for (; i < length && text[i] >= '0' && text[i] <= '9' && i < 10; i++)
        value = 10 * value + (text[i] - '0');
    int digits = i > 0;
    if (i + 1 == length && (text[i] == 'k' || text[i] == 'm'))
        value <<= text[i++] == 'k' ? 10 : 20;
    return digits && i == length && value >= low && value <= high ? value : -1;
}

static error_t number(const struct argp_state *state, const char *option, const char *arg,
                      int64_t low, int64_t high, int64_t *value) {
    *value = whole(arg, strlen(arg), low, high);
    if (*value >= 0)
        return 0;
    command_error(EXIT_USAGE, state->name, "--%s \"%s\" is not a whole number in %lld..%lld",
                  option, arg, (long long)low, (long long)high);
    return EINVAL;
}

/* "16/1" */
static error_t pair(const struct argp_state *state, const char *option, const char *arg,
                    int64_t *first, int64_t *second) {
    const char *slash = strchr(arg, '/');
    *first = slash ? whole(arg, (size_t)(slash - arg), 1, 4096) : -1;
    *second = slash ? whole(slash + 1, strlen(slash + 1), 1, 4096) : -1;
    if (*first >= 0 && *second >= 0)
        return 0;
    command_error(EXIT_USAGE, state->name, "--%s \"%s\" is not two numbers from 1, as in 16/1",
                  option, arg);
    return EINVAL;
}

static error_t sizes(const struct argp_state *state, const char *arg, bench_options *o) {
    o->sizes = 0;
    for (const char *item = arg;; item++) {
        size_t length = strcspn(item, ",");
        int64_t T = whole(item, length, 1, (int64_t)1 << 30);
        if (T < 0 || o->sizes == BENCH_MAX_SIZES || (o->sizes && T <= o->T[o->sizes - 1])) {
            command_error(EXIT_USAGE, state->name,
                          "--seq \"%s\": expected up to %d lengths, ascending, as in 256,1k,16k",
                          arg, BENCH_MAX_SIZES);
            return EINVAL;
        }
        o->T[o->sizes++] = T;
        item += length;
        if (!*item)
            return 0;
    }
}

static error_t passes(const struct argp_state *state, const char *arg, bench_options *o) {
    memset(o->pass, 0, sizeof o->pass);
    for (const char *item = arg;; item++) {
        size_t length = strcspn(item, ",");
        int found = 0;
        for (int p = 0; p < BENCH_PASSES; p++) {
            const char *name = bench_pass_name((bench_pass)p);
            if ((length == 3 && !strncmp(item, "all", 3)) ||
                (length == strlen(name) && !strncmp(item, name, length)))
                o->pass[p] = found = 1;
        }
        if (!found) {
            command_error(EXIT_USAGE, state->name,
                          "--pass \"%s\": expected forward, backward, decode or all", arg);
            return EINVAL;
        }
        item += length;
        if (!*item)
            return 0;
    }
}

static error_t stage(const struct argp_state *state, const char *arg, bench_options *o) {
    if (o->stages == BENCH_MAX_STAGES) {
        command_error(EXIT_USAGE, state->name, "--stage \"%s\": more than %d stages", arg,
                      BENCH_MAX_STAGES);
        return EINVAL;
    }
    o->stage[o->stages++] = arg;
    return 0;
}

static error_t budget(const struct argp_state *state, const char *arg, bench_options *o) {
    int64_t seconds;
    error_t bad = number(state, "budget", arg, 1, 1000000, &seconds);
    o->budget = (double)seconds;
    return bad;
}

/* "gpu", "cpu" or "all": which devices to use, if present. */
static error_t device(const struct argp_state *state, const char *arg, bench_options *o) {
    const int all = !strcmp(arg, "all");
    o->device[BENCH_ON_CPU] = all || !strcmp(arg, "cpu");
    o->device[BENCH_ON_GPU] = all || !strcmp(arg, "gpu");
    if (o->device[BENCH_ON_CPU] || o->device[BENCH_ON_GPU])
        return 0;
    command_error(EXIT_USAGE, state->name, "--device \"%s\": expected cpu, gpu or all", arg);
    return EINVAL;
}

/* Finishes within a minute on two cores: small heads, short sequences, a deadline. */
static void quick(bench_options *o) {
    o->cfg.qk_dim = o->cfg.v_dim = 64;
    o->sizes = 3;
    for (int i = 0; i < 3; i++)
        o->T[i] = 256 << i;
    o->budget = 12;
    o->deadline = 42;
}

static error_t parse_config(int key, const char *arg, const struct argp_state *state,
                            bench_options *o) {
    switch (key) {
    case KEY_HEADS:
        return pair(state, "heads", arg, &o->cfg.q_heads, &o->cfg.kv_heads);
    case KEY_DIMS:
        return pair(state, "dims", arg, &o->cfg.qk_dim, &o->cfg.v_dim);
    case KEY_PHI:
        if (!nsa_config_set(&o->cfg, "phi", 0, arg))
            return 0;
        command_error(EXIT_USAGE, state->name, "%s", nsa_last_error());
        return EINVAL;
    case KEY_BATCH:
        return number(state, "batch", arg, 1, BENCH_MAX_BATCH, &o->batch);
    case 't':
        return number(state, "threads", arg, 1, 256, &o->threads);
    case KEY_ROWS:
        return number(state, "rows", arg, 1, 4096, &o->rows);
    case KEY_SEED:
        return number(state, "seed", arg, 0, 1000000000, &o->seed);
    case KEY_BUDGET:
        return budget(state, arg, o);
    case KEY_RUNS:
        return number(state, "runs", arg, 3, BENCH_MAX_RUNS, &o->runs);
    case KEY_DEVICE:
        return device(state, arg, o);
    case KEY_JUDGE:
        o->judge = arg;
        return 0;
    case KEY_PEERS:
        o->peers = arg;
        return 0;
    case KEY_ONE_THREAD:
        o->one_thread = 1;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse(int key, char *arg, struct argp_state *state) {
    bench_options *o = state->input;
    error_t status = parse_config(key, arg, state, o);
    if (status != ARGP_ERR_UNKNOWN)
        return status;
    switch (key) {
    case 's':
        return stage(state, arg, o);
    case 'p':
        return passes(state, arg, o);
    case 'T':
        return sizes(state, arg, o);
    case KEY_QUICK:
        quick(o);
        return 0;
    case KEY_DIR:
        o->stage_dir = arg;
        return 0;
    case KEY_JSON:
        o->json = arg;
        return 0;
    case KEY_CSV:
        o->csv = arg;
        return 0;
    case KEY_TABLE:
        o->table = arg;
        return 0;
    case KEY_PLOT:
        o->plot = arg;
        return 0;
    case KEY_WHAT:
        o->what = arg;
        return 0;
    case KEY_COMPARE:
        o->compare = arg;
        return 0;
    default:
        return command_key(key, arg, state);
    }
}

static const struct argp_option known[] = {
    {NULL, 0, NULL, 0, "What to time:", 1},
    {"stage", 's', "NAME", 0, "a stage by name, number or path, may be repeated; default: all", 1},
    {"pass", 'p', "LIST", 0,
     "forward, backward, decode, joined by commas, or all; default: forward", 1},
    {"seq", 'T', "LIST", 0, "tokens of a sequence; default: 256,512,1k,2k,4k,8k,16k", 1},
    {"heads", KEY_HEADS, "HQ/HKV", 0, "query and key-value heads; default: 16/1", 1},
    {"dims", KEY_DIMS, "DK/DV", 0, "head dims; default: 64/64", 1},
    {"phi", KEY_PHI, "NAME", 0, "the compressor: mean, gated or mlp; default: mlp", 1},
    {"batch", KEY_BATCH, "B", 0,
     "sequences of a pack, up to 16; slots of a decode, up to 64; default: 1", 1},
    {"threads", 't', "N", 0, "for stages, dense attention and ceilings alike; default: 1", 1},
    {"one-thread", KEY_ONE_THREAD, NULL, 0,
     "with --threads N: time each CPU stage with one thread as well", 1},
    {"alone", 0, NULL, OPTION_ALIAS | OPTION_HIDDEN, NULL, 0},
    {"device", KEY_DEVICE, "NAME", 0, "cpu, gpu or all: time what runs there; default: all", 1},
    {"peers", KEY_PEERS, "COMMAND", 0,
     "a program that times other libraries' attention in turn with ours: \"python3 apps/peers.py\"",
     1},
    {"judge", KEY_JUDGE, "NAME", 0,
     "the stage used as oracle, itself checked first; default: 00, or 02 where that would take too "
     "long",
     1},
    {"rows", KEY_ROWS, "R", 0, "rows to check before timing; default: 9", 1},
    {"seed", KEY_SEED, "N", 0, "seed of the inputs; default: 1", 1},
    {"budget", KEY_BUDGET, "S", 0, "skip rows that would take longer than S seconds; default: 120",
     1},
    {"runs", KEY_RUNS, "N", 0,
     "timed runs of each row, as its budget allows, 3 to 60 (decode: to 20); default: 3 to 20, "
     "depending on the time of a run",
     1},
    {"quick", KEY_QUICK, NULL, 0, "finish within a minute: three short lengths", 1},
    {"stages", KEY_DIR, "DIR", 0, "folder of the stages' shared objects", 1},
    {NULL, 0, NULL, 0, "What to write:", 2},
    {"json", KEY_JSON, "FILE", 0, "the run: machine, commit, rows, fits", 2},
    {"csv", KEY_CSV, "FILE", 0, "the rows alone", 2},
    {NULL, 0, NULL, 0, "From run files, without timing:", 3},
    {"table", KEY_TABLE, "RUN", 0, "print a table of a run file; --what chooses it", 3},
    {"plot-data", KEY_PLOT, "RUN", 0, "print points for gnuplot; --what chooses them", 3},
    {"what", KEY_WHAT, "NAME", 0,
     "machine, forward, backward, decode, phases, kernels, peers, own (vs own dense attention), "
     "growth or noise, and /STAGE for one stage; for points: time, speedup, share or phases",
     3},
    {"compare", KEY_COMPARE, "A,B", 0,
     "whether two run files agree in the ratios to dense attention and to the stage below", 3},
    {0}};

int bench_parse(int argc, char **argv, bench_options *o) {
    static const struct argp argp = {.options = known,
                                     .parser = parse,
                                     .doc = "Check stages, then time them, all in the same way.\v"
                                            "A stage that is wrong on a sampled row is not timed. "
                                            "Exit status: 0 done, 1 a stage is "
                                            "wrong or a comparison fails, 2 bad usage."};
    *o = (bench_options){.cfg = nsa_config_defaults(),
                         .T = {256, 512, 1024, 2048, 4096, 8192, 16384},
                         .sizes = 7,
                         .pass = {1, 0, 0},
                         .device = {1, 1, 0},
                         .batch = 1,
                         .threads = 1,
                         .rows = 9,
                         .seed = 1,
                         .budget = 120,
                         .deadline = 1e9};
    o->cfg.q_heads = 16;
    o->cfg.kv_heads = 1;
    o->cfg.qk_dim = o->cfg.v_dim = 64;
    int code = command_parse(&argp, 0, argc, argv, NULL, o);
    if (code)
        return code;
    if (o->one_thread && o->threads == 1)
        return command_error(EXIT_USAGE, argv[0], "--one-thread needs --threads 2 or more");
    const int packs = o->pass[BENCH_FORWARD] || o->pass[BENCH_BACKWARD];
    if (packs && o->batch > BENCH_MAX_PACK)
        return command_error(EXIT_USAGE, argv[0],
                             "--batch %d: forward and backward pack up to %d sequences, only "
                             "decode has up to %d",
                             (int)o->batch, BENCH_MAX_PACK, BENCH_MAX_BATCH);
    nsa_config cfg = o->cfg; /* check the contract's rules before drawing inputs */
    cfg.seq_len = o->T[o->sizes - 1] * (packs ? o->batch : 1);
    nsa_status status = nsa_config_resolve(&cfg);
    return status ? command_status(status, argv[0]) : EXIT_DONE;
}
