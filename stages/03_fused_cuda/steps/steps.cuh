/** @file
 *  @brief From a thread for each row to the stage's fused kernel in four moves: what the steps
 *  of the chain `attend` share. Read them in order: `make diff A=03/attend/0 B=03/attend/1`, and so
 *  on; each changes one thing.
 *
 *  The problem of every step is one KV head whose query at position t has G heads. All of them see
 *  the tokens s <= t of the same n selected blocks, and the tokens t-w < s <= t of a window, each
 *  branch with keys and values of its own (Eq. 5, 12):
 *
 *      out_tg = g_slc o_slc + g_win o_win,   o = sum_s p_s v_s,   p = softmax_s(scale q_tg.k_s)
 *
 *  Steps 2 to 4 use the stage's own warp tile (tile.cuh) and online softmax (attend.cuh). */
#ifndef STEPS_CUH
#define STEPS_CUH

#include "attend.cuh"

enum {
    G = TILE_ROWS, /* heads of the group: the 16 rows of a tile */
    D = TILE_COLS, /* head dimension of keys and values: one tile of 64 columns */
    NEIGHBOURS = 4 /* neighbouring queries that share a window's blocks (steps 3 and 4) */
};

/* What a step reads and writes; all pointers are to device memory. The entry CMP of the arrays over
 * branches is not used. Keys and values are in blocks, as the stage's `load` leaves them: packing
 * is done once and is no part of a step's time. */
typedef struct problem {
    int T, n, w;               /* tokens; blocks selected; window, in tokens */
    float scale2;              /* makes log2 of a difference of scores: log2(e)/sqrt(D) */
    const float *q;            /* [T,G,D] */
    const float *gate;         /* [T,G,BRANCHES] */
    const float *kt[BRANCHES]; /* [ceil(T/BLOCK)][D,BLOCK] blocks of keys, transposed */
    const float *v[BRANCHES];  /* [ceil(T/BLOCK)][BLOCK,D] blocks of values */
    const int32_t *idx;        /* [T,n] the blocks of each query, ascending; -1 after the last */
    float *o[BRANCHES];        /* [T,G,D] outputs before the gate (step 4 has none) */
    float *out;                /* [T,G,D] */
} problem;

/* Each step queues its launches on the default stream. */
nsa_status step_0_thread_row(const problem *pb);
nsa_status step_1_shared_block(const problem *pb);
nsa_status step_2_group(const problem *pb);
nsa_status step_3_neighbours(const problem *pb);
nsa_status step_4_fused(const problem *pb);

/* The keys lo..hi-1 of one block; hi = 0: no more blocks. */
typedef struct span {
    int block, lo, hi;
} span;

/* The keys of one block in query t's window; none (hi <= lo) outside of it. */
static __device__ __forceinline__ span span_win(const problem *pb, int t, int block) {
    const span sp = {block, max(t - pb->w + 1 - block * BLOCK, 0),
                     min(t + 1 - block * BLOCK, BLOCK)};
    return sp;
}

/* Span i of query t in one branch, blocks ascending. */
static __device__ __forceinline__ span span_of(const problem *pb, int branch, int t, int i) {
    span sp = {-1, 0, 0};
    if (branch == WIN) {
        const int block = max(t - pb->w + 1, 0) / BLOCK + i;
        return block <= t / BLOCK ? span_win(pb, t, block) : sp;
    }
    if (i < pb->n)
        sp.block = pb->idx[(int64_t)t * pb->n + i];
    if (sp.block >= 0)
        sp.hi = min(t + 1 - sp.block * BLOCK, BLOCK);
    return sp;
}

static __device__ __forceinline__ const float *keys_of(const problem *pb, int branch, int block) {
    return pb->kt[branch] + (int64_t)block * D * BLOCK;
}

static __device__ __forceinline__ const float *values_of(const problem *pb, int branch, int block) {
    return pb->v[branch] + (int64_t)block * BLOCK * D;
}

static __host__ __device__ __forceinline__ int64_t row_of(int t, int g) {
    return (int64_t)t * G + g;
}

/* ---------------------------------------------------------- of the host: problem.cu */

/* The inputs as the host keeps them: keys and values natural, [T,D]. */
typedef struct host {
    float *q, *gate, *k[BRANCHES], *v[BRANCHES];
    int32_t *idx;
} host;

/* Counts over all queries of a problem. */
typedef struct counts {
    double keys[BRANCHES];   /* visible keys */
    double blocks[BRANCHES]; /* blocks with visible keys */
    double shared;           /* window blocks, once for NEIGHBOURS queries that share them */
    double warp_keys;        /* window keys, once for 32 queries that share them */
} counts;

/* Zeroed host memory; ends the program if there is none. */
void *allocate(int64_t count, size_t size);
/* Random inputs, the same on every machine, on the host and the device. */
nsa_status make_problem(int T, host *h, problem *pb);
/* rms(out - reference)/rms(reference) over some queries, in float64; NaN if out has one. */
double rms_diff_float64(const problem *pb, const host *h, const float *out);
counts count(const problem *pb, const host *h);

#endif
