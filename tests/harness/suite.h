/**
 * @file suite.h
 * @brief Every property on every case it is for: what Criterion and `nsa check` both run.
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

/** A trial's end, and what it found out. */
typedef struct outcome {
    verdict verdict; /**< what came of it */
    part_set passed; /**< parts that passed */
    part_set failed; /**< parts that failed */
    double seconds;  /**< how long it took */
    char why[2900];  /**< "" if it passed; why it was skipped; or findings.why, seed, replay line */
} outcome;

/** List all trials for a stage; the quick ones alone leave out what takes long.
 *  @param property_name  only this property; NULL for all
 *  @param case_text      only this case, which need not be of the list; NULL for all
 *  @param[out] list      to be freed
 *  @param[out] count     how many; none is no error */
nsa_status suite_list(const subject *s, int quick, const char *property_name, const char *case_text,
                      trial **list, size_t *count);

/** @return what the stage's table leaves out: "backward, prefill, decode"; "" if nothing. */
const char *suite_missing(const nsa_stage *stage);

/** @return the property of that name, NULL if there is none. */
const property *suite_property(const char *name);

/** @return the parts that a property is about, without those that the stage leaves out. */
part_set suite_parts(const nsa_stage *stage, const property *p);

/** Exit codes of a program that a trial ended, where suite_ends_with is 1; else it is always 1. */
enum { SUITE_CRASH = 101, SUITE_HANG = 102, SUITE_EXIT = 103 };
/** 1 if the exit code shall tell how a trial ended the program. */
extern int suite_ends_with;

/** Ask a stage whether it can run here. One that crashes, hangs or exits ends the program. A stage
 * on a device may be unavailable on a machine; any other that says so has failed. */
nsa_status suite_available(const nsa_stage *stage, const char *name);

/** Judge one trial, or skip it: decided before any call of the stage, from what its table leaves
 * out and what this program cannot judge. A crash or a hang of more than `seconds` ends the program
 * with the replay line.
 *  @param[out] o  how it ended */
void suite_run(const subject *s, const trial *t, unsigned seconds, outcome *o);

/** The line that runs a trial of property `name` again: "replay: build/nsa check --stage ...\n". */
void suite_replay(const char *stage, const char *name, const char *text, char *line,
                  size_t capacity);

#endif
