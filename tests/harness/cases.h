/**
 * @file cases.h
 * @brief The cases that every stage is judged on.
 */
#ifndef HARNESS_CASES_H
#define HARNESS_CASES_H

/** A case of the list. */
typedef struct listed_case {
    const char *text; /**< its string */
    int quick;        /**< 1 if `make test` runs it too */
} listed_case;

/** The cases. */
extern const listed_case cases[];
/** How many. */
extern const int case_count;

#endif
