/** @file judge.c
 *  @brief The harness under Criterion: one test a stage, property and case.
 *
 *  $NSA_JUDGE_STAGE names the one stage to judge (default: all), $NSA_JUDGE_QUICK=1 leaves out the
 * long cases. A stage that cannot run here is one skipped test, with the reason.
 */
#include "harness/suite.h"
#include "nsa_find.h"

#include <criterion/criterion.h>
#include <criterion/hooks.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SECONDS = 400 };

/* What a test child needs to find its trial again; plain bytes, for Criterion copies them. */
typedef struct parameter {
    char stage[64];
    char oracle[64];
    char why_not[256]; /* not empty: the stage cannot run here */
    char property[32];
    char text[320];
} parameter;

static parameter *list;
static size_t count, room;

static parameter *add(const nsa_found *found) {
    if (count == room) {
        size_t more = room ? 2 * room : 1024;
        parameter *grown = realloc(list, more * sizeof *list);
        if (!grown)
            abort();
        list = grown;
        room = more;
    }
    parameter *p = &list[count++];
    memset(p, 0, sizeof *p);
    snprintf(p->stage, sizeof p->stage, "%s", found->name);
    return p;
}

static void fail_setup(const char *what) {
    fprintf(stderr, "judge: %s: %s\n", what, nsa_last_error());
    exit(2);
}

/* All trials of one stage, or the reason why there are none. */
static void add_stage(const nsa_found *found, const nsa_found *oracle) {
    if (!found->stage || found->stage->available()) {
        parameter *p = add(found);
        snprintf(p->why_not, sizeof p->why_not, "%s",
                 found->stage ? nsa_last_error() : found->problem);
        return;
    }
    if (found->stage->device)
        printf("%s runs on: %s\n", found->name, found->stage->device());
    subject s = {found->stage, oracle->stage, found->name};
    const char *quick = getenv("NSA_JUDGE_QUICK");
    trial *trials;
    size_t n;
    if (suite_list(&s, quick && *quick == '1', NULL, NULL, &trials, &n))
        fail_setup("cannot list the trials");
    for (size_t i = 0; i < n; i++) {
        parameter *p = add(found);
        snprintf(p->oracle, sizeof p->oracle, "%s", oracle->name);
        snprintf(p->property, sizeof p->property, "%s", trials[i].property->name);
        snprintf(p->text, sizeof p->text, "%s", trials[i].text);
    }
    free(trials);
}

ParameterizedTestParameters(nsa, stage_property_case) {
    const char *only = getenv("NSA_JUDGE_STAGE");
    nsa_found *found, oracle;
    size_t stages, judged = 0;
    if (nsa_find_stages(NULL, &found, &stages) || nsa_find_stage(NULL, "00", &oracle))
        fail_setup("cannot find the stages");
    for (size_t i = 0; i < stages; i++) {
        if (only && *only && strcmp(only, found[i].name) != 0 && strncmp(only, found[i].name, 2))
            continue;
        if (only && *only && strlen(only) != 2 && strcmp(only, found[i].name) != 0)
            continue;
        add_stage(&found[i], &oracle);
        judged++;
    }
    if (!judged) {
        fprintf(stderr, "judge: no stage \"%s\"\n", only);
        exit(2);
    }
    nsa_free_stages(found, stages);
    nsa_free_stage(&oracle);
    parameter *shared = cr_malloc(count * sizeof *list); /* where the test children see it */
    if (!shared)
        fail_setup("no memory for the list");
    memcpy(shared, list, count * sizeof *list);
    free(list);
    return cr_make_param_array(parameter, shared, count);
}

ParameterizedTest(parameter *p, nsa, stage_property_case) {
    setenv("OMP_WAIT_POLICY", "passive",
           0); /* tests run side by side: waiting threads must sleep */
    nsa_found found, oracle;
    char why[1400];
    if (p->why_not[0])
        cr_skip("SKIP %s: %s", p->stage, p->why_not);
    if (nsa_find_stage(NULL, p->stage, &found) || nsa_find_stage(NULL, p->oracle, &oracle))
        cr_assert(0, "FAIL %s", nsa_last_error());
    subject s = {found.stage, oracle.stage, found.name};
    trial t = {NULL, p->text};
    for (int i = 0; i < property_count; i++) {
        if (!strcmp(properties[i].name, p->property))
            t.property = &properties[i];
    }
    verdict v = suite_run(&s, &t, SECONDS, why, sizeof why);
    nsa_free_stage(&found);
    nsa_free_stage(&oracle);
    if (v == SKIPPED)
        cr_skip("SKIP %s", why);
    cr_assert(v == PASSED, "FAIL %s", why);
}

/* Criterion's own closing line leaves out what was skipped. */
ReportHook(POST_ALL)(struct criterion_global_stats *stats) {
    printf("%zu passed, %zu failed, %zu skipped\n", stats->tests_passed,
           stats->tests_failed + stats->tests_crashed, stats->tests_skipped);
    fflush(stdout);
}
