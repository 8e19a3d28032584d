/** @file cmd_demo.c
 *  @brief `nsa demo`: run every stage on a text, and draw which blocks its queries read. */
#include "commands.h"
#include "demo/map.h"
#include "demo/save.h"
#include "demo/trial.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

static const char who[] = "nsa demo";

/* ------------------------------------------------------------------- options */

static error_t parse(int key, char *arg, struct argp_state *state) {
    demo_options *o = state->input;
    char *end = NULL;
    switch (key) {
    case 'o':
        o->output = arg;
        return 0;
    case 's':
        if (o->names == DEMO_MAX_NAMED) {
            command_error(EXIT_USAGE, who, "more than %d times --stage", DEMO_MAX_NAMED);
            return EINVAL;
        }
        o->named[o->names++] = arg;
        return 0;
    case 't':
        o->seconds = strtod(arg, &end);
        if (end == arg || *end || !(o->seconds >= 1 && o->seconds <= 86400)) {
            command_error(EXIT_USAGE, who, "--time %s: expected seconds, 1 to 86400", arg);
            return EINVAL;
        }
        return 0;
    case ARGP_KEY_ARG:
        if (o->file)
            return command_key(key, arg, state); /* a second text is an error */
        o->file = arg;
        return 0;
    default:
        return command_key(key, arg, state);
    }
}

static int parse_options(int argc, char **argv, demo_options *options) {
    static const struct argp_option known[] = {
        {"output", 'o', "DIR", 0, "Folder of the pictures (default nsa-demo)", 0},
        {"stage", 's', "NAME", 0, "Only this stage and 00; may be repeated", 0},
        {"time", 't', "SECONDS", 0, "Total time, approximately (default 60)", 0},
        {0}};
    static const struct argp argp = {
        .options = known,
        .parser = parse,
        .args_doc = "[FILE]",
        .doc = "Read a text with Native Sparse Attention: run every stage, check it against stage "
               "00, and draw the blocks that each query selected."
               "\v"
               "FILE is any file, \"-\" standard input; the default is an essay of the project. "
               "A passage of it is copied in a second time, to be found again. Nothing is "
               "trained. Writes DIR/block_map.svg, and DIR/block_map.png where rsvg-convert is "
               "installed."};
    return command_parse(&argp, 0, argc, argv, NULL, options);
}

/* ------------------------------------------------------------------- running */

/* Run every stage of the list and print the table. */
static void try_stages(demo_state *s) {
    int left = demo_runners(s);
    demo_line first = {.name = s->oracle.name,
                       .end = DEMO_ORACLE,
                       .rows = s->rows.count,
                       .per_query = s->oracle_query};
    demo_report_head(s->rows.count);
    demo_report_line(&first, s->oracle_query);
    for (size_t i = 0; i < s->count; i++) {
        const nsa_found *found = &s->list[i];
        if (demo_is_oracle(s, found))
            continue;
        demo_try_stage(s, found, left > 0 ? left : 1);
        left -= found->stage && found->stage->available() == NSA_OK;
    }
    printf("\nAllowed deviation: float64 1e-12, float32 1e-5, bfloat16 5e-3 (rms ratio).\n");
}

/* Draw the selections of a run. */
static int draw(const demo_state *s, const demo_run *run, const char *stage) {
    const char *dir = s->options.output;
    demo_map map = {.text = &s->text, .cfg = &s->model.cfg, .run = run, .stage = stage};
    demo_file file;
    int png = 0;
    nsa_status status = demo_map_count(&map);
    if (status)
        return command_status(status, who);
    int code = demo_file_start(dir, "block_map.svg", &file);
    if (!code) {
        demo_map_draw(&map, file.out);
        code = demo_file_done(&file);
    }
    demo_map_free(&map);
    if (!code)
        code = demo_draw_png(dir, "block_map.svg", "block_map.png", &png);
    if (code)
        return code;
    printf("\nThe map of all selections: %s/block_map.svg%s\n", dir, png ? " and .png" : "");
    if (!png)
        printf("  (no PNG: rsvg-convert is not on PATH)\n");
    if (run->R == s->text.T)
        printf("  Drawn from all %" PRId64 " queries as stage %.20s selected.\n", run->R, stage);
    else
        printf("  Drawn from %" PRId64 " of %" PRId64 " queries as stage %.20s selected;\n"
               "  more --time computes more.\n",
               run->R, s->text.T, stage);
    return EXIT_DONE;
}

static int run_demo(demo_state *s) {
    double start = demo_now();
    s->end = start + s->options.seconds;
    int code = demo_text_load(s->options.file, &s->text);
    code = code ? code : demo_make_folder(s->options.output);
    code = code ? code : demo_find_stages(s);
    if (code)
        return code;
    demo_text_plant(&s->text);
    demo_report_text(&s->text);
    nsa_status status = demo_embed(&s->text, &s->model);
    if (status)
        return command_status(status, who);
    demo_report_model(&s->model.cfg);
    code = demo_run_oracle(s);
    if (code)
        return code;
    try_stages(s);
    demo_report_reads(&s->model.cfg);
    /* Without another stage, draw the sampled queries of stage 00. */
    const demo_run *run = s->widest.R ? &s->widest : &s->reference;
    const char *stage = s->widest.R ? s->widest_name : s->oracle.name;
    demo_found_again found = demo_look_again(&s->text, &s->model.cfg, run);
    demo_report_found(&s->text, &found, stage);
    s->failed |= found.telling && !found.ok;
    code = draw(s, run, stage);
    printf("\n%s in %.0f s.\n", s->failed ? "FAIL: a comparison does not hold" : "Done",
           demo_now() - start);
    return code ? code : (s->failed ? EXIT_FAILED : EXIT_DONE);
}

int cmd_demo(int argc, char **argv) {
    demo_state *s = calloc(1, sizeof *s);
    if (!s)
        return command_error(EXIT_FAILED, who, "no memory");
    s->options.output = "nsa-demo";
    s->options.seconds = 60;
    int code = parse_options(argc, argv, &s->options);
    if (!code)
        code = run_demo(s);
    /* An unwritten report is a failure. */
    if ((fflush(stdout) || ferror(stdout)) && !code)
        code = command_error(EXIT_FAILED, who, "cannot write the report to standard output");
    demo_run_free(&s->reference);
    demo_run_free(&s->widest);
    demo_rows_free(&s->rows);
    demo_model_free(&s->model);
    demo_model_free(&s->rounded);
    demo_text_free(&s->text);
    if (s->list)
        nsa_free_stages(s->list, s->count);
    nsa_free_stage(&s->oracle);
    free(s);
    return code;
}
