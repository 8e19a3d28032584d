/** @file
 *  @brief The chain `select`: its problem, what the importance of blocks is made of, for one KV
 *  head.
 *
 *  The query at position t has G heads, which attend the compressed keys i < cmp_visible(t), with l
 *  = 2 d. Wanted are their probabilities, summed over the heads (Eq. 8-10):
 *
 *      p_group_ti = sum_g p_tgi,   p_tgi = 2^(scale2 q_tg.k_i - row_max_tg) inv_sum_tg
 *
 *  Attention has left each head's row_max and inv_sum. Equal keys must get equal sums, bit by bit,
 *  or equally important blocks would be chosen by their last digit. What follows, importance and
 * the list of blocks, is as in stage 03. */
#ifndef SELECT_PROBLEM_CUH
#define SELECT_PROBLEM_CUH

#include "../steps.cuh"

enum { WARPS = 4, THREADS = WARPS * WARP_SIZE }; /* of a CUDA block */

/* All pointers are to device memory. */
typedef struct select_problem {
    int T, N;                 /* queries; compressed keys */
    int stride;               /* d */
    int padded;               /* N, rounded up to whole blocks of BLOCK keys */
    float scale2;             /* makes log2 of a difference of scores: log2(e)/sqrt(D) */
    const float *q;           /* [T,G,D] */
    const float *kt;          /* [padded/BLOCK][D,BLOCK] blocks of keys, transposed */
    const bf16 *q_mem;        /* [T,G,D] rounded, in mem tiles (tile.cuh) */
    const bf16 *k_mem;        /* [padded,D] */
    const row_stats *stats32; /* [T,G] for q and k in float32, */
    const row_stats *stats;   /* and for the rounded ones */
    float *p_group;           /* [T,padded] */
} problem;

nsa_status select_0_float32(const problem *pb);
nsa_status select_1_heads(const problem *pb);
nsa_status select_2_keys(const problem *pb);
nsa_status select_3_queries(const problem *pb);

/* Number of compressed keys that position t sees: those whose l tokens are not after it (Eq. 8). */
static __host__ __device__ __forceinline__ int cmp_visible(const problem *pb, int t) {
    return t + 1 < 2 * pb->stride ? 0 : (t + 1 - 2 * pb->stride) / pb->stride + 1;
}

/* The first of a CUDA block's `count` queries; the last ones, which see the most, come first. */
static __device__ __forceinline__ int first_query(int count) {
    return (int)(gridDim.x - 1 - blockIdx.x) * count;
}

/* Keys that the last of them sees: all that the CUDA block goes through. */
static __device__ __forceinline__ int last_visible(const problem *pb, int first, int count) {
    return cmp_visible(pb, min(first + count, pb->T) - 1);
}

static __device__ __forceinline__ int64_t block_offset(int block) {
    return (int64_t)block * BLOCK * D;
}

static __device__ __forceinline__ int64_t query_offset(int t) {
    return (int64_t)t * G * D;
}

/* One more head's probability. fmaf is one rounding wherever the compiler places it, so equal
 * scores give equal sums. */
static __device__ __forceinline__ float add_p(float sum, float s, const row_stats &x,
                                              float scale2) {
    return fmaf(exp_score(scale2, s, x.row_max), x.inv_sum, sum);
}

#endif
