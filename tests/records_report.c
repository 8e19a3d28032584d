/** @file records_report.c
 *  @brief The judge's output at the end: scores, the closing line, TAP or JUnit. */
#include "harness/score.h"
#include "records.h"

#include <stdlib.h>
#include <string.h>

/* Print text inside XML: escape four characters, drop control characters. */
static void put_xml(FILE *to, const char *text) {
    for (; *text; text++) {
        const char *as = *text == '&'   ? "&amp;"
                         : *text == '<' ? "&lt;"
                         : *text == '>' ? "&gt;"
                         : *text == '"' ? "&quot;"
                                        : NULL;
        if (as)
            fputs(as, to);
        else if (*text == '\n' || (unsigned char)*text >= ' ')
            fputc(*text, to);
    }
}

/* Print a line of TAP, and below it, as comments, what was wrong. */
static void put_tap(FILE *to, size_t number, const record *r) {
    const verdict v = r->outcome.verdict;
    fprintf(to, "%s %zu - %s %s %s%s%s\n", v == FAILED ? "not ok" : "ok", number, r->stage,
            r->property, r->text, v == SKIPPED ? " # SKIP " : "",
            v == SKIPPED ? r->outcome.why : "");
    for (const char *line = r->outcome.why; v == FAILED && *line;) {
        const int length = (int)strcspn(line, "\n");
        fprintf(to, "#   %.*s\n", length, line);
        line += length + (line[length] == '\n');
    }
}

static void put_junit(FILE *to, const record *r) {
    const verdict v = r->outcome.verdict;
    fprintf(to, "    <testcase classname=\"%s.%s\" time=\"%.3f\" name=\"", r->stage, r->property,
            r->outcome.seconds);
    put_xml(to, r->text);
    fputs(v == PASSED ? "\"/>\n" : v == SKIPPED ? "\"><skipped message=\"" : "\"><failure>", to);
    if (v != PASSED)
        put_xml(to, r->outcome.why);
    fputs(v == PASSED ? "" : v == SKIPPED ? "\"/></testcase>\n" : "</failure></testcase>\n", to);
}

static void put_score(FILE *to, int xml, const char *stage, const score *sum) {
    if (xml)
        fprintf(to, "    <properties>\n");
    for (int p = 0; p < PART_COUNT; p++) {
        const part_score *s = &sum->part[p];
        if (s->judged || s->skipped)
            fprintf(to,
                    xml ? "      <property name=\"score %s\" value=\"%s\"/>\n" : "# score %s: %s\n",
                    part_name((stage_part)p), score_text(s));
    }
    fprintf(to, xml ? "    </properties>\n" : "# end of the score of %s\n", stage);
}

enum { REASONS = 8 };

/* Sums over the records of one stage, `first` to `end`. */
typedef struct stage_sum {
    size_t first, end, judged, counts[3]; /* by verdict */
    struct {
        char why[256];
        size_t trials;
    } skips[REASONS];
    score parts;
} stage_sum;

/* Count a reason for skipping; reasons that do not fit share the last entry. */
static void add_skip(stage_sum *sum, const char *why) {
    int i = 0;
    while (i < REASONS - 1 && sum->skips[i].trials && strcmp(sum->skips[i].why, why) != 0)
        i++;
    snprintf(sum->skips[i].why, sizeof sum->skips[i].why, "%.255s", why);
    sum->skips[i].trials++;
}

/* Read a record; a trial that was never judged has failed. */
static void read_record(size_t number, record *r) {
    if (records_get(number, r))
        abort();
    if (r->state != ENDED && r->property[0]) {
        r->outcome.verdict = FAILED;
        snprintf(r->outcome.why, sizeof r->outcome.why, "was not judged\n");
    }
}

/* Sum the records of one stage, from `first` on. @return 0 if there are none */
static int sum_stage(size_t first, stage_sum *sum, char *stage, size_t capacity) {
    record r;
    memset(sum, 0, sizeof *sum);
    sum->first = sum->end = first;
    if (records_get(first, &r))
        return 0;
    snprintf(stage, capacity, "%s", r.stage);
    for (; !records_get(sum->end, &r) && !strcmp(r.stage, stage); sum->end++) {
        read_record(sum->end, &r);
        sum->counts[r.outcome.verdict]++;
        if (r.outcome.verdict == SKIPPED)
            add_skip(sum, r.outcome.why);
        sum->judged += r.property[0] != 0;
        if (r.property[0])
            score_add(&sum->parts, suite_property(r.property), r.text, &r.outcome);
    }
    return 1;
}

/* Write the records of one stage to the report. */
static void report_stage(FILE *to, int xml, const char *stage, const stage_sum *sum) {
    record r;
    if (xml)
        fprintf(to, "  <testsuite name=\"%s\" tests=\"%zu\" failures=\"%zu\" skipped=\"%zu\">\n",
                stage, sum->end - sum->first, sum->counts[FAILED], sum->counts[SKIPPED]);
    put_score(to, xml, stage, &sum->parts);
    for (size_t i = sum->first; i < sum->end; i++) {
        read_record(i, &r);
        if (xml)
            put_junit(to, &r);
        else
            put_tap(to, i + 1, &r);
    }
    if (xml)
        fprintf(to, "  </testsuite>\n");
}

void records_report(int always, const char *missing, FILE *report, int xml) {
    size_t counts[3] = {0}, total = 0;
    char stage[64];
    stage_sum *sum = malloc(sizeof *sum);
    record r;
    for (; !records_get(total, &r);)
        total++;
    if (report)
        fprintf(report,
                xml ? "<?xml version=\"1.0\"?>\n<testsuites>\n" : "TAP version 13\n1..%zu\n",
                total);
    for (size_t first = 0; sum && sum_stage(first, sum, stage, sizeof stage); first = sum->end) {
        for (int v = PASSED; v <= SKIPPED; v++)
            counts[v] += sum->counts[v];
        if (sum->judged && (always || sum->counts[FAILED]))
            score_print(stdout, stage, &sum->parts);
        for (int i = 0; i < REASONS && sum->skips[i].trials; i++)
            printf("SKIP %s: %zu trials: %s\n", stage, sum->skips[i].trials, sum->skips[i].why);
        if (report)
            report_stage(report, xml, stage, sum);
    }
    if (report && xml)
        fprintf(report, "</testsuites>\n");
    free(sum);
    printf("%zu passed, %zu failed, %zu skipped%s%s\n", counts[PASSED], counts[FAILED],
           counts[SKIPPED], *missing ? "; " : "", missing);
    fflush(stdout);
}
