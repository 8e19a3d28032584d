/** @file train_main.c
 *  @brief The program `nsa-train`, which `nsa train` starts: command line, and what it prints at
 * the end. */
#include "commands.h"
#include "nsa_find.h"
#include "train/train.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ALL = 256, PHI, STAGES, STEPS, STOP, EVERY, SEED, LR, CHECKPOINT, RESUME };

/* The command line; `o` is what a training gets. */
typedef struct options {
    train_options o;
    const char *stage, *stages;
    int all;
} options;

static const struct argp_option known[] = {
    {"attention", 'a', "KIND", 0, "nsa, full, window, cmp+win or random; default: nsa", 1},
    {"all", ALL, NULL, 0, "train every kind of attention, one after the other", 1},
    {"phi", PHI, "NAME", 0, "the compressor: mean, gated or mlp; default: mean", 1},
    {"steps", STEPS, "N", 0, "steps of the schedule; default: 1000", 1},
    {"lr", LR, "X", 0, "highest learning rate; default: 0.01, with gated and mlp 0.005", 1},
    {"seed", SEED, "N", 0, "of weights and batches; default: 1", 1},
    {"threads", 't', "N", 0, "for the stage and the layers; default: every core, up to 8", 1},
    {"stage", 's', "NAME", 0, "the stage that is the attention; default: 02", 1},
    {"stages", STAGES, "DIR", 0, "folder of the stages' shared objects", 1},
    {"checkpoint", CHECKPOINT, "FILE", 0, "write checkpoints there", 2},
    {"every", EVERY, "N", 0, "steps between checkpoints; default: 50", 2},
    {"resume", RESUME, "FILE", 0, "go on from a checkpoint of the same training", 2},
    {"stop", STOP, "N", 0, "stop after step N of the schedule", 2},
    {0}};

/* The parsers below return 0 for a good text, else EINVAL and have printed why. */
#define WRONG(...) (command_error(EXIT_USAGE, "nsa train", __VA_ARGS__), EINVAL)

static error_t whole(const char *name, const char *arg, int64_t low, int64_t high, int64_t *to) {
    char *end;
    errno = 0;
    const long long value = strtoll(arg, &end, 10);
    /* strtoll() would accept white space and a sign */
    if (errno || arg[0] < '0' || arg[0] > '9' || *end || value < low || value > high)
        return WRONG("--%s \"%s\" is not a whole number in %lld..%lld", name, arg, (long long)low,
                     (long long)high);
    *to = value;
    return 0;
}

static error_t kind(const char *arg, attention_kind *to) {
    for (int i = 0; i < ATTENTION_KINDS; i++) {
        if (!strcmp(arg, attention_name((attention_kind)i))) {
            *to = (attention_kind)i;
            return 0;
        }
    }
    return WRONG("--attention \"%s\": expected nsa, full, window, cmp+win or random", arg);
}

static error_t rate(const char *arg, double *to) {
    char *end;
    *to = strtod(arg, &end);
    if (end == arg || *end || !(*to > 0 && *to <= 1e30))
        return WRONG("--lr \"%s\" is not a number above 0, up to 1e30", arg);
    return 0;
}

static error_t phi(const char *arg, nsa_phi *to) {
    nsa_config cfg;
    if (nsa_config_set(&cfg, "phi", 0, arg))
        return WRONG("%s", nsa_last_error());
    *to = cfg.phi;
    return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state) {
    options *all = state->input;
    train_options *o = &all->o;
    switch (key) {
    case 'a':
        return kind(arg, &o->kind);
    case 's':
        all->stage = arg;
        return 0;
    case 't':
        return whole("threads", arg, 1, 256, &o->threads);
    case ALL:
        all->all = 1;
        return 0;
    case PHI:
        return phi(arg, &o->phi);
    case STAGES:
        all->stages = arg;
        return 0;
    case STEPS:
        return whole("steps", arg, 51, 1000000, &o->steps);
    case STOP:
        return whole("stop", arg, 1, 1000000, &o->stop);
    case EVERY:
        return whole("every", arg, 1, 1000000, &o->every);
    case SEED:
        return whole("seed", arg, 0, 1000000000, &o->seed);
    case LR:
        return rate(arg, &o->lr);
    case CHECKPOINT:
        o->checkpoint = arg;
        return 0;
    case RESUME:
        o->resume = arg;
        return 0;
    default:
        return command_key(key, arg, state);
    }
}

static const struct argp argp = {
    .options = known,
    .parser = parse,
    .doc = "Train a small model, with a stage as its attention, to recall pairs from a sequence.\v"
           "The same seed and number of threads give the same bits on the same machine, also if a "
           "training was interrupted. Exit status: 0 done, 1 the training failed, 2 bad usage or "
           "a bad file."};

static void print_end(const train_options *o, const train_result *r) {
    printf("\nrecall %.3f", r->score.accuracy);
    if (r->state.first_95)
        printf(", .95 first at step %d", (int)r->state.first_95);
    if (o->kind == ATTENTION_NSA)
        printf("; the true block selected %.3f; the same model with random blocks %.3f",
               r->score.selected, r->with_random);
    printf("; step %d, %.0f s\n", (int)r->state.step, r->seconds);
}

static void print_table(const train_result r[ATTENTION_KINDS]) {
    printf("\n%-10s %10s %9s %9s %9s %9s %7s\n", "attention", "parameters", "recall", ".95 at",
           "selected", "random", "s");
    for (int i = 0; i < ATTENTION_KINDS; i++) {
        printf("%-10s %10d %9.3f", attention_name((attention_kind)i), (int)r[i].parameters,
               r[i].score.accuracy);
        if (r[i].state.first_95)
            printf(" %9d", (int)r[i].state.first_95);
        else
            printf(" %9s", "never");
        if (i == ATTENTION_NSA)
            printf(" %9.3f %9.3f", r[i].score.selected, r[i].with_random);
        else
            printf(" %9s %9s", "", "");
        printf(" %7.0f\n", r[i].seconds);
    }
}

static int train(options *all) {
    train_options *o = &all->o;
    train_result result[ATTENTION_KINDS] = {0};
    const int first = all->all ? 0 : (int)o->kind;
    const int last = all->all ? ATTENTION_KINDS - 1 : (int)o->kind;
    for (int i = first; i <= last; i++) {
        o->kind = (attention_kind)i;
        if (i > first)
            printf("\n");
        nsa_status status = train_recall(o, &result[i]);
        if (status)
            return command_status(status, o->who);
        print_end(o, &result[i]);
    }
    if (all->all)
        print_table(result);
    return EXIT_DONE;
}

static int run_train(int argc, char **argv) {
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    options all = {.stage = "02"};
    nsa_found found;
    all.o = (train_options){.who = argv[0], .phi = NSA_PHI_MEAN, .seed = 1, .steps = 1000};
    all.o.every = 50, all.o.threads = cores < 1 ? 1 : cores > 8 ? 8 : cores;
    const int code = command_parse(&argp, 0, argc, argv, NULL, &all);
    if (code)
        return code;
    if (all.all && (all.o.checkpoint || all.o.resume))
        return command_error(EXIT_USAGE, argv[0],
                             "--all trains several models: no --checkpoint, no --resume");
    /* the layers take turns with the stage's threads, which must not spin meanwhile */
    (void)setenv("OMP_WAIT_POLICY", "passive", 0);
    nsa_status status = nsa_find_stage(all.stages, all.stage, &found);
    if (status)
        return command_status(status, argv[0]);
    all.o.stage = found.stage;
    all.o.stage_name = found.name;
    const int failed = train(&all);
    nsa_free_stage(&found);
    return failed;
}

int main(int argc, char **argv) {
    char name[] = "nsa train";
    return command_main(argc, argv, name, run_train);
}
