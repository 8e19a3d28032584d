/** @file
 *  @brief The chain `decode`: its problem, two branches of one KV head and their gated sum for one
 *  new token of each of SLOTS sequences.
 *
 *  The new token of a slot, at position t, has G heads, which see the tokens s <= t of the same n
 *  blocks of the slot's cache, and the tokens t-w < s <= t of a window, each branch with keys and
 *  values of its own (Eq. 5, 12):
 *
 *      out_g = g_slc o_slc + g_win o_win,   o = sum_s p_s v_s,   p = softmax_s(scale q_g.k_s)
 *
 *  A run is TOKENS decode steps, one after another. Each reads other blocks of the caches, which
 *  are larger than the second-level cache: blocks come from device memory. */
#ifndef DECODE_PROBLEM_CUH
#define DECODE_PROBLEM_CUH

#include "../steps.cuh"

enum { SLOTS = 8 }; /* sequences */

/* Row maximum (of q.k, before scaling) and row sum of the softmax over one split of the keys. */
typedef struct partial_stats {
    float row_max, row_sum;
} partial_stats;

/* One decode step; all pointers are to device memory. The entry CMP of the arrays over branches is
 * not used. */
typedef struct decode_problem {
    int n, w;                   /* blocks selected; window, in tokens */
    int slot_blocks;            /* blocks of a slot's cache */
    float scale2;               /* makes log2 of a difference of scores: log2(e)/sqrt(D) */
    const int32_t *t;           /* [SLOTS] position of the new token */
    const float *q;             /* [SLOTS,G,D] */
    const float *gate;          /* [SLOTS,G,BRANCHES] */
    const float *kt[BRANCHES];  /* [SLOTS,slot_blocks][D,BLOCK] blocks of keys, transposed */
    const float *v[BRANCHES];   /* [SLOTS,slot_blocks][BLOCK,D] blocks of values */
    const int32_t *idx;         /* [SLOTS,n] selected blocks, ascending; -1 after the last */
    float *split_o;             /* [SLOTS,BRANCHES,splits][G,D] not divided by the row sum */
    partial_stats *split_stats; /* [SLOTS,BRANCHES,splits][G] */
    float *out;                 /* [SLOTS,G,D] */
} problem;

enum { MAX_SPLITS = 4 }; /* of a slot and branch */

nsa_status decode_0_slot(const problem *pb);
nsa_status decode_1_splits(const problem *pb);
nsa_status decode_2_warps(const problem *pb);

/* The keys lo..hi-1 of one block of the slot; hi = 0: no more blocks. */
typedef struct span {
    int block, lo, hi;
} span;

/* Span i of one branch, blocks ascending. */
static __device__ __forceinline__ span span_of(const problem *pb, int slot, int branch, int i) {
    const int t = pb->t[slot], first = branch == WIN ? max(t - pb->w + 1, 0) : 0;
    span sp = {-1, 0, 0};
    if (branch == WIN)
        sp.block = first / BLOCK + i <= t / BLOCK ? first / BLOCK + i : -1;
    else if (i < pb->n)
        sp.block = pb->idx[slot * pb->n + i];
    if (sp.block >= 0) {
        sp.lo = max(first - sp.block * BLOCK, 0);
        sp.hi = min(t + 1 - sp.block * BLOCK, BLOCK);
    }
    return sp;
}

#endif
