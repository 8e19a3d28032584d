/**
 * @file suite.h
 * @brief Every property on every case that it applies to, for Criterion and for `nsa check`.
 */
#ifndef HARNESS_SUITE_H
#define HARNESS_SUITE_H

#include "harness/properties.h"

/** One property on one case. */
typedef struct trial {
    const property *property; /**< what must hold */
    const char *text;         /**< the case string */
} trial;

/** How a trial ended. */
typedef enum verdict { PASSED, FAILED, SKIPPED } verdict;

/** The outcome of a trial. */
typedef struct outcome {
    verdict verdict; /**< passed, failed or skipped */
    part_set passed; /**< parts that passed */
    part_set failed; /**< parts that failed */
    double seconds;  /**< how long it took */
    char why[2900];  /**< "" if it passed; the reason if it was skipped; else findings.why, the seed
                        and the replay line */
} outcome;

/** List all trials for a stage.
 *  @param s              the stage that is judged
 *  @param quick          1 leaves out the long cases
 *  @param property_name  only this property; NULL for all
 *  @param case_text      only this case, which need not be listed; NULL for all
 *  @param[out] list      to be freed
 *  @param[out] count     how many; 0 is not an error */
nsa_status suite_list(const subject *s, int quick, const char *property_name, const char *case_text,
                      trial **list, size_t *count);

/** @return the optional functions that the stage lacks: "backward, prefill, decode"; "" if
 * nothing. */
const char *suite_missing(const nsa_stage *stage);

/** @return the property of that name, NULL if there is none. */
const property *suite_property(const char *name);

/** @return the parts that a property judges, without those that the stage lacks. */
part_set suite_parts(const nsa_stage *stage, const property *p);

/** Exit codes of a program that a trial ended, if suite_ends_with is 1; otherwise the code is 1. */
enum { SUITE_CRASH = 101, SUITE_HANG = 102, SUITE_EXIT = 103 };
/** 1 to use a separate exit code for a crash, a hang and an exit. */
extern int suite_ends_with;

/** Ask a stage whether it can run here. If it crashes, hangs or exits, the program ends. Only a
 * stage on a device may be unavailable; any other stage that says so has failed. */
nsa_status suite_available(const nsa_stage *stage, const char *name);

/** Judge one trial, or skip it. Skipping is decided before any call of the stage, from what its
 * table lacks and what this program cannot judge. A crash or a hang ends the program and prints
 * the replay line.
 *  @param s        the stage that is judged
 *  @param t        the property and the case
 *  @param seconds  more than this is a hang
 *  @param[out] o   how it ended */
void suite_run(const subject *s, const trial *t, unsigned seconds, outcome *o);

/** Format the line that runs a trial of property `name` again: "replay: build/nsa check --stage
 * ...\n". */
void suite_replay(const char *stage, const char *name, const char *text, char *line,
                  size_t capacity);

#endif
