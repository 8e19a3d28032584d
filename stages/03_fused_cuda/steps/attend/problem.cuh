/** @file
 *  @brief The chain `attend`: its problem, two branches of one KV head and their gated sum.
 *
 *  The query at position t has G heads. All of them see the tokens s <= t of the same n selected
 *  blocks, and the tokens t-w < s <= t of a window, each branch with keys and values of its own
 *  (Eq. 5, 12):
 *
 *      out_tg = g_slc o_slc + g_win o_win,   o = sum_s p_s v_s,   p = softmax_s(scale q_tg.k_s)
 *
 *  Keys and values lie in blocks, as the stage's `load` leaves them: packing is done once and is no
 *  part of a step's time. */
#ifndef ATTEND_PROBLEM_CUH
#define ATTEND_PROBLEM_CUH

#include "../steps.cuh"

enum { NEIGHBOURS = 4 }; /* neighbouring queries that share a window's blocks (the last steps) */

/* What a step reads and writes; all pointers are to device memory. The entry CMP of the arrays over
 * branches is not used. */
typedef struct attend_problem {
    int T, n, w;               /* tokens; blocks selected; window, in tokens */
    float scale2;              /* makes log2 of a difference of scores: log2(e)/sqrt(D) */
    const float *q;            /* [T,G,D] */
    const float *gate;         /* [T,G,BRANCHES] */
    const float *kt[BRANCHES]; /* [ceil(T/BLOCK)][D,BLOCK] blocks of keys, transposed */
    const float *v[BRANCHES];  /* [ceil(T/BLOCK)][BLOCK,D] blocks of values */
    const int32_t *idx;        /* [T,n] the blocks of each query, ascending; -1 after the last */
    float *o[BRANCHES];        /* [T,G,D] outputs before the gate (the last step has none) */
    float *out;                /* [T,G,D] */
} problem;

nsa_status attend_0_thread_row(const problem *pb);
nsa_status attend_1_block_row(const problem *pb);
nsa_status attend_2_shared_block(const problem *pb);
nsa_status attend_3_group(const problem *pb);
nsa_status attend_4_tile(const problem *pb);
nsa_status attend_5_warps(const problem *pb);
nsa_status attend_6_neighbours(const problem *pb);
nsa_status attend_7_fused(const problem *pb);

/* The keys lo..hi-1 of one block; hi = 0: no more blocks. */
typedef struct span {
    int block, lo, hi;
} span;

/* The keys of one block in query t's window; none (hi <= lo) outside of it. */
static __device__ __forceinline__ span span_win(const problem *pb, int t, int block) {
    const span sp = {block, max(t - pb->w + 1 - block * BLOCK, 0),
                     min(t + 1 - block * BLOCK, BLOCK)};
    return sp;
}

/* Span i of query t in one branch, blocks ascending. */
static __device__ __forceinline__ span span_of(const problem *pb, int branch, int t, int i) {
    span sp = {-1, 0, 0};
    if (branch == WIN) {
        const int block = max(t - pb->w + 1, 0) / BLOCK + i;
        return block <= t / BLOCK ? span_win(pb, t, block) : sp;
    }
    if (i < pb->n)
        sp.block = pb->idx[(int64_t)t * pb->n + i];
    if (sp.block >= 0)
        sp.hi = min(t + 1 - sp.block * BLOCK, BLOCK);
    return sp;
}

static __device__ __forceinline__ const float *keys_of(const problem *pb, int branch, int block) {
    return pb->kt[branch] + (int64_t)block * D * BLOCK;
}

static __device__ __forceinline__ const float *values_of(const problem *pb, int branch, int block) {
    return pb->v[branch] + (int64_t)block * BLOCK * D;
}

static __host__ __device__ __forceinline__ int64_t row_of(int t, int g) {
    return (int64_t)t * G + g;
}

#endif
