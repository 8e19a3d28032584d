/** @file suite.c
 *  @brief The table of properties, and running a trial so that a crash or a hang names itself. */
#include "harness/suite.h"
#include "harness/cases.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --------------------------------------------------- which cases a property is for */

static int plain(const test_case *c) {
    return !c->rows;
}

static int any_case(const subject *s, const test_case *c) {
    (void)s, (void)c;
    return 1;
}

static int all_rows(const subject *s, const test_case *c) {
    (void)s;
    return plain(c);
}

static int unforced(const subject *s, const test_case *c) {
    (void)s;
    return plain(c) && strcmp(c->vector, "forced_index") != 0;
}

static int is_vector(const subject *s, const test_case *c) {
    (void)s;
    return c->vector[0] != 0;
}

/* Each loss is a whole forward, so only small cases; and only what is exact enough to differ. */
static int small_float64(const subject *s, const test_case *c) {
    return s->stage->arith == NSA_FLOAT64 && plain(c) && c->cfg.seq_len <= 64 && !c->vector[0];
}

static int is_pack(const subject *s, const test_case *c) {
    (void)s;
    return plain(c) && case_sequences(c) > 1;
}

static int one_sequence(const subject *s, const test_case *c) {
    return unforced(s, c) && case_sequences(c) == 1 && c->cfg.seq_len > 2;
}

/* Rows for every thread; the other dims are other properties' business. */
static int many_tiles(const subject *s, const test_case *c) {
    return unforced(s, c) && c->cfg.seq_len >= 97 && c->cfg.slc_block == 16 &&
           c->cfg.kv_heads == 2 && c->cfg.qk_dim == 8;
}

/* Moving a value must move the row: its probability must not underflow. */
static int countable(const subject *s, const test_case *c) {
    return one_sequence(s, c) && !c->vector[0] && c->data == DATA_NORMAL &&
           c->cfg.phi == NSA_PHI_MEAN && c->cfg.seq_len >= c->cfg.cmp_block && c->cfg.seq_len < 140;
}

static int is_bad_input_case(const subject *s, const test_case *c) {
    (void)s;
    return c->cfg.phi == NSA_PHI_GATED && c->cfg.seq_len == 100 && !c->seqs && plain(c);
}

static int is_bad_config_case(const subject *s, const test_case *c) {
    (void)s;
    return c->cfg.seq_len == 100 && !c->seqs && plain(c) && c->cfg.cmp_block == 8 &&
           c->cfg.cmp_stride == 4 && c->cfg.slc_block == 16 && c->cfg.slc_init == 1 &&
           c->cfg.slc_local == 2 && c->cfg.kv_heads == 2 && c->cfg.phi == NSA_PHI_MEAN;
}

const property properties[] = {
    {"bad_config", "every rule of a config, broken, is an error that names it", is_bad_config_case,
     judge_bad_config},
    {"bad_input", "wrong tensors and calls out of order are errors", is_bad_input_case,
     judge_bad_input},
    {"vector", "results are those of an independent program", is_vector, judge_vector},
    {"forward", "outputs, importance and selection are the oracle's", any_case, judge_forward},
    {"branches", "a one-hot gate gives that branch alone", any_case, judge_branches},
    {"forced", "forced block lists are used, in any order, with holes", any_case, judge_forced},
    {"limits", "a branch that sees everything is dense causal attention", any_case, judge_limits},
    {"rows", "sampled rows are the rows of the whole", all_rows, judge_rows},
    {"backward", "every gradient is the oracle's; dgate = <dout, out_branch>", any_case,
     judge_backward},
    {"differences", "central differences confirm every gradient", small_float64, judge_differences},
    {"decode", "prefill and decode give the rows of the forward", unforced, judge_decode},
    {"reads", "a query reads exactly the tokens that the operator says", countable, judge_reads},
    {"causality", "a later token changes no earlier row, bitwise", one_sequence, judge_causality},
    {"packing", "packed sequences never see each other", is_pack, judge_packing},
    {"nan", "NaN and Inf reach only rows whose branch may touch them", unforced, judge_nan},
    {"nan_order", "NaN importance ranks below every number, then by index", one_sequence,
     judge_nan_order},
    {"repeat", "the same call gives the same bits, whatever ran before", all_rows, judge_repeat},
    {"threads", "1, 2, 3 and 7 threads give the same rows, and each the same gradients twice",
     many_tiles, judge_threads},
    {"no_malloc", "no call allocates", all_rows, judge_no_malloc},
};

const int property_count = sizeof properties / sizeof properties[0];

/* ------------------------------------------------------------------ listing */

static nsa_status add_trials(const subject *s, const char *property_name, const char *text,
                             trial *list, size_t *count) {
    test_case c;
    nsa_status status = case_parse(text, &c);
    for (int p = 0; p < property_count && !status; p++) {
        if (property_name && strcmp(property_name, properties[p].name) != 0)
            continue;
        if (properties[p].applies(s, &c))
            list[(*count)++] = (trial){&properties[p], text};
    }
    return status;
}

static int known_property(const char *name) {
    for (int p = 0; p < property_count; p++) {
        if (!strcmp(name, properties[p].name))
            return 1;
    }
    return 0;
}

nsa_status suite_list(const subject *s, int quick, const char *property_name, const char *case_text,
                      trial **list, size_t *count) {
    nsa_status status = NSA_OK;
    *count = 0;
    *list = NULL;
    if (property_name && !known_property(property_name))
        return nsa_fail(NSA_ERR_INPUT, "no property \"%s\"", property_name);
    *list = calloc((size_t)property_count * ((size_t)case_count + 1), sizeof **list);
    if (!*list)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for the list of trials");
    for (int i = 0; i < case_count && !case_text && !status; i++) {
        if (!quick || cases[i].quick)
            status = add_trials(s, property_name, cases[i].text, *list, count);
    }
    if (case_text)
        status = add_trials(s, property_name, case_text, *list, count);
    if (!status && !*count)
        status = nsa_fail(NSA_ERR_INPUT, "no property%s%s is for that case",
                          property_name ? " named " : "", property_name ? property_name : "");
    if (status) {
        free(*list);
        *list = NULL;
    }
    return status;
}

/* ------------------------------------------------------------------ running */

/* The line that a signal handler writes: made before the trial, for it may call nothing then. */
static char replay[640];

static void die(int signal_number) {
    const char *what = signal_number == SIGALRM ? "\nHANG: " : "\nCRASH: ";
    if (write(STDERR_FILENO, what, strlen(what)) < 0 ||
        write(STDERR_FILENO, replay, strlen(replay)) < 0)
        _exit(1);
    _exit(1);
}

static void watch(int on) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM};
    for (int i = 0; i < 6; i++)
        signal(signals[i], on ? die : SIG_DFL);
}

verdict suite_run(const subject *s, const trial *t, unsigned seconds, char *why, size_t room) {
    test_case c;
    snprintf(replay, sizeof replay,
             "replay: build/nsa check --stage %s --property %s --case \"%s\"\n", s->name,
             t->property->name, t->text);
    watch(1);
    alarm(seconds);
    nsa_status status = case_parse(t->text, &c);
    status = status ? status : t->property->judge(s, &c);
    alarm(0);
    watch(0);
    why[0] = 0;
    if (status)
        snprintf(why, room, "%s: %s (seed %llu)\n%s", t->property->name, nsa_last_error(),
                 (unsigned long long)c.seed, replay);
    return status == NSA_OK ? PASSED : status == NSA_ERR_UNSUPPORTED ? SKIPPED : FAILED;
}
