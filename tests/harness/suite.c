/** @file suite.c
 *  @brief The table of properties, and running trials: a crash or a hang prints the replay line. */
#include "harness/suite.h"
#include "harness/cases.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* --------------------------------------------------- which cases a property applies to */

static int all_rows_wanted(const test_case *c) {
    return !c->rows;
}

static int any_case(const subject *s, const test_case *c) {
    (void)s, (void)c;
    return 1;
}

static int all_rows(const subject *s, const test_case *c) {
    (void)s;
    return all_rows_wanted(c);
}

/* A device's stage makes all calls five times and more: short texts are enough. */
static int all_rows_once(const subject *s, const test_case *c) {
    return all_rows_wanted(c) && (!s->stage->device || c->cfg.seq_len <= 66);
}

static int unforced(const subject *s, const test_case *c) {
    (void)s;
    return all_rows_wanted(c) && strcmp(c->vector, "forced_index") != 0;
}

static int is_vector(const subject *s, const test_case *c) {
    (void)s;
    return c->vector[0] != 0;
}

/* Each value of the loss is a forward, so only small cases; differences need float64. */
static int small_float64(const subject *s, const test_case *c) {
    return s->stage->arith == NSA_FLOAT64 && all_rows_wanted(c) && c->cfg.seq_len <= 64 &&
           !c->vector[0];
}

static int is_pack(const subject *s, const test_case *c) {
    (void)s;
    return all_rows_wanted(c) && case_sequences(c) > 1;
}

static int one_sequence(const subject *s, const test_case *c) {
    return unforced(s, c) && case_sequences(c) == 1 && c->cfg.seq_len > 2;
}

/* Some branch sees every key, or the stage has plain causal attention. */
static int has_limit(const subject *s, const test_case *c) {
    int dense[3];
    limits_of(c, dense);
    return s->stage->causal || dense[0] || dense[1] || dense[2];
}

/* Enough rows for every thread; one shape of heads is enough here. */
static int many_tiles(const subject *s, const test_case *c) {
    return unforced(s, c) && c->cfg.seq_len >= 97 && c->cfg.slc_block == 16 &&
           c->cfg.kv_heads == 2 && c->cfg.qk_dim == 8;
}

/* Changing a value must change the row, so its probability must not underflow. */
static int countable(const subject *s, const test_case *c) {
    return one_sequence(s, c) && !c->vector[0] && c->data == DATA_NORMAL &&
           c->cfg.phi == NSA_PHI_MEAN && c->cfg.seq_len >= c->cfg.cmp_block && c->cfg.seq_len < 140;
}

/* Finite compressed tokens, and enough tokens for several. */
static int has_several_compressed(const subject *s, const test_case *c) {
    return unforced(s, c) && !c->vector[0] && c->data == DATA_NORMAL && c->cfg.seq_len <= 200 &&
           case_length(c, 0) >= c->cfg.cmp_block && case_max_len(c) >= 2 * c->cfg.cmp_block;
}

/* A few dozen tokens, any pack. */
static int short_case(const subject *s, const test_case *c) {
    (void)s;
    return c->cfg.seq_len <= 70;
}

static int short_on_device(const subject *s, const test_case *c) {
    return s->stage->calls && short_case(s, c);
}

static int steps_on_device(const subject *s, const test_case *c) {
    return s->stage->calls && one_sequence(s, c) && c->cfg.seq_len >= 5 && c->cfg.seq_len <= 70;
}

static int is_bad_input_case(const subject *s, const test_case *c) {
    (void)s;
    return c->cfg.phi == NSA_PHI_GATED && c->cfg.seq_len == 100 && !c->seqs && all_rows_wanted(c);
}

static int is_bad_config_case(const subject *s, const test_case *c) {
    (void)s;
    return c->cfg.seq_len == 100 && !c->seqs && all_rows_wanted(c) && c->cfg.cmp_block == 8 &&
           c->cfg.cmp_stride == 4 && c->cfg.slc_block == 16 && c->cfg.slc_init == 1 &&
           c->cfg.slc_local == 2 && c->cfg.kv_heads == 2 && c->cfg.phi == NSA_PHI_MEAN;
}

/* properties.h explains the columns. */
const property properties[] = {
    {"bad_config", "every rule of a config, broken, is an error that names it", PART(ERRORS),
     NEEDS_NOTHING, is_bad_config_case, judge_bad_config, NULL},
    {"bad_input", "wrong tensors and calls out of order are errors", PART(ERRORS), NEEDS_NOTHING,
     is_bad_input_case, judge_bad_input, NULL},
    {"bad_device", "a device tensor or stream that is none is an error", PART(ERRORS),
     NEEDS_NOTHING, is_bad_input_case, judge_bad_device, NULL},
    {"vector", "results are those of an independent program", PARTS_FORWARD | PARTS_BACKWARD,
     NEEDS_NOTHING, is_vector, judge_vector, NULL},
    {"forward", "outputs, importance and selection are the oracle's", PARTS_FORWARD, NEEDS_NOTHING,
     any_case, judge_forward, NULL},
    {"branches", "a one-hot gate gives that branch alone", PART(GATE), SAMPLED, any_case,
     judge_branches, NULL},
    {"forced", "forced block lists are used, in any order, with holes",
     (PARTS_FORWARD & ~PART(COMPRESS)) | PARTS_BACKWARD, NEEDS_NOTHING, any_case, judge_forced,
     NULL},
    {"limits", "a branch that sees everything is dense causal attention",
     PART(CMP) | PART(SLC) | PART(WIN) | PART(CAUSAL), SAMPLED, has_limit, judge_limits, NULL},
    {"rows", "sampled rows are the rows of the whole", PART(ROWS), SAMPLED, all_rows, judge_rows,
     NULL},
    {"backward", "every gradient is the oracle's; dgate = <dout, out_branch>", PARTS_BACKWARD,
     NEEDS_BACKWARD, any_case, judge_backward, NULL},
    {"differences", "central differences confirm every gradient", PARTS_BACKWARD, NEEDS_BACKWARD,
     small_float64, judge_differences, NULL},
    {"decode", "prefill and decode give the rows of the forward", PART(DECODE), NEEDS_PREFILL,
     unforced, judge_decode, NULL},
    {"reads", "a query reads exactly the tokens that the operator says",
     PART(CMP) | PART(SLC) | PART(WIN), SAMPLED, countable, judge_reads, NULL},
    {"causality", "a later token changes no earlier row, bitwise", PART(CAUSALITY), SAMPLED,
     one_sequence, judge_causality, NULL},
    {"packing", "packed sequences never see each other", PART(PACKING), NEEDS_NOTHING, is_pack,
     judge_packing, NULL},
    {"nan", "NaN and Inf reach only rows whose branch may touch them", PART(NAN), SAMPLED, unforced,
     judge_nan, NULL},
    {"nan_order", "NaN importance ranks below every number, then by index", PART(SELECT), SAMPLED,
     one_sequence, judge_nan_order, NULL},
    {"equal", "equal tokens are compressed to equal bits, in any load and in a decode step",
     PART(COMPRESS), SAMPLED, has_several_compressed, judge_equal, NULL},
    {"repeat", "the same call gives the same bits, whatever ran before", PART(REPEAT), SAMPLED,
     all_rows, judge_repeat, NULL},
    {"bfloat16", "bfloat16 tensors give the bits of float32 ones", PART(TENSORS), SAMPLED,
     short_case, judge_bfloat16, NULL},
    {"device", "tensors on the device give the bits of the host's", PART(TENSORS), SAMPLED,
     short_on_device, judge_device, NULL},
    {"graph", "load, passes and reads launched as a graph give the same bits", PART(TENSORS),
     SAMPLED, short_on_device, judge_graph, NULL},
    {"graph_step", "a decode step launched as a graph gives the same bits, and fills no full slot",
     PART(TENSORS), NEEDS_PREFILL | SAMPLED, steps_on_device, judge_graph_step, NULL},
    {"threads", "1, 2, 3 and 7 threads give the same rows, and each the same gradients twice",
     PART(REPEAT), NEEDS_NOTHING, many_tiles, judge_threads, threads_cannot},
    {"no_malloc", "no call allocates", PART(MEMORY), NEEDS_NOTHING, all_rows_once, judge_no_malloc,
     no_malloc_cannot},
};

const int property_count = sizeof properties / sizeof properties[0];

/* ------------------------------------------------------------------ listing */

static int on_simulator(const nsa_stage *stage) {
    return stage->device && !strcmp(stage->device(), "simulator");
}

/* Add the trials of one case; without `all`, not those of SAMPLED properties. */
static nsa_status add_trials(const subject *s, const char *property_name, const char *text, int all,
                             trial *list, size_t *count) {
    test_case c;
    nsa_status status = case_parse(text, &c);
    for (int p = 0; p < property_count && !status; p++) {
        if (property_name && strcmp(property_name, properties[p].name) != 0)
            continue;
        if (!all && (properties[p].flags & SAMPLED))
            continue;
        if (properties[p].applies(s, &c))
            list[(*count)++] = (trial){&properties[p], text};
    }
    return status;
}

const property *suite_property(const char *name) {
    for (int p = 0; p < property_count; p++) {
        if (!strcmp(name, properties[p].name))
            return &properties[p];
    }
    return NULL;
}

nsa_status suite_list(const subject *s, int quick, const char *property_name, const char *case_text,
                      trial **list, size_t *count) {
    nsa_status status = NSA_OK;
    *count = 0;
    *list = NULL;
    if (property_name && !suite_property(property_name))
        return nsa_fail(NSA_ERR_INPUT, "no property \"%s\"", property_name);
    *list = calloc((size_t)property_count * ((size_t)case_count + 1), sizeof **list);
    if (!*list)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for the list of trials");
    const int simulated = on_simulator(s->stage);
    for (int i = 0; i < case_count && !case_text && !status; i++) {
        if (!quick || (cases[i].marks & QUICK))
            status = add_trials(s, property_name, cases[i].text,
                                !simulated || (cases[i].marks & PATH), *list, count);
    }
    if (case_text)
        status = add_trials(s, property_name, case_text, 1, *list, count);
    if (status) {
        free(*list);
        *list = NULL;
    }
    return status;
}

/* ------------------------------------------------------------------ running */

/* Why a trial is skipped; NULL: it is not. */
static const char *skip_reason(const subject *s, const property *p) {
    if ((p->flags & NEEDS_BACKWARD) && !s->stage->backward)
        return "the stage has no backward";
    if ((p->flags & NEEDS_PREFILL) && !s->stage->prefill)
        return "the stage has no prefill";
    return p->cannot ? p->cannot(s) : NULL;
}

const char *suite_missing(const nsa_stage *stage) {
    static char text[40];
    snprintf(text, sizeof text, "%s%s%s", stage->backward ? "" : ", backward",
             stage->prefill ? "" : ", prefill", stage->decode ? "" : ", decode");
    return *text ? text + 2 : text;
}

void suite_replay(const char *stage, const char *name, const char *text, char *line,
                  size_t capacity) {
    snprintf(line, capacity, "replay: build/nsa check --stage %s --property %s --case \"%s\"\n",
             stage, name, text);
}

part_set suite_parts(const nsa_stage *stage, const property *p) {
    return p->parts & ~(stage->backward ? 0 : PARTS_BACKWARD) & ~(stage->causal ? 0 : PART(CAUSAL));
}

/* The replay line, formatted before the trial: a signal handler may not call snprintf(). */
static char replay[640];
static pid_t judging; /* the process that runs a trial; 0: none */

int suite_ends_with = 0;

static void end_program(const char *what, int code) {
    judging = 0;
    if (write(STDERR_FILENO, what, strlen(what)) < 0 ||
        write(STDERR_FILENO, replay, strlen(replay)) < 0)
        _exit(1);
    _exit(suite_ends_with ? code : 1);
}

static void handle_signal(int signal_number) {
    if (signal_number == SIGALRM)
        end_program("\nHANG: ", SUITE_HANG);
    end_program("\nCRASH: ", SUITE_CRASH);
}

/* A stage that calls exit(), even with 0, has failed. */
static void handle_exit(void) {
    if (judging && judging == getpid())
        end_program("\nEXIT: ", SUITE_EXIT);
}

/* atexit() does not see _exit(): these stand in for glibc's, for stages too, since they are
 * exported. A process that a stage has forked may end. */
#define TAKES_OVER __attribute__((visibility("default")))

/* NOLINTBEGIN(*-reserved-identifier, *-declaration-parameter-name): glibc's names, not ours */
TAKES_OVER void _exit(int code) {
    handle_exit();
    for (;;)
        syscall(SYS_exit_group, code);
}

TAKES_OVER void _Exit(int code) {
    _exit(code);
}
/* NOLINTEND(*-reserved-identifier, *-declaration-parameter-name) */

/* The handler needs its own stack: after too deep a recursion the normal one is full. */
static void catch_signals(int on) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM};
    static char stack[65536];
    static int registered;
    struct sigaction action = {.sa_flags = SA_ONSTACK};
    action.sa_handler = on ? handle_signal : SIG_DFL;
    if (!registered++) {
        const stack_t alt_stack = {.ss_sp = stack, .ss_size = sizeof stack};
        sigaltstack(&alt_stack, NULL);
        atexit(handle_exit);
        at_quick_exit(handle_exit);
    }
    for (int i = 0; i < 6; i++)
        sigaction(signals[i], &action, NULL);
    judging = on ? getpid() : 0;
}

nsa_status suite_available(const nsa_stage *stage, const char *name) {
    snprintf(replay, sizeof replay, "stage %s, asked whether it can run here\n", name);
    catch_signals(1);
    const nsa_status status = stage->available();
    catch_signals(0);
    return status;
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void suite_run(const subject *s, const trial *t, unsigned seconds, outcome *o) {
    test_case c;
    findings f;
    const char *reason = skip_reason(s, t->property);
    memset(o, 0, sizeof *o);
    if (reason) {
        o->verdict = SKIPPED;
        snprintf(o->why, sizeof o->why, "%s", reason);
        return;
    }
    suite_replay(s->name, t->property->name, t->text, replay, sizeof replay);
    const double begin = seconds_now();
    catch_signals(1);
    alarm(seconds);
    parts_begin();
    nsa_status status = case_parse(t->text, &c);
    status = status ? status : t->property->judge(s, &c);
    o->verdict = parts_end(suite_parts(s->stage, t->property), status, &f) ? PASSED : FAILED;
    alarm(0);
    catch_signals(0);
    o->seconds = seconds_now() - begin;
    o->passed = f.passed;
    o->failed = f.failed;
    if (o->verdict == FAILED)
        snprintf(o->why, sizeof o->why, "%s(seed %llu)\n%s", f.why, (unsigned long long)c.seed,
                 replay);
}
