/** @file
 *  @brief What decode.cu and its kernels share. A step's row and tile of 16 heads is a unit; its
 * keys are dealt to many CUDA blocks (parts), and their outputs are put together at the end. */
#ifndef DECODE_CUH
#define DECODE_CUH

#include "attend.cuh"

enum {
    MOST_PARTS = 64,
    PART_WARPS = 4, /* of a CUDA block that attends a part of the keys */
    CHOOSERS = 8    /* warps that choose blocks for one row */
};

/* What the kernels of a step read and write. Row a of max_seqs is a slot's next token; a unit is
 * (a*Hkv + h)*GT + g16. Nothing here depends on how many slots are active, or how long they are. */
typedef struct decode_args {
    dims c;
    int units;
    const int32_t *t;    /* [max_seqs] position of each row; -1 where there is no row */
    const int32_t *slot; /* [max_seqs] its slot */
    const real *q_t;     /* [units][dk8][16] */
    const real *gate;    /* [max_seqs,Hq,3] */
    kv_blocks in[BRANCHES];
    int64_t first[BRANCHES]; /* blocks of one slot */
    int parts[BRANCHES];     /* CUDA blocks to a unit */
    real *scores;            /* [units, blocks of a slot][16][64] of the compressed keys */
    real *part_o;            /* [units, parts of all branches][16][dvp], not divided by the sum */
    row_stats *part_stats;   /* [units, parts of all branches][16] most, and the sum itself */
    int32_t *block_idx;      /* [max_seqs,Hkv,n] */
    real *out, *out_x[BRANCHES]; /* [max_seqs,Hq,dvp] */
    int forced;
} decode_args;

static __device__ __forceinline__ int all_parts(const decode_args *a) {
    return a->parts[CMP] + a->parts[SLC] + a->parts[WIN];
}

/* Parts come in this order: compressed and window first, for they wait for no choice. */
static __device__ __forceinline__ int first_part(const decode_args *a, int branch) {
    return branch == CMP ? 0 : branch == WIN ? a->parts[CMP] : a->parts[CMP] + a->parts[WIN];
}

/* Largest score and sum of one head over a branch's parts: most, and 1/sum. */
static __device__ __forceinline__ row_stats stats_of(const decode_args *a, int64_t unit, int branch,
                                                     int head) {
    const row_stats *g_part =
        a->part_stats + (unit * all_parts(a) + first_part(a, branch)) * ROWS + head;
    float most = -INFINITY, sum = 0;
    for (int i = 0; i < a->parts[branch]; i++) /* a part without keys has 0, 0 */
        most = g_part[i * ROWS].over != 0 ? fmaxf(most, g_part[i * ROWS].most) : most;
    most = most == -INFINITY ? 0 : most;
    for (int i = 0; i < a->parts[branch]; i++)
        sum += g_part[i * ROWS].over != 0
                   ? g_part[i * ROWS].over * exp2f(a->c.scale2 * (g_part[i * ROWS].most - most))
                   : 0;
    return row_stats{most, sum != 0 ? 1 / sum : 0};
}

/* decode_attend.cu */
nsa_status open_decode_attend(stage *st, const decode_args *a);
/* Parts `from`..`to`-1 of every unit; the parts of the branches follow each other. */
nsa_status decode_parts(stage *st, const decode_args *a, int from, int to);
nsa_status decode_combine(stage *st, const decode_args *a);

/* select.cu */
nsa_status open_choose(void);
nsa_status decode_choose(stage *st, const decode_args *a);

#endif
