/** @file judge.c
 *  @brief The harness under Criterion.
 *
 *  A trial is a stage, a property and a case. Criterion runs groups of them, a process a group:
 *
 *      Criterion -> test (a group) -> fork: worker: trial, trial, trial, crash
 *                                     fork: worker: trial, trial, ...      (from the next one on)
 *
 *  If a worker crashes or hangs, its current trial has failed, and the next worker continues after
 * it. The outcome of each trial is in a file of records; the score, the closing line and the report
 * are made from it.
 *
 *  $NSA_JUDGE_STAGE names the one stage to judge (default: all), $NSA_JUDGE_PROPERTY the one
 * property, $NSA_JUDGE_QUICK=1 leaves out the long cases, $NSA_JUDGE_REPORT is a file for TAP, or
 * for JUnit's XML if its name ends in .xml. A stage that cannot run here is skipped, with the
 * reason. */
#include "harness/suite.h"
#include "nsa_find.h"
#include "records.h"

#include <criterion/criterion.h>
#include <criterion/hooks.h>
#include <criterion/options.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Trials in a group: few where groups run side by side on the cores; many on a GPU, where starting
 * a process takes a second, and processes use it one at a time. */
enum { SECONDS = 400, GROUP = 16, GPU_GROUP = 128 };

/* Trials first to end-1 of one stage; plain data, because Criterion copies it. */
typedef struct group {
    size_t first, end;
} group;

/* ------------------------------------------------------------------ listing */

static record *list;
static size_t count, capacity;
static char missing[512]; /* what stages lack: "99_mine has no backward" */
static FILE *report;
static int one_stage;

static void fail_setup(const char *what, const char *why) {
    fprintf(stderr, "judge: %s: %s\n", what, why);
    exit(2);
}

static record *add(const nsa_found *found) {
    if (count == capacity) {
        capacity = capacity ? 2 * capacity : 1024;
        record *more = realloc(list, capacity * sizeof *list);
        if (!more)
            fail_setup("no memory", "for the list of trials");
        list = more;
    }
    record *r = &list[count++];
    memset(r, 0, sizeof *r);
    snprintf(r->stage, sizeof r->stage, "%s", found->name);
    return r;
}

/* Add all trials of one stage, or a record with the reason why there are none: it is not a stage,
 * or cannot run here. That is a failure, unless it needs a device that this machine lacks and was
 * not named. */
static void add_stage(const nsa_found *found, const nsa_found *oracle) {
    if (!found->stage || suite_available(found->stage, found->name)) {
        record *r = add(found);
        r->state = ENDED;
        r->outcome.verdict = found->stage && found->stage->device && !one_stage ? SKIPPED : FAILED;
        snprintf(r->outcome.why, sizeof r->outcome.why, "%s",
                 found->stage ? nsa_last_error() : found->problem);
        return;
    }
    if (found->stage->device)
        printf("%s runs on: %s\n", found->name, found->stage->device());
    const char *quick = getenv("NSA_JUDGE_QUICK"), *lacks = suite_missing(found->stage);
    const size_t used = strlen(missing);
    if (*lacks)
        snprintf(missing + used, sizeof missing - used, "%s%s has no %s", used ? "; " : "",
                 found->name, lacks);
    subject s = {found->stage, oracle->stage, found->name};
    trial *trials;
    size_t n;
    const char *property_name = getenv("NSA_JUDGE_PROPERTY");
    if (suite_list(&s, quick && *quick == '1', property_name, NULL, &trials, &n))
        fail_setup("cannot list the trials", nsa_last_error());
    for (size_t i = 0; i < n; i++) {
        record *r = add(found);
        snprintf(r->property, sizeof r->property, "%s", trials[i].property->name);
        snprintf(r->text, sizeof r->text, "%s", trials[i].text);
        r->on_gpu = found->stage->device && strcmp(found->stage->device(), "simulator") != 0;
    }
    free(trials);
}

/* 1 if the stage was asked for by its name or number. */
static int is_asked_for(const char *name, const char *only) {
    return !only || !*only || !strcmp(only, name) || (strlen(only) == 2 && !strncmp(only, name, 2));
}

static void list_trials(void) {
    const char *only = getenv("NSA_JUDGE_STAGE");
    nsa_found *found, oracle;
    size_t stages, judged = 0;
    if (nsa_find_stages(NULL, &found, &stages) || nsa_find_stage(NULL, "00", &oracle))
        fail_setup("cannot find the stages", nsa_last_error());
    one_stage = only && *only;
    for (size_t i = 0; i < stages; i++) {
        if (is_asked_for(found[i].name, only)) {
            add_stage(&found[i], &oracle);
            judged++;
        }
    }
    if (!judged)
        fail_setup("no such stage", only);
    if (!count)
        fail_setup("no trial", "the property is for none of the cases");
    nsa_free_stages(found, stages);
    nsa_free_stage(&oracle);
}

static void open_report(void) {
    const char *path = getenv("NSA_JUDGE_REPORT");
    if (path && *path && !(report = fopen(path, "w")))
        fail_setup(path, strerror(errno));
}

ParameterizedTestParameters(nsa, trials) {
    open_report();
    list_trials();
    if (records_create(list, count))
        fail_setup("cannot write the records", strerror(errno));
    /* A group has trials of one stage alone. */
    group *groups =
        cr_malloc(count * sizeof *groups); /* memory that Criterion's children can read */
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        const size_t max_trials = list[i].on_gpu ? GPU_GROUP : GROUP;
        if (!n || groups[n - 1].end - groups[n - 1].first == max_trials ||
            strcmp(list[i].stage, list[groups[n - 1].first].stage) != 0)
            groups[n++] = (group){i, i};
        groups[n - 1].end++;
    }
    free(list);
    return cr_make_param_array(group, groups, n);
}

/* ------------------------------------------------------------------ judging */

/* In a worker process: judge trials first to end-1, and write each one's record before and
 * after. */
static int work(size_t first, size_t end) {
    nsa_found found, oracle;
    record r;
    if (records_get(first, &r))
        return 2;
    if (nsa_find_stage(NULL, r.stage, &found) || nsa_find_stage(NULL, "00", &oracle)) {
        fprintf(stderr, "judge: %s\n", nsa_last_error());
        return 2;
    }
    subject s = {found.stage, oracle.stage, found.name};
    suite_ends_with = 1;
    mallopt(M_PERTURB, 1); /* fill fresh memory: neither zero nor the oracle's results */
    for (size_t i = first; i < end; i++) {
        if (records_get(i, &r))
            return 2;
        const trial t = {suite_property(r.property), r.text};
        r.state = RUNNING;
        r.outcome.failed =
            suite_parts(s.stage, t.property); /* stays if this trial ends the process */
        if (records_put(i, &r))
            return 2;
        suite_run(&s, &t, SECONDS, &r.outcome);
        r.state = ENDED;
        if (records_put(i, &r))
            return 2;
    }
    return 0;
}

/* How a worker ended that did not finish. */
static const char *end_of(int status, char *text, size_t size) {
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    if (code == SUITE_HANG)
        snprintf(text, size, "HANG: not done after %d s", SECONDS);
    else if (WIFSIGNALED(status) || code != SUITE_EXIT)
        snprintf(text, size, "CRASH: its process ended with %s %d",
                 WIFSIGNALED(status) ? "signal" : "exit status",
                 WIFSIGNALED(status) ? WTERMSIG(status) : code);
    else
        snprintf(text, size, "EXIT: the stage ended the program");
    return text;
}

/* Record that a trial has failed, and why. */
static void fail_trial(size_t number, record *r, const char *why) {
    char line[640];
    suite_replay(r->stage, r->property, r->text, line, sizeof line);
    r->state = ENDED;
    r->outcome.verdict = FAILED;
    snprintf(r->outcome.why, sizeof r->outcome.why, "%s\n%s", why, line);
    records_put(number, r);
}

/* The trial that a worker was judging when it ended has failed. After two hangs of a stage its
 * other trials fail without being run, because each might hang.
 * @return the trial after it */
static size_t blame(size_t first, size_t end, int status) {
    char why[160];
    for (size_t i = first; i < end; i++) {
        record r;
        if (records_get(i, &r) || r.state == ENDED)
            continue;
        fail_trial(i, &r, end_of(status, why, sizeof why));
        if (WIFEXITED(status) && WEXITSTATUS(status) == SUITE_HANG)
            records_count_hang(r.stage);
        return i + 1;
    }
    return end;
}

/* Judge all trials of a group, with as many workers as needed. */
static void run_group(const group *g) {
    record r;
    for (size_t i = g->first; i < g->end;) {
        int status = 0;
        if (!records_get(i, &r) && records_hangs(r.stage) > 1) {
            fail_trial(i++, &r, "not run: the stage hung twice");
            continue;
        }
        fflush(NULL);
        const pid_t worker = fork();
        if (!worker)
            _exit(work(i, g->end));
        if (worker < 0 || waitpid(worker, &status, 0) != worker)
            cr_assert(0, "cannot start a process: %s", strerror(errno));
        i = blame(i, g->end, status);
    }
}

/* Check every record of the group: a trial that no worker reached has failed. */
ParameterizedTest(group *g, nsa, trials) {
    setenv("OMP_WAIT_POLICY", "passive",
           0); /* tests run side by side: waiting threads must sleep */
    size_t failed = 0;
    record r;
    cr_assert(!records_get(g->first, &r), "no records");
    if (!r.property[0] && r.outcome.verdict == SKIPPED)
        cr_skip("SKIP %s: %s", r.stage, r.outcome.why);
    cr_assert(r.property[0], "FAIL %s: %s", r.stage, r.outcome.why);
    const int held = r.on_gpu ? gpu_acquire() : -1;
    run_group(g);
    gpu_release(held);
    for (size_t i = g->first; i < g->end; i++) {
        if (records_get(i, &r) || r.state != ENDED || r.outcome.verdict == FAILED) {
            fprintf(stderr, "FAIL %s %s \"%s\"\n%s", r.stage, r.property, r.text, r.outcome.why);
            failed++;
        }
    }
    cr_assert(!failed, "%zu of %zu trials of %s failed", failed, g->end - g->first, r.stage);
}

/* Criterion counts groups; these lines count trials. */
ReportHook(POST_ALL)(struct criterion_global_stats *stats) {
    const char *path = getenv("NSA_JUDGE_REPORT");
    const size_t n = path ? strlen(path) : 0;
    (void)stats;
    if (!count) { /* Criterion, which passes nothing as a success, did not ask for the trials */
        fprintf(stderr, "judge: no test matches --filter \"%s\"; --list names what there is\n",
                criterion_options.pattern ? criterion_options.pattern : "");
        fflush(stdout);
        _exit(2);
    }
    records_report(one_stage, missing, report, n > 4 && !strcmp(path + n - 4, ".xml"));
    records_remove();
    if (report && (ferror(report) | fclose(report))) {
        fprintf(stderr, "judge: %s: %s\n", path, strerror(errno));
        fflush(stdout);
        _exit(2); /* a report that could not be written is a failure */
    }
}
