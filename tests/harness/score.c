/** @file score.c
 *  @brief Counting trials by the parts of a stage. */
#include "harness/score.h"

#include <string.h>

static const char *next_line(const char *line) {
    line += strcspn(line, "\n");
    return *line ? line + 1 : line;
}

/* Copy the line about part p from a trial's text, or the last line if the trial ended early; then
 * the replay line. */
static void first_failure(stage_part p, const property *of, const char *text, const outcome *o,
                          char *to, size_t capacity) {
    const char *line = o->why, *name = part_name(p), *last = line;
    const size_t n = strlen(name);
    for (; *line && strncmp(line, "(seed ", 6) && strncmp(line, "replay: ", 8);
         line = next_line(line)) {
        last = line;
        if (!strncmp(line, name, n) && line[n] == ':')
            break;
    }
    const char *replay = strstr(line, "replay: ");
    snprintf(to, capacity, "%s \"%s\": %.*s\n%.600s", of->name, text, (int)strcspn(last, "\n"),
             last, replay ? replay : "");
}

void score_add(score *sum, const property *of, const char *text, const outcome *o) {
    for (int p = 0; p < PART_COUNT; p++) {
        part_score *s = &sum->part[p];
        const part_set bit = (part_set)1 << p;
        if (o->verdict == SKIPPED && (of->parts & bit)) {
            if (!s->skipped++ && !s->judged)
                snprintf(s->first, sizeof s->first, "%.255s\n", o->why);
        }
        if (!((o->passed | o->failed) & bit))
            continue;
        if ((o->failed & bit) && s->passed == s->judged)
            first_failure((stage_part)p, of, text, o, s->first, sizeof s->first);
        s->judged++;
        s->passed += (o->passed & bit) != 0;
    }
}

const char *score_text(const part_score *p) {
    static char text[64];
    snprintf(text, sizeof text, p->judged ? "%zu of %zu" : "skipped", p->passed, p->judged);
    return text;
}

void score_print(FILE *to, const char *stage, const score *sum) {
    fprintf(to, "\nScore of %s, trials passed of trials judged:\n", stage);
    for (int p = 0; p < PART_COUNT; p++) {
        const part_score *s = &sum->part[p];
        if (!s->judged && !s->skipped)
            continue;
        fprintf(to, "  %-18s %s\n", part_name((stage_part)p), score_text(s));
        if (s->passed == s->judged && s->judged)
            continue;
        for (const char *line = s->first; *line; line = next_line(line))
            fprintf(to, "      %.*s\n", (int)strcspn(line, "\n"), line);
    }
    fprintf(to, "\n");
}
