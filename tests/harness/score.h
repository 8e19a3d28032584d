/**
 * @file score.h
 * @brief The score of a stage: for each part, in how many trials it passed, and the first failure.
 */
#ifndef HARNESS_SCORE_H
#define HARNESS_SCORE_H

#include "harness/suite.h"

#include <stdio.h>

/** One part's count. */
typedef struct part_score {
    size_t passed;    /**< trials in which the part passed */
    size_t judged;    /**< trials in which it was judged */
    size_t skipped;   /**< skipped trials that would have judged it */
    char first[1200]; /**< the first failure and its replay line; or why trials were skipped */
} part_score;

/** One stage's count. */
typedef struct score {
    part_score part[PART_COUNT]; /**< by part */
} score;

/** Count one trial. */
void score_add(score *sum, const property *of, const char *text, const outcome *o);

/** Print one line for each part, and below it the first failure. */
void score_print(FILE *to, const char *stage, const score *sum);

/** @return "3 of 12", or "skipped"; lives until the next call. */
const char *score_text(const part_score *p);

#endif
