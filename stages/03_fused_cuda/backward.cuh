/** @file
 *  @brief Stage 03, backward: what its files share. */
#ifndef BACKWARD_CUH
#define BACKWARD_CUH

#include "attend.cuh"

enum {
    DQ_WARPS = 8,           /* query rows of a CUDA block for dq, one warp each; the maximum */
    DKV_WARPS = 8,          /* of a CUDA block for dk and dv */
    LIST_CHUNKS = 256,      /* chunks of rows that are inverted in parallel */
    MIN_UNIT_ROWS = 1024,   /* rows of a work unit, at least */
    MAX_EXTRA_UNITS = 16384 /* more than one for each block; bounds their partial sums */
};

/* What backward needs of one head's softmax; all zero for a head of padding, so that P = dS = 0. */
typedef struct row_terms {
    float row_max, inv_sum, gate, dgate;
} row_terms;

/* Arguments of the attention kernels; all pointers are to device memory. `f` is forward's; its
 * tiles are those of dq. A row tile is 16 heads of (row r, kv head h): number (r*Hkv + h)*GT + g16.
 */
typedef struct grad_args {
    attend_args f;
    int64_t R, B, row_tiles;     /* row_tiles: R * Hkv * GT */
    const real *q_n;             /* [row_tiles][16][wp] */
    const real *dout_t, *dout_n; /* [row_tiles][dv8][16]  [row_tiles][16][wp] */
    row_terms *terms;            /* [BRANCHES][row_tiles][16] */
    real *dq, *dgate;            /* [R,Hq,dkp] [R,Hq,3] */
} grad_args;

/* Inverse list of one branch: for each block of keys, the query rows that see it. Block b is block
 * b % stride of head b / stride. The rows of a block are cut into work units of up to unit_rows
 * rows; units are numbered block after block. */
typedef struct inverse_list {
    int branch;
    int64_t blocks; /* Hkv * stride */
    int64_t stride;
    int64_t unit_rows; /* rows of a unit */
    int64_t max_units; /* units of one block, at most */
    int64_t *start;    /* [blocks] where its rows begin in `list`; without a list, its first row */
    int32_t *count;    /* [blocks] its number of rows */
    int32_t *first_unit;   /* [blocks] prefix sum of units */
    int32_t *list;         /* the selected branch's rows, ascending in each block; else NULL */
    int32_t *chunk_counts; /* [Hkv,chunks,stride] selected: rows in each chunk, then offsets */
    int64_t chunk, chunks; /* rows of a chunk; their number */
    real *partial;         /* [units][2][BLOCK][wp]: a unit's sums for dv, then for dk */
} inverse_list;

/* What the attention kernels of backward need beyond the stage's own fields; in host memory. */
typedef struct scratch {
    int dq_warps, dkv_tiles; /* query rows of a CUDA block for dq; row tiles in a step of dkv */
    row_range *tiles;        /* of up to dq_warps rows */
    int64_t n_tiles;
    row_terms *terms;
    inverse_list inverse; /* buffers that each branch uses in turn */
    int32_t *list;
} scratch;

/* What a tile of scores is made of, a row tile and a block of keys: numbers among all blocks of the
 * branch, rows and row tiles. */
typedef struct score_tile {
    int64_t block, row, tile;
} score_tile;

/* Units of a block that `count` rows see. */
static __host__ __device__ __forceinline__ int64_t units_of(const inverse_list *inv,
                                                            int64_t count) {
    return (count + inv->unit_rows - 1) / inv->unit_rows;
}

/* From scores S and dP to dS, in place of dP (Eq. 5 and softmax's derivative):
 *     P = 2^(scale2 (S - row_max)) inv_sum,   dS = scale gate P (dP - dgate),
 * for dgate = <dO,o> = sum_s P_s dP_s. S becomes gate P, which dv needs. Both are 0 where the key
 * is not visible, whatever lies there. `terms` are the tile's 16. */
static __device__ __forceinline__ void softmax_backward(const dims *c, acc_16x64 *s, acc_16x64 *dp,
                                                        const row_terms *terms, uint64_t mask) {
    const unsigned visible = (unsigned)(mask >> lane_col());
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const row_terms term = terms[lane_row() + i];
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++) {
            const float p = exp2f(c->scale2 * (s->x[i][j] - term.row_max)) * term.inv_sum;
            const float gated = visible >> j & 1 ? term.gate * p : 0;
            dp->x[i][j] = visible >> j & 1 ? c->scale * gated * (dp->x[i][j] - term.dgate) : 0;
            s->x[i][j] = gated;
        }
    }
}

/* backward_attend.cu */
nsa_status open_queries(stage *st, scratch *s);
nsa_status gate_backward(stage *st, const grad_args *args);
nsa_status backward_queries(stage *st, const grad_args *args);

/* backward_inverse.cu */
void open_inverse_list(stage *st, scratch *s);
/* Of one branch, and its units. */
nsa_status build_inverse_list(stage *st, const grad_args *args, int branch, inverse_list *inv);

/* backward_keys.cu */
nsa_status open_keys(stage *st, scratch *s);
nsa_status backward_keys(stage *st, const grad_args *args, const inverse_list *inv);

#endif
