/** @file
 *  @brief The chain `backward`: its problem, the gradients of the window of one KV head.
 *
 *  The query at position t has G heads, which all see the tokens t-w < s <= t, and dout_tg is
 * given:
 *
 *      o_tg = sum_s p_s v_s,   p = softmax_s(scale q_tg.k_s),   out_tg = gate_tg o_tg + ...
 *      dv_s += gate p_s dout,   ds_s = gate p_s (dout.v_s - dgate),   dgate = dout.o
 *      dq_tg = scale sum_s ds_s k_s,   dk_s += scale ds_s q_tg
 *
 *  Forward has saved row_max and the sum, and dgate is known. A CUDA block makes dk and dv of a
 *  block of keys from all rows that see it. */
#ifndef BACKWARD_PROBLEM_CUH
#define BACKWARD_PROBLEM_CUH

#include "../steps.cuh"
#include "backward.cuh"

enum {
    WARPS = 4, /* of a CUDA block */
    THREADS = WARPS * WARP_SIZE,
    TILES = 4 /* row tiles that it takes at a time */
};

/* All pointers are to device memory. */
typedef struct backward_problem {
    int T, w;                     /* tokens; window */
    int blocks, width;            /* ceil(T/BLOCK); blocks that a row sees, at most */
    float scale, scale2;          /* 1/sqrt(D), and log2(e) times that */
    const float *q, *dout;        /* [T,G,D] */
    const float *kt, *vt;         /* [blocks][D,BLOCK] keys and values, transposed */
    const float *k;               /* [blocks][BLOCK,D] keys */
    const bf16 *q_mem, *dout_mem; /* the same, rounded and in mem tiles (tile.cuh) */
    const bf16 *k_mem, *v_mem;    /* [blocks][BLOCK,D] */
    const row_terms *terms32;     /* [T,G] for q, k, v and dout in float32, */
    const row_terms *terms;       /* and for the rounded ones */
    uint4 *ds;                    /* [T,width][DS_TILE] dS^T of a row tile and block, in bfloat16 */
    float *dq;                    /* [T,G,D] */
    float *dk, *dv;               /* [blocks][BLOCK,D] */
} problem;

/* On the host. */
typedef struct host_arrays {
    float *q, *dout, *k, *v, *gate; /* [T,G,D] [T,D] [T,G] */
} host_arrays;

nsa_status backward_0_float32(const problem *pb);
nsa_status backward_1_keys(const problem *pb);
nsa_status backward_2_halves(const problem *pb);
nsa_status backward_3_ds(const problem *pb);
nsa_status backward_4_async(const problem *pb);

/* reference.cu: how far `first` [dq,dk,dv], step 0's, is from float64. */
double backward_error(const problem *pb, const host_arrays *host, const float *first);

/* queries.cu: dq by queries, with S and dP once more, which no step before 3 changes; in float32
 * for step 0, by the matrix unit for steps 1 and 2. */
nsa_status queries_float32(const problem *pb);
nsa_status queries_mma(const problem *pb);

/* Where a block, [BLOCK,D] or [D,BLOCK], begins; where the rows of a query, [G,D], do. */
static __host__ __device__ __forceinline__ int64_t block_offset(int block) {
    return (int64_t)block * BLOCK * D;
}

static __device__ __forceinline__ int64_t query_offset(int t) {
    return (int64_t)t * G * D;
}

/* The keys of `block` that query t sees. */
static __device__ __forceinline__ uint64_t visible_mask(const problem *pb, int t, int block) {
    return range_mask(t - pb->w + 1 - block * BLOCK, t + 1 - block * BLOCK);
}

/* The first block that query t sees; t / BLOCK is the last. */
static __device__ __forceinline__ int first_block(const problem *pb, int t) {
    return max(t - pb->w + 1, 0) / BLOCK;
}

/* The query after the last that sees a key of `block`; block * BLOCK is the first. */
static __host__ __device__ __forceinline__ int end_query(const problem *pb, int block) {
    return min(pb->T, (block + 1) * BLOCK - 1 + pb->w);
}

/* The tile of dS^T of query t and a block that it sees: [4][32 lanes] pieces, the fragment of each
 * 16 keys. */
static __device__ __forceinline__ uint4 *ds_of(const problem *pb, int t, int block) {
    return pb->ds + ((int64_t)t * pb->width + block % pb->width) * DS_TILE;
}

/* Up to TILES row tiles in shared memory. */
typedef struct row_step {
    bf16 q[TILES * TILE_ROWS * D], dout[TILES * TILE_ROWS * D];
    row_terms terms[TILES * TILE_ROWS];
} row_step;

/* Start copying `bytes`, by all threads of the CUDA block, 16 bytes each at a time. */
static __device__ __forceinline__ void copy_async(void *s_to, const void *g_from, int bytes) {
    for (int i = (int)threadIdx.x; i < bytes / 16; i += THREADS)
        nsa_cp_async_16((uint4 *)s_to + i, (const uint4 *)g_from + i);
}

/* Start copying the row tiles of queries t..t+count-1, which lie on end. */
static __device__ __forceinline__ void copy_step(row_step *x, const problem *pb, int t, int count) {
    copy_async(x->q, pb->q_mem + query_offset(t), count * (int)sizeof x->q / TILES);
    copy_async(x->dout, pb->dout_mem + query_offset(t), count * (int)sizeof x->dout / TILES);
    copy_async(x->terms, pb->terms + (int64_t)t * G, count * (int)sizeof x->terms / TILES);
    nsa_cp_async_commit();
}

/* What has been started has arrived, in all threads. */
static __device__ __forceinline__ void wait_for_copies(void) {
    nsa_cp_async_wait<0>();
    __syncthreads();
}

/* acc [M][16 keys,D] += P^T B, B = s_b [16 rows][D]: every fragment of B is multiplied M times. */
template <int M>
static __device__ __forceinline__ void add_rows(acc_tiles<D / TILE_N> (&acc)[M],
                                                const frag_a (&p)[M], const bf16 *s_b) {
#pragma unroll
    for (int n = 0; n < D / TILE_N; n += 2) {
        frag_b b[2];
        load_b_trans<D>(b, s_b, n * TILE_N);
        for (int i = 0; i < M; i++) {
            mma(acc[i].x[n], p[i], b[0]);
            mma(acc[i].x[n + 1], p[i], b[1]);
        }
    }
}

/* scale dq of a query, columns as transpose_mem_tiles() leaves them. */
static __device__ __forceinline__ void store_queries(const problem *pb, int t,
                                                     acc_tiles<D / TILE_N> *dq) {
    scale_rows(dq, {pb->scale, pb->scale});
#pragma unroll
    for (int i = 0; i < 2 * (D / 16); i++) {
        const int row = lane_row() + 8 * (i % 2);
        *(float4 *)(pb->dq + query_offset(t) + row * D + quad_col() + quad_offset(i / 2)) =
            quad_of(*dq, i / 2, i % 2);
    }
}

#endif
