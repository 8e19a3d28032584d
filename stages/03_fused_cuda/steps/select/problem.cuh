/** @file
 *  @brief The chain `select`: its problem, the selection of blocks of one KV head.
 *
 *  The query at position t has G heads, which attend the compressed keys i < cmp_visible(t). Their
 *  probabilities, summed over the heads, give each block of l' = 4 d tokens its importance, with l
 *  = 2 d (Eq. 8-10):
 *
 *      p_g = softmax_i(scale q_tg.k_i),   importance_j = sum_i w_ij sum_g p_gi
 *
 *  where w is 1, 2, 2, 2, 1 for i = 4 j - 1 .. 4 j + 3. Selected are the first block, the two that
 *  end with the query's own, and the most important others (Eq. 11). Equal importance: the lower
 *  index. */
#ifndef SELECT_PROBLEM_CUH
#define SELECT_PROBLEM_CUH

#include "../steps.cuh"

enum {
    PER_BLOCK = 4, /* l'/d */
    OVERLAP = 2,   /* l/d */
    INIT = 1,      /* forced blocks: the first ones, */
    LOCAL = 2      /* and those that end with the query's own */
};

/* All pointers are to device memory. */
typedef struct select_problem {
    int T, N, J, n;    /* queries; compressed keys; blocks; blocks that a query selects */
    int stride;        /* d */
    int padded;        /* N, rounded up to whole blocks of BLOCK keys */
    float scale2;      /* makes log2 of a difference of scores: log2(e)/sqrt(D) */
    const float *q;    /* [T,G,D] */
    const float *kt;   /* [padded/BLOCK][D,BLOCK] blocks of keys, transposed */
    float *scores;     /* [T,G,padded] scores, then probabilities */
    row_stats *stats;  /* [T,G] */
    float *p_group;    /* [T,padded] probabilities, summed over the heads */
    float *importance; /* [T,J] */
    int32_t *idx;      /* [T,n] the selected blocks, ascending; -1 after the last */
} problem;

/* On the host. */
typedef struct host_arrays {
    float *q, *k;      /* [T,G,D] [padded,D] */
    float *importance; /* [T,J] step 0's */
} host_arrays;

nsa_status select_0_memory(const problem *pb);
nsa_status select_1_ranks(const problem *pb);
nsa_status select_2_statistics(const problem *pb);
nsa_status select_3_two_passes(const problem *pb);
nsa_status select_4_ring(const problem *pb);
nsa_status select_5_topk(const problem *pb);

/* Number of compressed keys that position t sees: those whose l tokens are not after it (Eq. 8). */
static __host__ __device__ __forceinline__ int cmp_visible(const problem *pb, int t) {
    const int l = OVERLAP * pb->stride;
    return t + 1 < l ? 0 : (t + 1 - l) / pb->stride + 1;
}

static __host__ __device__ __forceinline__ int own_block_of(const problem *pb, int t) {
    return t / (PER_BLOCK * pb->stride);
}

/* The weight of compressed key PER_BLOCK j + k in block j's importance, 1 - OVERLAP <= k <
 * PER_BLOCK (Eq. 9). */
static __host__ __device__ __forceinline__ float weight(int k) {
    return k < 0 || k == PER_BLOCK - 1 ? 1 : 2;
}

static __host__ __device__ __forceinline__ bool forced(int j, int own_block) {
    return j < INIT || j > own_block - LOCAL;
}

/* reference.cu: step 0's selection `first` [T,n] against importance in float64; another step's
 * selection against step 0's. */
double select_error(const problem *pb, const host_arrays *host, const int32_t *first);
double select_difference(const problem *pb, const host_arrays *host, const int32_t *out,
                         const int32_t *first);

#endif
