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

/** List all trials for a stage; the quick ones alone leave out what takes long.
 *  @param property_name  only this property; NULL for all
 *  @param case_text      only this case, which need not be of the list; NULL for all
 *  @param[out] list      to be freed
 *  @param[out] count     how many */
nsa_status suite_list(const subject *s, int quick, const char *property_name, const char *case_text,
                      trial **list, size_t *count);

/** Judge one trial. A crash or a hang of more than `seconds` ends the program with the replay line.
 *  @param[out] why  what was wrong, or why it was skipped, with the replay line */
verdict suite_run(const subject *s, const trial *t, unsigned seconds, char *why, size_t room);

#endif
