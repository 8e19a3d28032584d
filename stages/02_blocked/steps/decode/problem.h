/** @file
 *  @brief The chain `decode`: its problem, the selected branch of one KV head for one new token of
 *  each of SLOTS sequences.
 *
 *  The new tokens, all at position t, have G heads each, which see the tokens s <= t of the same
 *  SLC_COUNT blocks of their slot's cache (Eq. 12):
 *
 *      o_g = sum_s p_s v_s,   p = softmax_s(scale q_g.k_s)
 *
 *  The caches are far larger than processor caches, and each decode step reads other blocks of
 *  them: blocks come from memory. Keys and values lie there twice, and a step of the chain reads
 *  one copy: a new key goes to its place by load_step() in a stage, which is no part of a step's
 *  time.
 */
#ifndef DECODE_PROBLEM_H
#define DECODE_PROBLEM_H

#include "../steps.h"

enum {
    G = 16,         /* heads of the group */
    D = 64,         /* dimension of a head: dk and dv */
    SLC_COUNT = 16, /* blocks that a query selects */
    SLOTS = 8       /* sequences */
};

typedef struct problem {
    int64_t max_seq_len;      /* rows of a slot, whole blocks */
    int64_t t;                /* position of the new tokens */
    real scale;               /* 1/sqrt(D) */
    real *q;                  /* [SLOTS,G,D] */
    const int32_t *block_idx; /* [SLOTS,SLC_COUNT] their blocks, ascending; -1 after the last */
    real *cache_k, *cache_v;  /* [SLOTS,max_seq_len,D]: steps 0 and 1 read these */
    real *transposed;         /* keys in blocks, each [D,BLOCK]: the other steps read these, */
    real *natural;            /* and values in blocks, each [BLOCK,D]; a slot's lie together */
    real *out;                /* [SLOTS,G,D] */
} problem;

void decode_0_rows(const problem *pb);
void decode_1_group(const problem *pb);
void decode_2_products(const problem *pb);
void decode_3_prefetch(const problem *pb);
void decode_4_threads(const problem *pb);

#endif
