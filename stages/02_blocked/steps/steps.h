/** @file
 *  @brief From stage 01's attend to stage 02's in five moves: what the steps of the chain `attend`
 *  share. Read them in order: `make diff A=02/attend/0 B=02/attend/1`, and so on; each changes one
 *  thing.
 *
 *  The problem of every step is the selected branch of one KV head: the query at position t has G
 *  heads, which all see the tokens s <= t of the same n blocks of 64 (Eq. 12):
 *
 *      o_tg = sum_s p_s v_s,   p = softmax_s(scale q_tg.k_s)
 */
#ifndef STEPS_H
#define STEPS_H

#include "tile.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float real;

enum {
    BLOCK = 64,  /* keys of a block: the l' of selection, and a block in memory */
    QUERIES = 32 /* neighbouring queries that walk the blocks together (step 5) */
};

/* The keys 0..hi-1 of one block. Stage 02 has a lo too: a window may begin inside a block, a
 * selection never does. */
typedef struct span {
    int32_t block, hi;
} span;

/* One thread's scratch. Only step 5 uses that of more than one thread. */
typedef struct work {
    int32_t *list; /* [n*BLOCK] the tokens that a query sees (step 0) */
    span *spans;   /* [QUERIES*n] the same as spans; query after query in step 5 */
    int64_t *at;   /* [QUERIES] each query's next span (step 5) */
    int64_t *end;  /* [QUERIES] and the end of its spans */
    real *p;       /* [G,n*BLOCK] scores, then probabilities (steps 0 to 2) */
    real *s;       /* [G,BLOCK] the same, of one block (steps 3 to 5) */
    real *most;    /* [QUERIES,G] the largest score so far */
    real *sum;     /* [QUERIES,G,LANES] sums of exponentials; steps 2 and 3 use [G] of it */
} work;

/* Two copies of the keys and values, of which a step reads one. main.c makes both, as `load` does
 * in a stage: laying them out is paid once and is no part of a step's time. */
typedef struct problem {
    int64_t T, G, D,
        n;             /* tokens, heads of the group, head dimension (whole LANES), blocks picked */
    real scale;        /* 1/sqrt(D) */
    const real *q;     /* [T,G,D] */
    const real *k, *v; /* [T,D] natural */
    const real *kt;    /* [ceil(T/BLOCK),D,BLOCK] blocks of keys, transposed */
    const real *vb;    /* [ceil(T/BLOCK),BLOCK,D] blocks of values */
    const int32_t *idx; /* [T,n] the blocks of each query, ascending; -1 after the last */
    real *out;          /* [T,G,D] */
    work *work;         /* [threads of OpenMP] */
} problem;

void step_0_gathered(const problem *pb);
void step_1_relaid(const problem *pb);
void step_2_group(const problem *pb);
void step_3_online(const problem *pb);
void step_4_lanes(const problem *pb);
void step_5_threads(const problem *pb);

/* <q,k> over D elements, those of k `apart` places from each other. One sum, in order: without
 * fast-math no compiler may split it over lanes, so each addition waits for the one before. */
static inline real dot(const real *q, const real *k, int64_t apart, int64_t D) {
    real sum = 0;
    for (int64_t c = 0; c < D; c++)
        sum += q[c] * k[c * apart];
    return sum;
}

/* y += a x over n elements: independent of each other, so compilers make it vectors by themselves.
 */
static inline void add_scaled(real *y, real a, const real *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

#endif
