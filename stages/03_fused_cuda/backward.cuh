/** @file
 *  @brief Stage 03, backward: what its files share. */
#ifndef BACKWARD_CUH
#define BACKWARD_CUH

#include "stage.cuh"

enum {
    DQ_WARPS = 12,      /* most query rows of a CUDA block for dq, a warp each */
    PAIR_ROWS = 32,     /* of a wide tile: two tiles of 16 heads, or half a block's keys */
    MAX_STEP_TILES = 8, /* row tiles that the key kernel takes at a time, at most */
    MAX_SUM_WARPS = 8,  /* its warps that sum dk and dv, at most: a wide tile each */
    RING = 8,           /* steps whose tiles are known to all its warps; a power of two */
    LIST_CHUNKS = 256,  /* parts of the rows that are counted and listed side by side */
    STAGING_FLOATS =
        PREFETCH_DEPTH * (TILE_COLS + PAIR_ROWS), /* floats that a wide tile's warp stages in */
    MIN_UNIT_ROWS = 1024, /* rows that a unit of work takes for its block of keys, at least */
    MAX_EXTRA_UNITS =
        16384 /* units beyond one for each block, at most: bounds their partial sums */
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
    const float4 *terms; /* [BRANCHES][tiles][16]: most, over, gate, dgate of each head */
    kv_blocks in[BRANCHES];
    real *dq; /* [R,Hq,dkp] */
} grad_args;

/* Which rows visit each block of one branch's keys; block b is block b % stride of head
 * b / stride. Units are numbered block after block: a unit is `most` visits of one block. */
typedef struct inverse_list {
    int branch;
    int64_t blocks; /* Hkv * stride */
    int64_t stride;
    int64_t unit_rows;       /* visits of a unit */
    int64_t max_extra_units; /* units beyond one a block, at most */
    int64_t *start;      /* [blocks] its first visit in `list`, or its first row if there is none */
    int32_t *count;      /* [blocks] its visits */
    int32_t *first_unit; /* [blocks + 1] */
    int32_t *list;       /* the selected branch's rows, ascending within a block; else NULL */
    int32_t
        *chunk_counts; /* [Hkv,LIST_CHUNKS,stride] selected: a chunk's visits, then where its go */
    int64_t chunk;     /* rows of a chunk */
    real *partial;     /* [units][BLOCK][dvp + dkp]: a unit's dv, then its dk */
} inverse_list;

/* What backward keeps beside the stage's own fields; on the host. */
typedef struct scratch {
    int dq_warps;  /* row tiles that a CUDA block takes at a time, for dq */
    int dq_pairs;  /* pairs of them where keys are a range */
    int dkv_tiles; /* for dk and dv, at most MAX_STEP_TILES */
    float4 *terms;
    inverse_list inverse; /* its pointers; one branch after the other uses them */
    int32_t *list;
    /* compressors: m = i*Hkv + h numbers the compressed token i of head h */
    int64_t batch;   /* compressed tokens that are taken at a time */
    real *dy;        /* [some*Hkv][D] the gradients of compressed tokens, out of their blocks */
    real *z;         /* mlp: [some*Hkv][l*D] vec(x + pe), then its gradient */
    real *silu, *du; /* mlp: [some*Hkv][hidden]; gated: the weights and du, [some*Hkv][l] */
    real *column_partials; /* [SUM_PARTIALS][most columns] of column_sums() */
    real *sum_du;          /* [T,Hkv] gated: sum of a token's du */
} scratch;

/* The keys [lo,hi) that position t sees in a branch whose keys are a range. */
typedef struct key_range {
    int lo, hi;
} key_range;

static __device__ __forceinline__ key_range visible_range(const dims *c, int branch, int t) {
    key_range range = {0, t + 1};
    if (branch == CMP)
        range.hi = t >= c->l - 1 ? (t - c->l + 1) / c->d + 1 : 0;
    else if (t - c->w + 1 > 0)
        range.lo = t - c->w + 1;
    return range;
}

/* A bit for each key of [lo,hi) among the 64 from key `first` on. */
static __device__ __forceinline__ uint64_t key_mask(int lo, int hi, int first) {
    lo = lo > first ? lo - first : 0;
    hi = hi < first + BLOCK ? hi - first : BLOCK;
    return lo < hi ? (~(uint64_t)0 >> (BLOCK - (hi - lo))) << lo : 0;
}

/* The keys of selected block j that position t sees. */
static __device__ __forceinline__ key_range visible_block(const dims *c, int j, int t) {
    const int lo = j * c->lb;
    return {lo, lo + c->lb < t + 1 ? lo + c->lb : t + 1};
}

/* The compiler moves nothing past this: loads stay where they are early enough and no earlier,
 * which would take too many registers. All lanes of the warp are here. */
static __device__ __forceinline__ void schedule_barrier(void) {
#ifdef __CUDA_ARCH__
    __syncwarp();
#endif
}

/* A wide tile: 32 rows and 64 columns of a warp, 8 by 8 of them a lane's. A step of k takes 64
 * multiply-adds for four loads, where tile.cuh's 16 rows take 32 for three. Rows are
 * lane_row_32x64()..+7, columns lane_col_32x64()..+3 and 32 more; lanes i and i^1 have the same
 * columns, lanes i and i^2 the same rows, which is what shared memory is fast at. */
typedef struct acc_32x64 {
    float x[LANE_ROWS][2 * LANE_COLS];
} acc_32x64;

static __device__ __forceinline__ int lane_row_32x64(void) {
    const int lane = (int)threadIdx.x % WARP_SIZE;
    return (lane & 1) * LANE_ROWS + (lane >> 4) * TILE_ROWS;
}

static __device__ __forceinline__ int lane_col_32x64(void) {
    return ((int)threadIdx.x >> 1 & 7) * LANE_COLS;
}

static __device__ __forceinline__ void zero_acc_32x64(acc_32x64 *acc) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
        for (int j = 0; j < 2 * LANE_COLS; j++)
            acc->x[i][j] = 0;
    }
}

/* acc += sum over k < count of A's row k times B's; MASKED: only of rows whose bit in `mask` is
 * set. PREFETCH_DEPTH rows at a time go through s_staging, STAGING_FLOATS floats of the warp's own:
 * what is loaded in whole lines, and while the rows before are used, may come from far. A_GLOBAL:
 * A^T is two row tiles [count][16], `a` is the one of the lane's half of the warp; else it is in
 * shared memory, `a` is the lane's address in row 0, and rows are lda apart. B:     rows of 64, ldb
 * apart, from b on; with s_tile, row k is row k % 16 of tile s_tile[k / 16]. */
template <bool A_GLOBAL, bool MASKED>
static __device__ __forceinline__ void warp_matmul_32x64(acc_32x64 *acc, const float *a, int lda,
                                                         const float *b, int ldb, int count,
                                                         const int64_t *s_tile, uint64_t mask,
                                                         float *s_staging) {
    const int lane = (int)threadIdx.x % WARP_SIZE;
    float4 r_a, r_b0, r_b1;
    b += lane / 16 * ldb + lane % 16 * 4;
    const float *from = s_tile ? b + s_tile[0] * TILE_ROWS * ldb : b;
    if (A_GLOBAL) {
        a += lane % 16 * 4;
        r_a = load4(a);
    }
    r_b0 = load4(from);
    r_b1 = load4(from + 2 * ldb);
#pragma unroll 1
    for (int k = 0; k < count; k += PREFETCH_DEPTH) {
        __syncwarp(); /* the rows before have been used */
        *(float4 *)(s_staging + lane * 4) = r_b0;
        *(float4 *)(s_staging + lane * 4 + 2 * TILE_COLS) = r_b1;
        if (A_GLOBAL)
            *(float4 *)(s_staging + lane * 4 + PREFETCH_DEPTH * TILE_COLS) = r_a;
        __syncwarp();
        if (k + PREFETCH_DEPTH < count) { /* else load the last again, for nothing */
            from = s_tile && (k + PREFETCH_DEPTH) % TILE_ROWS == 0
                       ? b + s_tile[(k + PREFETCH_DEPTH) / TILE_ROWS] * TILE_ROWS * ldb
                       : from + PREFETCH_DEPTH * ldb;
            if (A_GLOBAL)
                a += PREFETCH_DEPTH * TILE_ROWS;
        }
        if (A_GLOBAL)
            r_a = load4(a);
        r_b0 = load4(from);
        r_b1 = load4(from + 2 * ldb);
        schedule_barrier();
#pragma unroll
        for (int u = 0; u < PREFETCH_DEPTH; u++) {
            const float *s_a = A_GLOBAL
                                   ? s_staging + PREFETCH_DEPTH * TILE_COLS +
                                         lane_row_32x64() / TILE_ROWS * PREFETCH_DEPTH * TILE_ROWS +
                                         lane_row_32x64() % TILE_ROWS + u * TILE_ROWS
                                   : a + u * lda;
            const float *s_b = s_staging + lane_col_32x64() + u * TILE_COLS;
            const float4 lo = load4(s_a), hi = load4(s_a + 4);
            float4 b0 = load4(s_b), b1 = load4(s_b + TILE_COLS / 2);
            if (MASKED && !(mask >> (k + u) & 1)) /* not by zeros of A: 0 * NaN is NaN */
                b0 = b1 = make_float4(0, 0, 0, 0);
            const float x[LANE_ROWS] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
            const float y[2 * LANE_COLS] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
                for (int j = 0; j < 2 * LANE_COLS; j++)
                    acc->x[i][j] += x[i] * y[j];
            }
            if (u % 2)
                schedule_barrier();
        }
        if (!A_GLOBAL)
            a += PREFETCH_DEPTH * lda;
    }
}

/* gate P of two tiles from their S: 2^(scale2 (S - most)) over gate, 0 where a key is not seen,
 * whatever lies there. `s_p` is the lane's address among the two tiles' rows [32][64]. */
static __device__ __forceinline__ void recompute_p_32x64(const dims *c, const acc_32x64 *s,
                                                         const float4 *terms, uint64_t mask,
                                                         float *s_p) {
    const unsigned visible = (unsigned)(mask >> lane_col_32x64()) & 15;
    const unsigned visible_hi = (unsigned)(mask >> (lane_col_32x64() + TILE_COLS / 2)) & 15;
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float4 term = terms[i];
        schedule_barrier();
        const float gated_inv_sum = term.y * term.z;
        float p[2 * LANE_COLS];
#pragma unroll
        for (int j = 0; j < 2 * LANE_COLS; j++)
            p[j] = (j < LANE_COLS ? visible >> j : visible_hi >> (j - LANE_COLS)) & 1
                       ? exp2f(c->scale2 * (s->x[i][j] - term.x)) * gated_inv_sum
                       : 0;
        store4(s_p + i * BLOCK, p[0], p[1], p[2], p[3]);
        store4(s_p + i * BLOCK + TILE_COLS / 2, p[4], p[5], p[6], p[7]);
    }
}

/* From dP of two tiles and gate P to dS = scale gate P (dP - <dO,o>); 0 where P is, whatever a
 * value that is not seen made of dP. `s_p` as for recompute_p_32x64(). */
static __device__ __forceinline__ void compute_ds_32x64(const dims *c, acc_32x64 *dp,
                                                        const float4 *terms, const float *s_p) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float dgate = terms[i].w;
        schedule_barrier();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float4 p4 = load4(s_p + i * BLOCK + half * TILE_COLS / 2);
            const float p[LANE_COLS] = {p4.x, p4.y, p4.z, p4.w};
            float *x = dp->x[i] + half * LANE_COLS;
#pragma unroll
            for (int j = 0; j < LANE_COLS; j++)
                x[j] = p[j] != 0 ? c->scale * p[j] * (x[j] - dgate) : 0;
        }
    }
}

/* A wide tile to its place: `to` is the lane's address there. */
static __device__ __forceinline__ void store_rows(float *to, int ld, const acc_32x64 *x) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float *row = x->x[i];
        store4(to + i * ld, row[0], row[1], row[2], row[3]);
        store4(to + i * ld + TILE_COLS / 2, row[4], row[5], row[6], row[7]);
    }
}

/* Ask for `count` floats that are needed soon: from device memory into the second-level cache. */
static __device__ __forceinline__ void prefetch(const float *x, int64_t count) {
#ifdef __CUDA_ARCH__
#pragma unroll 1
    for (int64_t i = threadIdx.x % WARP_SIZE * 32; i < count; i += WARP_SIZE * 32)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(x + i));
#else
    (void)x, (void)count;
#endif
}

/* backward_inverse.cu */
nsa_status open_inverse_list(stage *st, scratch *s);
nsa_status build_inverse_list(stage *st, const grad_args *args, int branch, inverse_list *v);

/* backward_attend.cu */
nsa_status open_queries(scratch *s, const dims *c, size_t max_shared);
nsa_status backward_gate(stage *st, const grad_args *args);
nsa_status backward_queries(stage *st, const grad_args *args);

/* backward_range.cu */
nsa_status open_range(scratch *s, const dims *c, size_t max_shared);
nsa_status backward_range(stage *st, const grad_args *args);

/* backward_keys.cu */
nsa_status open_keys(scratch *s, size_t max_shared);
nsa_status backward_keys(stage *st, const grad_args *args, const inverse_list *v);

/* backward_compress.cu */
nsa_status open_compress(stage *st, scratch *s);
nsa_status compress_pack_backward(stage *st, int pair);

#endif
