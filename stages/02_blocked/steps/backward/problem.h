/** @file
 *  @brief The chain `backward`: its problem, the gradients of the selected branch of one KV head in
 *  one sequence.
 *
 *  The query at position t has G heads, which all see the tokens s <= t of the same SLC_COUNT
 *  blocks (Eq. 12):
 *
 *      o_tg = sum_s p_s v_s,   p = softmax_s(scale q_tg.k_s),   out_tg = gate_tg o_tg + ...
 *
 *  and dout_tg is given: dq, dgate, dk and dv follow. Keys and values lie in memory as loaded and
 *  in blocks, and a step reads one of the two; what forward saves is there for the steps that
 *  read it.
 */
#ifndef BACKWARD_PROBLEM_H
#define BACKWARD_PROBLEM_H

#include "../steps.h"
#include "tile.h"

enum {
    G = 16,       /* heads of the group */
    D = 64,       /* dimension of a head: dk and dv */
    SLC_COUNT = 8 /* blocks that a query selects */
};

enum { KEYS, VALUES, PAIR };

typedef struct problem {
    int64_t T;                /* tokens */
    int64_t blocks;           /* ceil(T/BLOCK) */
    int threads;              /* of OpenMP */
    real scale;               /* 1/sqrt(D) */
    real *q, *dout;           /* [T,G,D] */
    real *gate;               /* [T,G] */
    const int32_t *block_idx; /* [T,SLC_COUNT] each query's blocks, ascending; -1 after the last */
    real *k, *v;              /* [T,D], as loaded: steps 0 to 2 read these */
    real *transposed[PAIR];   /* keys and values in blocks, each [D,BLOCK]: the other steps */
    real *natural[PAIR];      /* keys in blocks, each [BLOCK,D]; values are not needed so */

    real *out_x; /* [T,G,D] o, saved by forward */
    real *stats; /* [T,G,2] row_max and inv_sum, saved by forward */

    real *dq;             /* [T,G,D] */
    real *dgate;          /* [T,G] */
    real *gradient[PAIR]; /* [blocks,BLOCK,D] dk, then dv; behind them those of other threads */
} problem;

/* reference.c: one head of a query, head = t*G + g: dq [D] and dgate are set; its share of dk and
 * dv of one block, [BLOCK,D] each, is added to dk_dv */
void backward_float64(const problem *pb, int64_t head, int64_t block, double *dq, double *dgate,
                      double *dk_dv);

void backward_0_rows(const problem *pb);
void backward_1_saved(const problem *pb);
void backward_2_group(const problem *pb);
void backward_3_products(const problem *pb);
void backward_4_tiles(const problem *pb);
void backward_5_threads(const problem *pb);

#endif
