/** @file
 *  @brief Stage 03, backward: what its files share. */
#ifndef BACKWARD_CUH
#define BACKWARD_CUH

#include "stage.cuh"

enum {
    DQ_WARPS = 8,        /* most query rows of a CUDA block for dq, a warp each */
    DKV_WARPS = 8,       /* of a CUDA block for dk and dv: half of them sum dv, half dk */
    KEY_GROUPS = 4,      /* BLOCK / ROWS: a warp sums 16 of a block's 64 keys */
    LIST_CHUNKS = 256,   /* parts of the rows that are counted and listed side by side */
    NEAR = 4,            /* rows of an operand on their way */
    FAR = 8,             /* the same, for one that comes from far, if registers are left */
    LEAST_VISITS = 1024, /* rows that a unit of work takes for its block of keys, at least */
    MOST_UNITS = 16384   /* units beyond one for each block, at most: bounds their partial sums */
};

/* What both attention kernels read; all pointers are the device's. A row tile is 16 heads of a
 * (row, kv head): number (r*Hkv + h)*GT + g16. */
typedef struct grad_args {
    dims c;
    int64_t R;
    const sequence *seqs;
    int64_t B;
    const int32_t *row_t, *row_seq; /* [R] */
    const int32_t *block_idx;       /* [R,Hkv,n] */
    const real *q_t, *q_n;          /* [tiles][dk8][16]  [tiles][16][dkp] */
    const real *dout_t, *dout_n;    /* [tiles][dv8][16]  [tiles][16][dvp] */
    const float4 *terms; /* [BRANCHES][tiles][16]: most, over, gate, gate * dgate of each head */
    kv_blocks in[BRANCHES];
    real *dq; /* [R,Hq,dkp] */
} grad_args;

/* Which rows visit each block of one branch's keys; block b is block b % stride of head
 * b / stride. Units are numbered block after block: a unit is `most` visits of one block. */
typedef struct visit_args {
    int branch;
    int64_t blocks; /* Hkv * stride */
    int64_t stride;
    int64_t most;        /* visits of a unit */
    int64_t most_units;  /* units beyond one a block, at most */
    int64_t *start;      /* [blocks] its first visit in `list`, or its first row if there is none */
    int32_t *count;      /* [blocks] its visits */
    int32_t *first_unit; /* [blocks + 1] */
    int32_t *list;       /* the selected branch's rows, ascending within a block; else NULL */
    int32_t *counted; /* [Hkv,LIST_CHUNKS,stride] selected: a chunk's visits, then where its go */
    int64_t chunk;    /* rows of a chunk */
    real *partial;    /* [units][BLOCK][dvp + dkp]: a unit's dv, then its dk */
} visit_args;

/* What backward keeps beside the stage's own fields; on the host. */
typedef struct scratch {
    int dq_warps;  /* row tiles that a CUDA block takes at a time, for dq */
    int dkv_tiles; /* for dk and dv */
    float4 *terms;
    visit_args visits; /* its pointers; one branch after the other uses them */
    int32_t *list;
    /* compressors: m = i*Hkv + h numbers the compressed token i of head h */
    int64_t some;    /* compressed tokens that are taken at a time */
    real *dy;        /* [some*Hkv][D] the gradients of compressed tokens, out of their blocks */
    real *z;         /* mlp: [some*Hkv][l*D] vec(x + pe), then its gradient */
    real *silu, *du; /* mlp: [some*Hkv][hidden]; gated: the weights and du, [some*Hkv][l] */
    real *sums;      /* [SUM_PARTS][most columns] of add_columns() */
    real *spread;    /* [T,Hkv] gated: sum of a token's du */
} scratch;

/* The keys [lo,hi) that position t sees in a branch whose keys are a range. */
typedef struct key_range {
    int lo, hi;
} key_range;

static __device__ __forceinline__ key_range seen_range(const dims *c, int branch, int t) {
    key_range range = {0, t + 1};
    if (branch == CMP)
        range.hi = t >= c->l - 1 ? (t - c->l + 1) / c->d + 1 : 0;
    else if (t - c->w + 1 > 0)
        range.lo = t - c->w + 1;
    return range;
}

/* A bit for each key of [lo,hi) among the 64 from key `first` on. */
static __device__ __forceinline__ uint64_t key_bits(int lo, int hi, int first) {
    lo = lo > first ? lo - first : 0;
    hi = hi < first + BLOCK ? hi - first : BLOCK;
    return lo < hi ? (~(uint64_t)0 >> (BLOCK - (hi - lo))) << lo : 0;
}

/* The keys of selected block j that position t sees. */
static __device__ __forceinline__ key_range seen_block(const dims *c, int j, int t) {
    const int lo = j * c->lb;
    return {lo, lo + c->lb < t + 1 ? lo + c->lb : t + 1};
}

/* As product<1>(), with B_FAR rows of B on their way, and A_FAR of A, which may then come from far
 * too; A_FAR = 0: A is in shared memory. Counts are multiples of DIM, as dk8 and dv8 are. */
template <int A_FAR, int B_FAR>
static __device__ __forceinline__ void product_far(piece *acc, const float *a, int lda,
                                                   const float *b, int ldb, int count) {
    float4 r_a[DIM][2], r_b[DIM];
#pragma unroll
    for (int u = 0; u < DIM; u++) {
        if (u < A_FAR) {
            r_a[u][0] = load4(a + u * lda);
            r_a[u][1] = load4(a + u * lda + 4);
        }
        if (u < B_FAR)
            r_b[u] = load4(b + u * ldb);
    }
#pragma unroll 1
    for (int k = 0; k < count; k += DIM, a += DIM * lda, b += DIM * ldb) {
        const bool more = k + DIM < count;
#pragma unroll
        for (int u = 0; u < DIM; u++) {
            const int i = A_FAR ? u % (A_FAR ? A_FAR : 1) : u, j = u % B_FAR;
            if (!A_FAR) {
                r_a[i][0] = load4(a + u * lda);
                r_a[i][1] = load4(a + u * lda + 4);
            }
            outer_product(acc, r_a[i][0], r_a[i][1], r_b[j]);
            if (more || u + B_FAR < DIM)
                r_b[j] = load4(b + (u + B_FAR) * ldb);
            if (A_FAR && (more || u + A_FAR < DIM)) {
                r_a[i][0] = load4(a + (u + A_FAR) * lda);
                r_a[i][1] = load4(a + (u + A_FAR) * lda + 4);
            }
        }
    }
}

/* Which of the lane's four columns are seen. */
static __device__ __forceinline__ unsigned lane_bits(uint64_t mask) {
    return (unsigned)(mask >> first_col()) & ((1u << LANE_COLS) - 1);
}

/* One row tile against one block: P = 2^(scale2 Q K^T - most) over, and with dP = dO V^T
 *     dS = scale P (gate dP - delta),   delta = gate <dO,o> = gate sum_s P_s dP_s.
 * p becomes gate P, ds becomes dS; both are 0 where a key is not seen, whatever lies there. `q` and
 * `dout` are the lane's addresses in Q^T and dO^T, `terms` the tile's; FAR as for product_far(). */
template <int A_FAR, int B_FAR>
static __device__ __forceinline__ void differentiate(const dims *c, piece *p, piece *ds,
                                                     const float *q, const float *dout,
                                                     const float *kt, const float *vt,
                                                     const float4 *terms, uint64_t mask) {
    const unsigned seen = lane_bits(mask);
    zero_piece(p);
    product_far<A_FAR, B_FAR>(p, q, ROWS, kt + first_col(), BLOCK, c->dk8);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float4 term = terms[first_row() + i];
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            p->at[i][j] = seen >> j & 1 ? exp2f(c->scale2 * p->at[i][j] - term.x) * term.y : 0;
    }
    zero_piece(ds);
    product_far<A_FAR, B_FAR>(ds, dout, ROWS, vt + first_col(), BLOCK, c->dv8);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float4 term = terms[first_row() + i];
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++) {
            const float p_ij = p->at[i][j], dp = term.z * ds->at[i][j] - term.w;
            ds->at[i][j] = seen >> j & 1 ? c->scale * p_ij * dp : 0;
            p->at[i][j] = p_ij * term.z;
        }
    }
}

/* Ask for `count` floats that are needed soon: from device memory into the second-level cache. */
static __device__ __forceinline__ void fetch_soon(const float *at, int64_t count) {
#ifdef __CUDA_ARCH__
#pragma unroll 1
    for (int64_t i = threadIdx.x % WARP * 32; i < count; i += WARP * 32)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(at + i));
#else
    (void)at, (void)count;
#endif
}

/* backward_visits.cu */
nsa_status open_visits(stage *st, scratch *s);
nsa_status list_visits(stage *st, const grad_args *args, int branch, visit_args *v);

/* backward_attend.cu */
nsa_status open_queries(scratch *s, const dims *c, size_t room);
nsa_status backward_queries(stage *st, const grad_args *args);

/* backward_keys.cu */
nsa_status open_keys(scratch *s, size_t room);
nsa_status backward_keys(stage *st, const grad_args *args, const visit_args *v);

/* backward_compress.cu */
nsa_status open_compress(stage *st, scratch *s);
nsa_status compress_pack_backward(stage *st, int pair);

#endif
