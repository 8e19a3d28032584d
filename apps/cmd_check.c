/** @file cmd_check.c
 *  @brief `nsa check`: the harness in one process, for one case or all. */
#include "commands.h"
#include "harness/score.h"
#include "nsa_find.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/** The command line. */
typedef struct check_options {
    const char *stage, *property, *text, *stages;
    int quick, list, verbose, stop, score;
} check_options;

/** Counts of trials. */
typedef struct tally {
    size_t passed, failed, skipped;
} tally;

static error_t parse(int key, char *arg, struct argp_state *state) {
    check_options *options = state->input;
    switch (key) {
    case 's':
        options->stage = arg;
        return 0;
    case 'p':
        options->property = arg;
        return 0;
    case 'c':
        options->text = arg;
        return 0;
    case 'S':
        options->stages = arg;
        return 0;
    case 'q':
        options->quick = 1;
        return 0;
    case 'l':
        options->list = 1;
        return 0;
    case 'v':
        options->verbose = 1;
        return 0;
    case 'o':
        options->score = 1;
        return 0;
    case 'x':
        options->stop = 1;
        return 0;
    default:
        return command_key(key, arg, state);
    }
}

static const struct argp_option rows[] = {
    {"stage", 's', "NAME", 0, "judge this stage (\"01_naive_nsa\" or \"01\"); default: all", 0},
    {"property", 'p', "NAME", 0, "judge this property; default: all", 0},
    {"case", 'c', "TEXT", 0,
     "run this case: T, Hq, Hkv, dk, dv, l, d, l2 (l'), n, init, local, w, phi, hidden, scale; "
     "seqs=15+0+115 packs sequences, rows=9 samples rows, "
     "data=normal|ties|planted|large|shut|huge|big|"
     "low|high|rising|tiny|shifted|faint, seed=N, vector=NAME; default: the whole list",
     0},
    {"quick", 'q', NULL, 0, "leave out the long cases, as `make test` does", 0},
    {"list", 'l', NULL, 0, "list the properties and exit", 0},
    {"verbose", 'v', NULL, 0, "a line for each trial", 0},
    {"score", 'o', NULL, 0, "score by part: compress, select, dq, ...", 0},
    {"stop", 'x', NULL, 0, "stop a stage at its first failed trial", 0},
    {"stages", 'S', "DIR", 0, "folder of the stages' shared objects", 0},
    {0}};

static int list_properties(void) {
    for (int i = 0; i < property_count; i++)
        printf("%-12s %s\n", properties[i].name, properties[i].says);
    return EXIT_DONE;
}

/* Print a line for a trial that failed, or with --verbose for every trial. */
static void print_trial(const check_options *o, const char *stage, const trial *t,
                        const outcome *end) {
    static const char *const words[] = {[PASSED] = "pass", [FAILED] = "FAIL", [SKIPPED] = "skip"};
    if (end->verdict != FAILED && !o->verbose)
        return;
    printf("%s %s %s \"%s\"\n", words[end->verdict], stage, t->property->name, t->text);
    for (const char *line = end->why; *line;) {
        const size_t length = strcspn(line, "\n");
        printf("  %.*s\n", (int)length, line);
        line += length + (line[length] == '\n');
    }
}

/* Run the chosen trials of one stage, one after the other. */
static nsa_status run_trials(const check_options *o, const subject *s, tally *counts,
                             score *parts) {
    trial *trials;
    size_t count;
    nsa_status status = suite_list(s, o->quick, o->property, o->text, &trials, &count);
    if (status)
        return status;
    for (size_t i = 0; i < count && !(o->stop && counts->failed); i++) {
        outcome end;
        suite_run(s, &trials[i], 600, &end);
        *(end.verdict == PASSED   ? &counts->passed
          : end.verdict == FAILED ? &counts->failed
                                  : &counts->skipped) += 1;
        score_add(parts, trials[i].property, trials[i].text, &end);
        print_trial(o, s->name, &trials[i], &end);
        fflush(stdout);
    }
    free(trials);
    return NSA_OK;
}

/* Judge one stage, or say why it cannot be judged here. */
static nsa_status check_stage(const check_options *o, const nsa_found *found,
                              const nsa_stage *oracle, tally *sum) {
    static score parts; /* large */
    tally counts = {0};
    if (!found->stage || suite_available(found->stage, found->name)) {
        /* A failure, unless it needs a device that this machine lacks and was not named. */
        const int skip = found->stage && found->stage->device && !o->stage;
        printf("%s %s: %s\n", skip ? "SKIP" : "FAIL", found->name,
               found->stage ? nsa_last_error() : found->problem);
        *(skip ? &sum->skipped : &sum->failed) += 1;
        return NSA_OK;
    }
    subject s = {found->stage, oracle, found->name};
    memset(&parts, 0, sizeof parts);
    nsa_status status = run_trials(o, &s, &counts, &parts);
    if (status)
        return status;
    if (o->score)
        score_print(stdout, s.name, &parts);
    const char *device = found->stage->device ? found->stage->device() : NULL;
    const char *missing = suite_missing(found->stage);
    printf("%s%s%s: %zu passed, %zu failed, %zu skipped%s%s\n", s.name, device ? " on " : "",
           device ? device : "", counts.passed, counts.failed, counts.skipped,
           *missing ? "; it has no " : "", missing);
    sum->passed += counts.passed;
    sum->failed += counts.failed;
    sum->skipped += counts.skipped;
    return NSA_OK;
}

int cmd_check(int argc, char **argv) {
    static const struct argp argp = {
        .options = rows,
        .parser = parse,
        .doc = "Judge stages against stage 00: every property on every case it applies to.\v"
               "Exit status: 0 if all passed, 1 if a property does not hold, 2 for bad usage."};
    check_options o = {0};
    mallopt(M_PERTURB, 1); /* fill fresh memory: neither zero nor the oracle's results */
    setenv("OMP_WAIT_POLICY", "passive", 0); /* cases are small: threads should not spin */
    int code = command_parse(&argp, 0, argc, argv, NULL, &o);
    if (code || o.list)
        return code ? code : list_properties();
    nsa_found *found = NULL, oracle, one;
    size_t count = 0;
    tally sum = {0};
    nsa_status status = nsa_find_stage(o.stages, "00", &oracle);
    if (status)
        return command_status(status, "nsa check");
    if (o.stage) {
        status = nsa_find_stage(o.stages, o.stage, &one);
        status = status ? status : check_stage(&o, &one, oracle.stage, &sum);
        nsa_free_stage(&one);
    } else {
        status = nsa_find_stages(o.stages, &found, &count);
    }
    for (size_t i = 0; i < count && !status; i++)
        status = check_stage(&o, &found[i], oracle.stage, &sum);
    nsa_free_stages(found, count);
    nsa_free_stage(&oracle);
    if (!status && sum.passed + sum.failed + sum.skipped == 0)
        status = nsa_fail(NSA_ERR_INPUT, "no property%s%s applies to that case",
                          o.property ? " named " : "", o.property ? o.property : "");
    if (status)
        return command_status(status, "nsa check");
    printf("%zu passed, %zu failed, %zu skipped\n", sum.passed, sum.failed, sum.skipped);
    return sum.failed ? EXIT_FAILED : EXIT_DONE;
}
