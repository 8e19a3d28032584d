/** @file
 *  @brief What decode.cu and its kernels share. A unit is a tile of 16 heads of a step's row. Its
 *  keys are split over many CUDA blocks (split-KV, as in FlashDecoding), whose outputs are combined
 *  at the end. */
#ifndef DECODE_CUH
#define DECODE_CUH

#include "attend.cuh"

enum {
    MAX_SPLITS = 64,
    SPLIT_WARPS = 4, /* of a CUDA block that attends one split of the keys */
    SELECT_WARPS = 8 /* warps that select blocks for one row */
};

/* Row maximum (of q.k, before scaling) and row sum of the softmax over one split of the keys. */
typedef struct partial_stats {
    float row_max, row_sum;
} partial_stats;

/* Arguments of a step's kernels. Row a of max_seqs is a slot's next token; unit number (a*Hkv +
 * h)*GT + g16. Nothing here depends on the number of active slots or their lengths. */
typedef struct decode_args {
    dims c;
    int units;
    const int32_t *t;    /* [max_seqs] position of each row; -1 where there is no row */
    const int32_t *slot; /* [max_seqs] its slot */
    const real *q_t;     /* [units][dk8][16] */
    const real *gate;    /* [max_seqs,Hq,3] */
    kv_blocks in[BRANCHES];
    int64_t slot_blocks[BRANCHES]; /* blocks of one slot, for one head */
    int splits[BRANCHES];          /* CUDA blocks of a unit */
    real *scores;                  /* [units, blocks of a slot][16][64] of the compressed keys */
    real *split_o; /* [units, splits of all branches][16][dvp], not divided by the row sum */
    partial_stats *split_stats;  /* [units, splits of all branches][16] */
    int32_t *block_idx;          /* [max_seqs,Hkv,n] */
    real *out, *out_x[BRANCHES]; /* [max_seqs,Hq,dvp] */
    bool forced;                 /* block_idx is given: do not select */
} decode_args;

static __device__ __forceinline__ int all_splits(const decode_args *a) {
    return a->splits[CMP] + a->splits[SLC] + a->splits[WIN];
}

/* Order of the splits: compressed and window first, for they do not wait for the selection. */
static __device__ __forceinline__ int first_split(const decode_args *a, int branch) {
    return branch == CMP ? 0 : branch == WIN ? a->splits[CMP] : a->splits[CMP] + a->splits[WIN];
}

/* row_max and 1 / row_sum of one head over all splits of a branch. */
static __device__ __forceinline__ row_stats combine_stats(const decode_args *a, int64_t unit,
                                                          int branch, int head) {
    const partial_stats *g_split =
        a->split_stats + (unit * all_splits(a) + first_split(a, branch)) * TILE_ROWS + head;
    float row_max = -INFINITY, row_sum = 0;
    for (int i = 0; i < a->splits[branch]; i++) /* a split without keys has 0, 0 */
        row_max = g_split[i * TILE_ROWS].row_sum != 0
                      ? fmaxf(row_max, g_split[i * TILE_ROWS].row_max)
                      : row_max;
    row_max = row_max == -INFINITY ? 0 : row_max;
    for (int i = 0; i < a->splits[branch]; i++)
        row_sum += g_split[i * TILE_ROWS].row_sum != 0
                       ? g_split[i * TILE_ROWS].row_sum *
                             exp2f(a->c.scale2 * (g_split[i * TILE_ROWS].row_max - row_max))
                       : 0;
    return row_stats{row_max, row_sum != 0 ? 1 / row_sum : 0};
}

/* decode_attend.cu */
nsa_status open_decode_attend(const decode_args *a);
/* Splits `from`..`to`-1 of every unit; the splits of the branches follow each other. */
nsa_status decode_splits(stage *st, const decode_args *a, int from, int to);
nsa_status decode_combine(stage *st, const decode_args *a);

/* select.cu */
nsa_status open_decode_select(void);
nsa_status decode_select(stage *st, const decode_args *a);

#endif
