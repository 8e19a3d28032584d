/** @file
 *  @brief The chain `attend`: its problem, plain causal attention of one KV head.
 *
 *  The query at position t has G heads, the rows of a tile, and sees the keys s <= t:
 *
 *      out_tg = sum_s p_s v_s,   p = softmax_s(scale q_tg.k_s)
 *
 *  Neighbouring queries see the same blocks of keys but for the end of the last, as in the
 *  compressed branch, so a CUDA block goes through them for all of its queries. Layouts and
 *  rounding are done once and are no part of a step's time. */
#ifndef ATTEND_PROBLEM_CUH
#define ATTEND_PROBLEM_CUH

#include "../steps.cuh"

enum { WARPS = 4, THREADS = WARPS * WARP_SIZE }; /* of a CUDA block */

/* What a step reads and writes; all pointers are to device memory. */
typedef struct attend_problem {
    int T;                     /* tokens */
    float scale2;              /* makes log2 of a difference of scores: log2(e)/sqrt(D) */
    const float *q;            /* [T,G,D] */
    const float *kt, *v;       /* [blocks][D,BLOCK] keys, transposed; [blocks][BLOCK,D] values */
    const bf16 *q16;           /* the same, rounded */
    const bf16 *kt16, *v16;    /* the same, rounded */
    const bf16 *k16;           /* [blocks][BLOCK,D] keys as they are */
    const bf16 *q_mem;         /* [T,G,D] in mem tiles (tile.cuh) */
    const bf16 *k_mem, *v_mem; /* [blocks][BLOCK,D] in mem tiles */
    float *out;                /* [T,G,D] */
} problem;

nsa_status attend_0_float32(const problem *pb);
nsa_status attend_1_bf16(const problem *pb);
nsa_status attend_2_scores(const problem *pb);
nsa_status attend_3_values(const problem *pb);
nsa_status attend_4_async(const problem *pb);
nsa_status attend_5_two_tiles(const problem *pb);

/* The first of a CUDA block's `count` queries, a power of two up to 64: then its queries see the
 * same blocks 0..first/BLOCK, and each at least one key of each. The last ones, which see the most,
 * come first. */
static __device__ __forceinline__ int first_query(int count) {
    return (int)(gridDim.x - 1 - blockIdx.x) * count;
}

/* The keys of `block` that query t sees. */
static __device__ __forceinline__ uint64_t visible_mask(int t, int block) {
    return range_mask(0, t + 1 - block * BLOCK);
}

/* Where a block, [BLOCK,D] or [D,BLOCK], begins; where the rows of a query, [G,D], do. */
static __device__ __forceinline__ int64_t block_offset(int block) {
    return (int64_t)block * BLOCK * D;
}

static __device__ __forceinline__ int64_t query_offset(int t) {
    return (int64_t)t * G * D;
}

#endif
