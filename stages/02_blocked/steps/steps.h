/** @file
 *  @brief What main.c and the chains share. A chain goes from what stage 01 does to what stage 02
 *  does in small steps, for one part of the operator: a folder, and in it numbered files.
 *
 *  Read a chain's problem.h, then its steps in order: `make diff A=02/attend/0 B=02/attend/1`, and
 *  so on. Each step is complete for its part and changes one thing, or names the steps of the
 *  chain attend that it repeats.
 */
#ifndef STEPS_H
#define STEPS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float real;

enum { BLOCK = 64 }; /* keys of a block: the l' of selection, and a block in memory */

/* Every chain's random numbers begin with random_seed(SEED). */
#define SEED "steps of 02_blocked"

/* CHAIN/problem.c defines chain_CHAIN. steps.mk finds the folders and names them to main.c. */
typedef struct chain {
    const char *name;        /* the folder's */
    const char *const *what; /* [n_steps] what the step changes, a few words each */
    int n_steps;
    int64_t default_T;
    void (*make)(int64_t T); /* the problem, inputs from SEED: allocates and fills */
    void (*run)(int step);
    /* All results of the last run in one array. main.c fills it with NaN before a run that it
     * checks: a run writes every element, and reads none that it has not written. */
    real *(*result)(int64_t *count);
    /* Rows of the last run against the same rows computed in float64: rms of the differences over
     * rms of the rows. */
    double (*error)(void);
    void (*free)(void); /* after it, make() may be called again */
} chain;

extern const chain chain_attend, chain_backward, chain_decode;

/* inputs.c: zeroed memory on a cache line, which release() frees, all of it; no memory ends the
 * program. */
void *allocate(int64_t count, size_t size);
void release(void);
/* n normal numbers, none of them 0: a product with 0 would hide a wrong factor */
real *draw(int64_t n, uint64_t *random);
/* idx [count] of a query at position t: its own block and count-1 earlier ones, each choice as
 * likely as any other, ascending; -1 after the last */
void draw_blocks(int32_t *idx, int64_t count, int64_t t, uint64_t *random);
/* x [T,D] in blocks of BLOCK rows: each transposed, [D,BLOCK], or as it is, [BLOCK,D]. Rows after
 * the last are NaN: nothing may come of them. */
real *transposed_blocks(const real *x, int64_t T, int64_t D);
real *natural_blocks(const real *x, int64_t T, int64_t D);

/* rms(x - reference) / rms(reference); NaN if either holds one */
double relative_rms(const real *x, const double *reference, int64_t n);

#endif
