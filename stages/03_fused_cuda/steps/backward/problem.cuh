/** @file
 *  @brief The chain `backward`: its problem, the gradients of the selected branch of one KV head in
 *  one sequence.
 *
 *  The query at position t has G heads, which all see the tokens s <= t of the same n blocks (Eq.
 *  12), and dout_tg is given:
 *
 *      o_tg = sum_s p_s v_s,   p = softmax_s(scale q_tg.k_s),   out_tg = gate_tg o_tg + ...
 *      dv_s += gate p_s dout,   ds_s = scale gate p_s (dout.v_s - dgate),   dgate = dout.o
 *      dq_tg = sum_s ds_s k_s,  dk_s += ds_s q_tg
 *
 *  Forward has saved row_max and inv_sum, and dgate is known. The inverse list is given, too: the
 *  chain inverse_list makes it. */
#ifndef BACKWARD_PROBLEM_CUH
#define BACKWARD_PROBLEM_CUH

#include "../steps.cuh"

/* Of one row: what forward saved, and what backward needs besides. */
typedef struct row_terms {
    float row_max, inv_sum, gate, dgate;
} row_terms;

/* All pointers are to device memory. */
typedef struct backward_problem {
    int T, n, blocks;            /* rows; blocks that a row selects; ceil(T/BLOCK) */
    float scale, scale2;         /* 1/sqrt(D), and log2(e) times that */
    const float *q, *dout;       /* [T,G,D] */
    const float *kt, *vt;        /* [blocks][D,BLOCK] blocks of keys and values, transposed */
    const float *k;              /* [blocks][BLOCK,D] blocks of keys */
    const row_terms *terms;      /* [T,G] row_max, inv_sum, gate, dgate */
    const int32_t *idx;          /* [T,n] the blocks of each row, ascending; -1 after the last */
    const int32_t *start, *list; /* [blocks+1], and each block's rows, ascending */
    float *dq;                   /* [T,G,D] */
    float *dk, *dv;              /* [blocks][BLOCK,D] */
    int unit_rows, max_units;    /* rows of a work unit; units of one block's list, at most */
    float *partial;              /* [blocks,max_units][2][BLOCK,D] a unit's sums for dv and dk */
} problem;

/* On the host. */
typedef struct host_arrays {
    float *q, *dout, *k, *v; /* [T,G,D] [T,D] */
    row_terms *terms;        /* [T,G] only the gates */
    int32_t *idx, *start, *list;
} host_arrays;

nsa_status backward_0_atomics(const problem *pb);
nsa_status backward_1_dq(const problem *pb);
nsa_status backward_2_keys(const problem *pb);
nsa_status backward_3_units(const problem *pb);

/* reference.cu: how far `first` [dq,dk,dv], step 0's, is from float64. */
double backward_error(const problem *pb, const host_arrays *host, const float *first);

/* The keys of `block` that row t sees, if it has selected the block. */
static __device__ __forceinline__ uint64_t visible_mask(int t, int block) {
    return range_mask(0, t + 1 - block * BLOCK);
}

#endif
