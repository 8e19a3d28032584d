/**
 * @file cases.h
 * @brief The cases that every stage is judged on.
 */
#ifndef HARNESS_CASES_H
#define HARNESS_CASES_H

/** QUICK: `make test` runs it too. PATH: on the simulator, which is slow, the SAMPLED properties
 * take these cases alone: each has a compressor, a head width, a group size, a way in which
 * selection blocks meet memory blocks, or an edge of its own. */
enum { QUICK = 1, PATH = 2 };

/** A case of the list. */
typedef struct listed_case {
    const char *text; /**< its string */
    int marks;        /**< QUICK | PATH, or 0 */
} listed_case;

/** The cases. */
extern const listed_case cases[];
/** How many. */
extern const int case_count;

#endif
