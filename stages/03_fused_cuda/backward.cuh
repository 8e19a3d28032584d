/** @file
 *  @brief Stage 03, backward: what its files share. */
#ifndef BACKWARD_CUH
#define BACKWARD_CUH

#include "stage.cuh"

enum {
    DQ_WARPS = 12,      /* query rows of a CUDA block for dq, one warp each; the maximum */
    PAIR_ROWS = 32,     /* rows of a 32 x 64 tile: two row tiles, or 32 keys */
    MAX_STEP_TILES = 8, /* row tiles in one step of dkv_kernel; the maximum */
    MAX_SUM_WARPS = 8,  /* its warps that sum dk and dv; the maximum */
    RING = 8,           /* steps whose tiles all warps know; a power of two */
    LIST_CHUNKS = 256,  /* chunks of rows that are inverted in parallel */
    STAGING_FLOATS = PREFETCH_DEPTH * (TILE_COLS + PAIR_ROWS), /* of one warp's staging */
    MIN_UNIT_ROWS = 1024,                                      /* rows of a work unit, at least */
    MAX_EXTRA_UNITS = 16384 /* more than one for each block; bounds their partial sums */
};

/* Arguments of the attention kernels; all pointers are to device memory. A row tile is 16 heads of
 * (row r, kv head h): number (r*Hkv + h)*GT + g16. */
typedef struct grad_args {
    dims c;
    int64_t R;
    const sequence *seqs;
    int64_t B;
    const int32_t *row_t, *row_seq; /* [R] */
    const int32_t *block_idx;       /* [R,Hkv,n] */
    const real *q_t, *q_n;          /* [tiles][dk8][16]  [tiles][16][dkp] */
    const real *dout_t, *dout_n;    /* [tiles][dv8][16]  [tiles][16][dvp] */
    const float4 *terms; /* [BRANCHES][tiles][16]: row_max, inv_sum, gate, dgate of each head */
    kv_blocks in[BRANCHES];
    real *dq; /* [R,Hq,dkp] */
} grad_args;

/* Inverse list of one branch: for each block of keys, the query rows that see it. Block b is block
 * b % stride of head b / stride. The rows of a block are cut into work units of up to unit_rows
 * rows; units are numbered block after block. */
typedef struct inverse_list {
    int branch;
    int64_t blocks; /* Hkv * stride */
    int64_t stride;
    int64_t unit_rows;       /* rows of a unit */
    int64_t max_extra_units; /* units beyond one for each block, at most */
    int64_t *start; /* [blocks] where its rows begin in `list`; without a list, its first row */
    int32_t *count; /* [blocks] its number of rows */
    int32_t *first_unit;   /* [blocks + 1] prefix sum of units */
    int32_t *list;         /* the selected branch's rows, ascending in each block; else NULL */
    int32_t *chunk_counts; /* [Hkv,LIST_CHUNKS,stride] selected: rows in each chunk, then offsets */
    int64_t chunk;         /* rows of a chunk */
    real *partial;         /* [units][BLOCK][dvp + dkp]: a unit's sums for dv, then for dk */
} inverse_list;

/* What backward needs beyond the stage's own fields; in host memory. */
typedef struct scratch {
    int dq_warps;  /* row tiles of a CUDA block, for dq of selected keys */
    int dq_pairs;  /* pairs of row tiles, for dq of the other branches */
    int dkv_tiles; /* row tiles in one step, for dk and dv */
    float4 *terms;
    inverse_list inverse; /* buffers that each branch uses in turn */
    int32_t *list;
} scratch;

/* The keys [lo,hi) that position t sees, where they are one range. */
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

/* Mask of the keys [lo,hi) among the 64 from key `first` on. */
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

/* A barrier for the compiler's scheduling: no load moves past it. Earlier loads would need too many
 * registers, later ones would come too late. All lanes of the warp call it. */
static __device__ __forceinline__ void schedule_barrier(void) {
#ifdef __CUDA_ARCH__
    __syncwarp();
#endif
}

/* A lane's accumulators of a 32 x 64 tile, 8 x 8. A step of k has 64 multiply-adds for four loads;
 * tile.cuh's 16 x 64 has 32 for three. Rows are lane_row_32x64()..+7, columns lane_col_32x64()..+3
 * and 32 further. Lanes i and i^1 have the same columns, lanes i and i^2 the same rows: shared
 * memory serves such pairs at once. */
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

/* acc += sum over k < count of A's row k times B's row k. MASKED: only over rows whose bit in
 * `mask` is set. PREFETCH_DEPTH rows at a time go through s_staging, STAGING_FLOATS floats of this
 * warp: they are loaded as whole lines, while the rows before them are used.
 *   A_GLOBAL: A^T is two row tiles [count][16]; `a` is the tile of the lane's half of the warp.
 *   Else A^T is in shared memory; `a` is the lane's address in row 0, rows are lda apart.
 *   B: rows of 64, ldb apart, from b on; s_tile: row k is row k % 16 of tile s_tile[k / 16]. */
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
        __syncwarp(); /* all lanes have used the rows before */
        *(float4 *)(s_staging + lane * 4) = r_b0;
        *(float4 *)(s_staging + lane * 4 + 2 * TILE_COLS) = r_b1;
        if (A_GLOBAL)
            *(float4 *)(s_staging + lane * 4 + PREFETCH_DEPTH * TILE_COLS) = r_a;
        __syncwarp();
        if (k + PREFETCH_DEPTH < count) { /* else the last rows are loaded again, unused */
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
            if (MASKED && !(mask >> (k + u) & 1)) /* zeros in A do not suffice: 0 * NaN is NaN */
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

/* gate P of two tiles from their S: 2^(scale2 (S - row_max)) inv_sum gate, and 0 if the key is not
 * visible, whatever S is. `s_p` is the lane's address in the two tiles' rows [32][64]. */
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

/* dS = scale gate P (dP - <dO,o>) of two tiles from dP and gate P; 0 where P is 0, for dP may be
 * NaN there. `s_p` as for recompute_p_32x64(). */
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

/* Store a 32 x 64 tile; `to` is the lane's address there. */
static __device__ __forceinline__ void store_rows(float *to, int ld, const acc_32x64 *x) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float *row = x->x[i];
        store4(to + i * ld, row[0], row[1], row[2], row[3]);
        store4(to + i * ld + TILE_COLS / 2, row[4], row[5], row[6], row[7]);
    }
}

/* Prefetch `count` floats into the second-level cache. */
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

#endif
