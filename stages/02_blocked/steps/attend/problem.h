/** @file
 *  @brief The chain `attend`: its problem, the selected branch of one KV head in one sequence.
 *
 *  The query at position t has G heads, which all see the tokens s <= t of the same SLC_COUNT
 *  blocks (Eq. 12):
 *
 *      o_tg = sum_s p_s v_s,   p = softmax_s(scale q_tg.k_s)
 *
 *  Keys and values lie in memory twice, and a step reads one copy: laying them out is paid once, by
 *  load() in a stage, and is no part of a step's time.
 */
#ifndef ATTEND_PROBLEM_H
#define ATTEND_PROBLEM_H

#include "../steps.h"

enum {
    G = 16,        /* heads of the group */
    D = 64,        /* dimension of a head: dk and dv */
    SLC_COUNT = 16 /* blocks that a query selects */
};

typedef struct problem {
    int64_t T;                /* tokens */
    real scale;               /* 1/sqrt(D) */
    real *q;                  /* [T,G,D] */
    real *k, *v;              /* [T,D], as loaded: step 0 reads these */
    real *transposed;         /* keys in blocks, each [D,BLOCK]: the other steps read these, */
    real *natural;            /* and values in blocks, each [BLOCK,D] */
    const int32_t *block_idx; /* [T,SLC_COUNT] each query's blocks, ascending; -1 after the last */
    real *out;                /* [T,G,D] */
} problem;

void attend_0_gathered(const problem *pb);
void attend_1_relaid(const problem *pb);
void attend_2_group(const problem *pb);
void attend_3_online(const problem *pb);
void attend_4_rows(const problem *pb);
void attend_5_lanes(const problem *pb);
void attend_6_exponential(const problem *pb);
void attend_7_tiles(const problem *pb);
void attend_8_queries(const problem *pb);
void attend_9_threads(const problem *pb);

#endif
