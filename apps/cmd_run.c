/** @file cmd_run.c
 *  @brief `nsa run`: run one stage on a case folder, and write the results to another folder, or
 *  explain one query of it. */
#include "commands.h"
#include "explain.h"
#include "io/case_folder.h"
#include "nsa_find.h"
#include "io/decode_case.h"
#include "io/progress.h"
#include "io/text.h"
#include "run_output.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FORWARD_ONLY = -1, /* the value of `decode` without --decode */
    NOTHING = -1       /* the value of `explain` without --explain */
};

/** The command line. */
typedef struct run_options {
    const char *stage;  /**< name, number or path */
    const char *input;  /**< the case folder */
    const char *output; /**< the results' folder */
    const char *stages; /**< folder of the stages, NULL for the default */
    int64_t decode;     /**< tokens to prefill before decoding, or FORWARD_ONLY */
    int64_t explain;    /**< the position to explain, or NOTHING */
    int64_t kv_head;    /**< which of its groups */
} run_options;

/** Everything that is open during a run. */
typedef struct run {
    const run_options *options; /**< the command line */
    case_folder input;          /**< the case */
    nsa_found stage;            /**< the stage */
    nsa_context *ctx;           /**< the open stage */
    run_output output;          /**< where results go */
    progress bar;               /**< the progress line */
    char summary[96];           /**< for the closing line */
} run;

/* --------------------------------------------------------------------- options */

/* A whole number from `arg` on; NULL if there is none, else what follows it. */
static const char *parse_whole(const char *arg, int64_t *value) {
    char *end;
    errno = 0;
    long long number = strtoll(arg, &end, 10);
    *value = number;
    /* strtoll() would accept white space and a sign */
    return errno || arg[0] < '0' || arg[0] > '9' ? NULL : end;
}

/* P of --decode P. More tokens than a sequence has means all of them. */
static error_t parse_decode(const char *arg, const struct argp_state *state, int64_t *value) {
    const char *rest = parse_whole(arg, value);
    if (rest && !*rest)
        return 0;
    command_error(EXIT_USAGE, state->name, "--decode \"%s\" is not a whole number from 0", arg);
    return EINVAL;
}

/* T or T,HEAD of --explain. */
static error_t parse_explain(const char *arg, const struct argp_state *state,
                             run_options *options) {
    const char *rest = parse_whole(arg, &options->explain);
    options->kv_head = 0;
    if (rest && *rest == ',')
        rest = parse_whole(rest + 1, &options->kv_head);
    if (rest && !*rest)
        return 0;
    command_error(EXIT_USAGE, state->name,
                  "--explain \"%s\" is not T or T,HEAD, a position and a kv head from 0", arg);
    return EINVAL;
}

/* Options that are required, and those that do not go together: an explanation writes no files. */
static error_t check_options(const run_options *options, const struct argp_state *state) {
    const int explains = options->explain != NOTHING;
    const char *missing = !options->stage                 ? "--stage NAME"
                          : !options->input               ? "--input DIR"
                          : !options->output && !explains ? "--output DIR"
                                                          : NULL;
    if (explains && (options->output || options->decode != FORWARD_ONLY)) {
        command_error(EXIT_USAGE, state->name,
                      "--explain prints one query of a forward: expected no %s",
                      options->output ? "--output" : "--decode");
        return EINVAL;
    }
    if (!missing)
        return 0;
    command_error(EXIT_USAGE, state->name, "%s is missing; see nsa run --help", missing);
    return EINVAL;
}

static error_t parse(int key, char *arg, struct argp_state *state) {
    run_options *options = state->input;
    switch (key) {
    case 's':
        options->stage = arg;
        return 0;
    case 'i':
        options->input = arg;
        return 0;
    case 'o':
        options->output = arg;
        return 0;
    case 'S':
        options->stages = arg;
        return 0;
    case 'd':
        return parse_decode(arg, state, &options->decode);
    case 'e':
        return parse_explain(arg, state, options);
    case ARGP_KEY_SUCCESS:
        return check_options(options, state);
    default:
        return command_key(key, arg, state);
    }
}

/* --------------------------------------------------------------------- the run */

/* Read one result from the stage and write its file. */
static nsa_status write_result(run *r, nsa_id id) {
    nsa_tensor t = {0};
    nsa_status status = nsa_result(r->ctx, id, &t);
    if (status)
        return status;
    size_t bytes = (size_t)nsa_count(&t) * nsa_dtype_size(t.dtype);
    t.data = malloc(bytes ? bytes : 1);
    status = t.data
                 ? nsa_read(r->ctx, id, &t)
                 : nsa_fail(NSA_ERR_MEMORY, "no memory for %zu bytes of %s", bytes, nsa_name(id));
    status = status ? status : output_add(&r->output, id, &t);
    free(t.data);
    return status;
}

/* Write results in the order of the contract, one at a time to save memory. */
static nsa_status write_results(run *r, int with_gradients) {
    static const nsa_id forward[] = {NSA_OUT,       NSA_OUT_CMP,    NSA_OUT_SLC, NSA_OUT_WIN,
                                     NSA_BLOCK_IDX, NSA_IMPORTANCE, NSA_K_PHI,   NSA_V_PHI};
    nsa_status status = NSA_OK;
    for (size_t i = 0; i < sizeof forward / sizeof forward[0] && !status; i++)
        status = write_result(r, forward[i]);
    for (int id = NSA_GRAD_FIRST; with_gradients && id <= NSA_GRAD_LAST && !status; id++) {
        if (nsa_has(&r->input.cfg, (nsa_id)id))
            status = write_result(r, (nsa_id)id);
    }
    return status;
}

/* Lower max_seqs to the number of packed sequences: without decode it is only a limit. */
static void fit_max_seqs(run *r) {
    const nsa_tensor *cu = &r->input.in.at[NSA_CU_SEQLENS];
    const int64_t packed = cu->dtype ? cu->shape[0] - 1 : 1;
    if (packed > 0 && packed < r->input.cfg.max_seqs)
        r->input.cfg.max_seqs = packed;
}

/* Compute all rows, or those of rows.npy; gradients if there is a dout.npy. */
static nsa_status run_forward(run *r) {
    const nsa_tensor *rows = &r->input.in.at[NSA_ROWS];
    int backward = r->input.in.at[NSA_DOUT].dtype != NSA_NONE;
    nsa_setup setup = {.flags = NSA_WANT_BRANCHES | NSA_WANT_IMPORTANCE,
                       .max_rows = rows->dtype ? rows->shape[0] : 0};
    setup.flags |= backward ? NSA_BACKWARD : 0;
    fit_max_seqs(r);
    nsa_status status = nsa_open(r->stage.stage, &r->input.cfg, &setup, &r->ctx);
    status = status ? status : nsa_load(r->ctx, &r->input.in);
    progress_phase(&r->bar, "forward");
    status = status ? status : nsa_forward(r->ctx);
    if (backward && !status) {
        progress_phase(&r->bar, "backward");
        status = nsa_backward(r->ctx);
    }
    progress_phase(&r->bar, "writing");
    status = status ? status : write_results(r, backward);
    snprintf(r->summary, sizeof r->summary, "forward%s of %" PRId64 " tokens",
             backward ? " and backward" : "", r->input.cfg.seq_len);
    return status;
}

/* Results come from many calls, so they are collected before any is written. */
static nsa_status run_decode(run *r) {
    nsa_setup setup = {.flags = NSA_DECODE | NSA_WANT_BRANCHES};
    nsa_tensors results = {0};
    decode_counts counts = {0};
    if (r->input.in.at[NSA_ROWS].dtype)
        return nsa_fail(NSA_ERR_INPUT, "%s/rows.npy: --decode computes every row, expected none",
                        r->options->input);
    nsa_status status = nsa_open(r->stage.stage, &r->input.cfg, &setup, &r->ctx);
    if (!status)
        status =
            decode_case(r->ctx, &r->input.in, r->options->decode, 0, &r->bar, &results, &counts);
    progress_phase(&r->bar, "writing");
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        if (results.at[id].dtype)
            status = output_add(&r->output, (nsa_id)id, &results.at[id]);
    }
    decode_free(&results);
    snprintf(r->summary, sizeof r->summary, "prefill of %" PRId64 ", decode of %" PRId64 " tokens",
             counts.prefilled, counts.decoded);
    return status;
}

/* Print one query instead of writing results. */
static nsa_status run_explain(run *r) {
    const run_options *options = r->options;
    explanation e = {
        .input = &r->input, .stage = &r->stage, .t = options->explain, .kv_head = options->kv_head};
    nsa_status status = nsa_find_stage(options->stages, options->stage, &r->stage);
    progress_phase(&r->bar, "reading");
    status = status ? status : case_folder_read(options->input, &r->input);
    progress_phase(&r->bar, "forward");
    status = status ? status : explain_query(&e);
    progress_end(&r->bar);
    if (!status)
        explain_print(&e);
    explain_free(&e);
    return status;
}

/* Check what is cheap first: the output, the stage, then the tensors. */
static nsa_status run_case(run *r) {
    const run_options *options = r->options;
    nsa_status status = output_check(&r->output, options->output, options->input);
    status = status ? status : nsa_find_stage(options->stages, options->stage, &r->stage);
    progress_phase(&r->bar, "reading");
    status = status ? status : case_folder_read(options->input, &r->input);
    if (!status)
        status = options->decode == FORWARD_ONLY ? run_forward(r) : run_decode(r);
    return status ? status : output_publish(&r->output);
}

/* Print the closing line. Names may contain any bytes. */
static void say_done(const run *r) {
    const char *to = r->options->output;
    char stage[TEXT_SHOWN], folder[PATH_MAX];
    printf("%s: %s: %d arrays written to %s\n",
           text_show(stage, sizeof stage, r->stage.name, strlen(r->stage.name)), r->summary,
           r->output.count, text_show(folder, sizeof folder, to, strlen(to)));
}

/* ----------------------------------------------------------------- the command */

static const struct argp_option known[] = {
    {"stage", 's', "NAME", 0, "Stage by name, number (\"01\") or path of its .so", 0},
    {"input", 'i', "DIR", 0, "Case folder: config.json and a .npy per input", 0},
    {"output", 'o', "DIR", 0, "Folder for the results, created if necessary", 0},
    {"decode", 'd', "P", 0, "Prefill P tokens of each sequence, decode the others", 0},
    {"explain", 'e', "T[,HEAD]", 0,
     "Print the query at position T step by step, for one kv head (0); writes no files", 0},
    {"stages", 'S', "DIR", 0, "Folder of the stages' NN_name.so", 0},
    {0}};

static const char doc[] =
    "Run one stage on a folder of inputs and write its results as .npy files."
    "\v"
    "Without --decode: out, out_cmp, out_slc, out_win, block_idx, importance, k_phi and v_phi; if "
    "the input has dout.npy, every gradient too; if it has rows.npy, those rows alone.\n\n"
    "With --decode P: out, out_cmp, out_slc, out_win and block_idx of every token, the first P of "
    "each sequence by prefill, the others one by one. dout.npy is not used then, and rows.npy is "
    "an error.\n\n"
    "With --explain T: the compressed tokens, scores, probabilities, importance, selected blocks, "
    "branches and output of one query, in the order of docs/specification.md. What the stage "
    "returned is compared with the same computed once more; a difference is an error. It needs a "
    "stage in float64, such as 00, and a case of one sequence; dout.npy and rows.npy are not "
    "used.\n\n"
    "Results are written whole or not at all; they replace those of an earlier run in the same "
    "folder. One run at a time may write into a folder; where the file system has no locks, two "
    "runs are not kept apart.";

int cmd_run(int argc, char **argv) {
    static const struct argp argp = {.options = known, .parser = parse, .doc = doc};
    run_options options = {.decode = FORWARD_ONLY, .explain = NOTHING};
    int code = command_parse(&argp, 0, argc, argv, NULL, &options);
    if (code)
        return code;
    run r = {.options = &options, .bar = progress_begin(argv[0])};
    const int explains = options.explain != NOTHING;
    nsa_status status = explains ? run_explain(&r) : run_case(&r);
    progress_end(&r.bar);
    /* A full disk is a failed run, a bad path is wrong usage; both are NSA_ERR_IO. */
    if (status && r.output.broken)
        code = command_error(EXIT_FAILED, argv[0], "%s", nsa_last_error());
    else if (status)
        code = command_status(status, argv[0]);
    else if (!explains)
        say_done(&r);
    output_discard(&r.output);
    nsa_close(r.ctx);
    nsa_free_stage(&r.stage);
    case_folder_free(&r.input);
    return code;
}
