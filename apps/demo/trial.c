/** @file trial.c
 *  @brief Run the stages within the time, and judge each by stage 00. */
#include "demo/trial.h"
#include "commands.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rows for timing a stage (two runs); limits for the oracle's rows, and how many of them are in the
 * second copy. */
enum { FEW = 8, MIN_ROWS = 24, MAX_ROWS = 96, IN_COPY = 8 };

static const char who[] = "nsa demo";

int demo_find_stages(demo_state *s) {
    const demo_options *o = &s->options;
    nsa_status status = nsa_find_stage(NULL, "00", &s->oracle);
    if (!status && !s->oracle.stage)
        status = nsa_fail(NSA_ERR_IO, "stage 00 cannot be loaded: %s", s->oracle.problem);
    if (!status)
        status = s->oracle.stage->available();
    if (!status && !o->names)
        status = nsa_find_stages(NULL, &s->list, &s->count);
    if (!status && o->names) {
        s->list = calloc(o->names, sizeof *s->list);
        if (!s->list)
            status = nsa_fail(NSA_ERR_MEMORY, "no memory for a list of stages");
        for (; !status && s->count < o->names; s->count += !status)
            status = nsa_find_stage(NULL, o->named[s->count], &s->list[s->count]);
    }
    return status ? command_status(status, who) : EXIT_DONE;
}

int demo_is_oracle(const demo_state *s, const nsa_found *found) {
    return !strcmp(found->name, s->oracle.name);
}

int demo_runners(const demo_state *s) {
    int n = 0;
    for (size_t i = 0; i < s->count; i++)
        n += s->list[i].stage && !demo_is_oracle(s, &s->list[i]) &&
             s->list[i].stage->available() == NSA_OK;
    return n;
}

/* Time a stage on `count` rows spread over the text. */
static nsa_status time_rows(const demo_state *s, const nsa_stage *stage, int64_t count,
                            double *seconds) {
    demo_rows rows;
    demo_run run;
    nsa_status status = demo_rows_new(&rows, s->text.T);
    if (!status) {
        demo_rows_spread(&rows, 0, s->text.T, count);
        status = demo_rows_list(&rows);
    }
    if (!status) {
        demo_request request = {
            .stage = stage, .model = &s->model, .row = rows.list, .R = rows.count};
        status = demo_run_stage(&request, &run);
    }
    demo_rows_free(&rows);
    if (status)
        return status;
    *seconds = run.seconds;
    demo_run_free(&run);
    return NSA_OK;
}

/* Stage 00 on sampled queries: spread over the text, and some in the second copy. It reads every
 * key in float64, so the sample may take a quarter of the time. */
int demo_run_oracle(demo_state *s) {
    double few = 0, each;
    int runs = 1 + demo_runners(s);
    nsa_status status = time_rows(s, s->oracle.stage, 4, &few);
    each = few / 4;
    double affordable = 0.25 * s->options.seconds / (runs * (each > 1e-9 ? each : 1e-9));
    int64_t rows = affordable > MAX_ROWS   ? MAX_ROWS
                   : affordable < MIN_ROWS ? MIN_ROWS
                                           : (int64_t)affordable;
    status = status ? status : demo_rows_new(&s->rows, s->text.T);
    if (status)
        return command_status(status, who);
    demo_rows_spread(&s->rows, 0, s->text.T, rows - IN_COPY);
    demo_rows_spread(&s->rows, s->text.second, s->text.second + s->text.length, IN_COPY);
    status = demo_rows_list(&s->rows);
    demo_request request = {.stage = s->oracle.stage,
                            .model = &s->model,
                            .row = s->rows.list,
                            .R = s->rows.count,
                            .importance = 1,
                            .label = "00, sampled queries",
                            .seconds = each * (double)s->rows.count};
    status = status ? status : demo_run_stage(&request, &s->reference);
    if (status)
        return command_status(status, who);
    s->oracle_query = s->reference.seconds / (double)s->rows.count;
    return EXIT_DONE;
}

/* Plan all queries if they fit into the stage's share of the time, else as many as fit; always
 * those of the oracle and of the second copy. An empty list means all. */
static nsa_status plan_rows(demo_state *s, const nsa_stage *stage, int left, demo_rows *rows,
                            double *seconds) {
    double few = 0, some = 0, T = (double)s->text.T;
    int64_t count = FEW;
    nsa_status status = time_rows(s, stage, FEW, &few);
    /* Until the queries take half of the time: else a few queries timed at a busy moment would
     * make each look free. */
    do {
        count *= 4;
        status = status ? status : time_rows(s, stage, count, &some);
    } while (!status && some < 2 * few && 4 * count <= s->text.T);
    status = status ? status : demo_rows_new(rows, s->text.T);
    if (status)
        return status;
    /* A line through two points: the cost of a call, and of each query. */
    double each = fmax((some - few) / ((double)count - FEW), 0), base = fmax(few - FEW * each, 0);
    double share = (s->end - demo_now()) / left - s->reference.seconds;
    *seconds = base + T * each;
    if (*seconds <= share)
        return NSA_OK;
    for (int64_t r = 0; r < s->rows.count; r++)
        demo_rows_spread(rows, s->rows.list[r], s->rows.list[r] + 1, 1);
    demo_rows_spread(rows, s->text.second, s->text.second + s->text.length, s->text.length);
    double more = (share - base) / fmax(each, 1e-9) - (double)rows->count;
    if (more > 0)
        demo_rows_spread(rows, 0, s->text.T, (int64_t)fmin(more, T));
    *seconds = base + (double)rows->count * each;
    return demo_rows_list(rows);
}

/* -------------------------------------------------------------------- judging */

/* Stage 00 with the candidate's blocks forced, so that a flipped near-tie neither hides nor fakes
 * an error. */
static nsa_status force(const demo_state *s, const demo_model *model, const demo_run *candidate,
                        demo_run *forced) {
    const nsa_config *c = &model->cfg;
    size_t width = (size_t)(c->kv_heads * c->slc_count);
    int32_t *idx = malloc((size_t)s->text.T * width * sizeof *idx);
    if (!idx)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for forced blocks");
    memset(idx, -1, (size_t)s->text.T * width * sizeof *idx); /* all -1: absent */
    for (int64_t r = 0; r < s->rows.count; r++) {
        int64_t t = s->rows.list[r], row = demo_run_find(candidate, t);
        memcpy(idx + (size_t)t * width, candidate->block_idx + (size_t)row * width,
               width * sizeof *idx);
    }
    demo_request request = {.stage = s->oracle.stage,
                            .model = model,
                            .row = s->rows.list,
                            .R = s->rows.count,
                            .forced = idx,
                            .importance = 1,
                            .label = "00 with the same blocks",
                            .seconds = s->reference.seconds};
    nsa_status status = demo_run_stage(&request, forced);
    free(idx);
    return status;
}

/* The verdict of one stage. A bfloat16 stage is compared on rounded inputs, with the importance of
 * its own compressed keys. */
static nsa_status judge(demo_state *s, nsa_arith arith, const demo_run *run, demo_verdict *v) {
    const nsa_config *c = &s->model.cfg;
    int bf16 = arith == NSA_BFLOAT16;
    demo_tolerance limits = demo_tolerances(arith);
    demo_run forced = {0}, again = {0}, *oracle = &s->reference;
    nsa_status status = NSA_OK;
    if (bf16 && !s->rounded.memory[NSA_Q])
        status = demo_round(&s->model, &s->rounded);
    if (!status && bf16) {
        demo_request request = {.stage = s->oracle.stage,
                                .model = &s->rounded,
                                .row = s->rows.list,
                                .R = s->rows.count,
                                .importance = 1,
                                .label = "00 in bfloat16 inputs",
                                .seconds = s->reference.seconds};
        status = demo_run_stage(&request, &again);
        status = status ? status : demo_reselect(&s->rounded, run->k_phi, &again);
        oracle = &again;
    }
    status = status ? status : demo_judge_selection(c, limits.slack, oracle, run, v);
    if (!status && v->ok) {
        status = force(s, bf16 ? &s->rounded : &s->model, run, &forced);
        if (!status)
            demo_judge_output(c, &limits, &forced, run, v);
    }
    status = status ? status : demo_judge_all_rows(c, run, v);
    demo_run_free(&forced);
    demo_run_free(&again);
    return status;
}

/* Keep the run with the most queries, and among equals the fastest, for the map. */
static void keep_widest(demo_state *s, demo_run *run, const char *name) {
    double each = run->seconds / (double)run->R;
    int wider = run->R > s->widest.R || (run->R == s->widest.R && each < s->widest_query);
    if (!wider) {
        demo_run_free(run);
        return;
    }
    demo_run_free(&s->widest);
    s->widest = *run;
    *run = (demo_run){0}; /* moved to s->widest */
    s->widest_query = each;
    snprintf(s->widest_name, sizeof s->widest_name, "%s", name);
}

void demo_try_stage(demo_state *s, const nsa_found *found, int left) {
    demo_line line = {.name = found->name};
    demo_rows rows = {0};
    demo_run run = {0};
    double seconds = 0;
    char label[80];
    const nsa_stage *stage = found->stage;
    snprintf(label, sizeof label, "%.40s", found->name);
    nsa_status status = stage ? stage->available() : NSA_ERR_IO;
    if (status) {
        snprintf(line.why, sizeof line.why, "%s", stage ? nsa_last_error() : found->problem);
        demo_report_line(&line, 0);
        return;
    }
    status = plan_rows(s, stage, left, &rows, &seconds);
    if (!status) {
        demo_request request = {.stage = stage,
                                .model = &s->model,
                                .row = rows.list,
                                .R = rows.list ? rows.count : s->text.T,
                                .k_phi = stage->arith == NSA_BFLOAT16,
                                .label = label,
                                .seconds = seconds};
        status = demo_run_stage(&request, &run);
    }
    demo_rows_free(&rows);
    if (!status) {
        line.rows = run.R;
        line.per_query = run.seconds / (double)run.R;
        line.judged = 1;
        status = judge(s, stage->arith, &run, &line.verdict);
    }
    line.end = !status && line.verdict.ok ? DEMO_OK : DEMO_FAIL;
    snprintf(line.why, sizeof line.why, "%s", status ? nsa_last_error() : line.verdict.why);
    s->failed |= line.end == DEMO_FAIL;
    demo_report_line(&line, s->oracle_query);
    if (line.end == DEMO_OK)
        keep_widest(s, &run, found->name);
    demo_run_free(&run);
}
