/**
 * @file cases.h
 * @brief The list of cases that every stage is judged on.
 */
#ifndef HARNESS_CASES_H
#define HARNESS_CASES_H

/** QUICK: `make test` runs it too. PATH: the simulator is slow, so there the SAMPLED properties run
 * only these cases. Each has a compressor, a head width, a group size, an alignment of selection
 * blocks to memory blocks, or an edge that no other of them has. */
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
