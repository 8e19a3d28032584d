/** @file
 *  @brief Stage 02: what its files share. Blocks in memory, each loaded once for a whole group. */
#ifndef STAGE_H
#define STAGE_H

#include "common/counts.h"
#include "tile.h"

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#else /* one thread */
#define omp_get_thread_num()  0
#define omp_get_max_threads() 1
#endif

typedef float real; /* what this stage computes in */
#define ARITH    NSA_FLOAT32
#define IDEA     "lay memory out in blocks, and give each loaded block to a whole group"
#define copy     nsa_copy_f32 /* from a tensor of either float type to reals */
#define real_exp expf

#include "common/cpu_stage.h"

enum {
    RAW = BRANCHES, /* k_cmp and v_cmp in blocks too, for plain attention over them */
    LAYOUTS
};

enum {
    BLOCK = 64,      /* keys of a block in memory, whatever l' is */
    QUERY_TILE = 64, /* neighbouring queries that visit the blocks together */
    MLP_BATCH = 48   /* blocks that an mlp compressor takes at a time */
};

/* Where one branch's keys and values lie, [KEYS] and [VALUES]. Block j of head h in a sequence is
 * number h * stride + first + j of all blocks, and D is dk or dv. In each block,
 *     transposed: [D,BLOCK]      element c of key j at [c * BLOCK + j]
 *     natural:    [BLOCK,Dp]     element c of key j at [j * Dp + c], Dp being D up to LANES
 *
 *        keys, transposed                      values, natural
 *        key 0   1   2       63                  c 0  1  2      D-1
 *     c 0  k   k   k  ...  k                key 0  v  v  v ... v  0 0    zeros up to Dp
 *     c 1  k   k   k  ...  k                key 1  v  v  v ... v  0 0
 *     ...                                   ...
 *     s[0..63] += q[c] * row c              o[0..D-1] += p[j] * row j
 *
 * So q k^T and p v are the same loop: contiguous rows, each times one number, added up. Backward
 * needs both the other way round, too. */
typedef struct kv_blocks {
    real *transposed[PAIR], *natural[PAIR]; /* NULL where not needed */
    real *gradient[PAIR];                   /* natural; one such set for each thread */
    int64_t stride;                         /* blocks of one head */
} kv_blocks;

/* The keys lo..hi-1 of one block: what stage 01's list of tokens has become. `next` is the block to
 * prefetch meanwhile; -1 for none. */
typedef struct span {
    int32_t block, next;
    int16_t lo, hi;
} span;

/* The blocks first..end-1 of a sequence. */
typedef struct block_range {
    int64_t first, end;
} block_range;

/* Result rows first..first+count-1: neighbouring queries of one sequence. */
typedef struct row_range {
    int64_t first, count, sequence;
} row_range;

/* The same rows, for the group of heads of one KV head: what a thread works on. Its queries visit
 * the blocks together, so that a block is fetched from memory once for up to QUERY_TILE of them:
 *
 *     block            0   1   2   3   4   5   6
 *     query t          x           x       x   x     x: the query sees keys of this block
 *     query t+1        x           x   x       x
 *     query t+2        x       x   x           x
 *     visiting queries 3   0   1   3   1   1   3 */
typedef struct query_tile {
    const kv_blocks *in;          /* the pack's [LAYOUTS], or the decode caches [BRANCHES] */
    int64_t first_block[LAYOUTS]; /* where the queries' sequence begins in each */
    int64_t row, count, kvh;      /* result rows row..row+count-1 */
    int64_t t[QUERY_TILE];        /* positions of the queries in their sequence */
} query_tile;

/* One thread's scratch. */
typedef struct work {
    span *spans; /* [QUERY_TILE*max_spans] what each query sees, in turn */
    int64_t next_span[QUERY_TILE], end_span[QUERY_TILE]; /* of each query's spans */
    real *s, *dp;     /* [G,BLOCK] scores, then exponentials, or gate p in backward; dp, then ds */
    real *scores;     /* [blocks of compressed keys][G,BLOCK] scores, then exponentials */
    real *p_group;    /* [compressed keys] probabilities summed over the group */
    real *importance; /* [max_blocks] */
    real *o;          /* [QUERY_TILE,G,dvp] a branch's outputs as they grow */
    real *partial;    /* [G,dvp] a part of the compressed branch's outputs */
    real *row_max;    /* [QUERY_TILE,G] of the online softmax: scores as they are */
    real *row_sum;    /* [QUERY_TILE,G,LANES] in LANES parts */
    real *inv_sum;    /* [QUERY_TILE,G] 1/row_sum */
    real *hidden, *dhidden; /* gated: [l]; mlp: [phi_hidden,MLP_BATCH] */
    real *z, *dz;           /* mlp: [MLP_BATCH,Z], Z = z_width() */
    real *zt, *yt;          /* mlp: [l*D,MLP_BATCH], [D,MLP_BATCH] */
    real *y;                /* [MLP_BATCH,D] compressed tokens, on their way to blocks */
    nsa_timer timer;
} work;

typedef struct stage {
    const nsa_plan *plan;
    nsa_config cfg;
    nsa_batch batch;  /* of the last load */
    nsa_step step;    /* of the last load_step */
    int64_t rows;     /* of the results: R after forward, A after decode */
    int64_t dkp, dvp; /* dk and dv up to LANES */
    int threads;
    work *work;      /* [threads] */
    nsa_timer timer; /* of the last call: the threads' mean */
    row_range *tiles;
    int64_t n_tiles;
    int64_t max_spans; /* of one query */

    real *q, *gate, *dout;    /* [R,Hq,dkp] [R,Hq,3] [R,Hq,dvp]: the rows to compute */
    real *raw[PAIR];          /* [T,Hkv,dk] [T,Hkv,dv]: k_cmp and v_cmp, which only phi reads */
    kv_blocks in[LAYOUTS];    /* compressed, selected and window keys and values */
    real *phi[PAIR][WEIGHTS]; /* the compressors' weights; NULL where phi has none */

    real *out, *out_x[BRANCHES]; /* [R,Hq,dv]; out_x NULL if not wanted */
    real *out_causal;            /* [R,Hq,dv] */
    int32_t *block_idx;          /* [R,Hkv,n] */
    real *importance;            /* [R,Hkv,J]; NULL if not wanted */
    int keep_importance;         /* after forward, not after decode */
    real *stats;                 /* [R,Hq,3,2] row_max and inv_sum, for backward */

    real *dq, *dgate;           /* [R,Hq,dkp] [R,Hq,3] */
    real *d_raw[PAIR];          /* [T,Hkv,dk] [T,Hkv,dv]: gradients of k_cmp and v_cmp */
    real *dphi[PAIR][WEIGHTS];  /* W1's rows are padded as z's */
    void *result[NSA_ID_COUNT]; /* what read() copies as it lies; it unpacks the others */

    kv_blocks cache[BRANCHES]; /* the decode caches; a slot's blocks lie together */
    real *cache_raw[PAIR];     /* [max_seqs,max_seq_len,Hkv,dk or dv] */
} stage;

static inline int64_t round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

/* <a,b> over n elements, in LANES sums of their own */
static inline real dot(const real *a, const real *b, int64_t n) {
    real sums[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++)
            sums[j] += a[i + j] * b[i + j];
    }
    for (int j = 0; j < LANES; j++)
        sum += sums[j];
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y += a x over n elements */
static inline void add_scaled(real *y, real a, const real *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* The group's first head, among the heads of all result rows, for query i of the tile. */
static inline int64_t first_head(const stage *st, const query_tile *qt, int64_t i) {
    return (qt->row + i) * st->cfg.q_heads + qt->kvh * st->plan->group;
}

/* The tile's block number `block` of a branch, among all blocks of that branch. */
static inline int64_t block_of(const query_tile *qt, int branch, int64_t block) {
    return qt->kvh * qt->in[branch].stride + qt->first_block[branch] + block;
}

/* The first block of sequence b of the pack. Each begins a block of its own and leaves at most one
 * unfilled: room for b blocks more than the tokens before it fill. */
static inline int64_t first_block(const stage *st, int branch, int64_t b) {
    return (branch == CMP ? st->batch.cmp : st->batch.seq)[b] / BLOCK + b;
}

/* The same of a slot of the decode caches: all slots have as many blocks. */
static inline int64_t first_of_slot(const stage *st, int branch, int64_t slot) {
    return slot * (st->cache[branch].stride / st->cfg.max_seqs);
}

/* Whether query i's next span lies in this block; it may have several there where l' is no multiple
 * of BLOCK. */
static inline int in_block(const work *w, int64_t i, int64_t block) {
    return w->next_span[i] < w->end_span[i] && w->spans[w->next_span[i]].block == block;
}

/* stage.c */
query_tile pack_tile(const stage *st, int64_t unit);
void pack_row(const stage *st, const kv_blocks *in, int pair, int64_t key, const real *x);

/* compress.c: `count` blocks of one head, x the first row of the first, `stride` reals to the next
 * block's; compress() leaves their compressed tokens in w->y [count,D] */
typedef struct cmp_blocks {
    const real *x;
    int64_t stride, count;
} cmp_blocks;
int64_t width(const stage *st, int pair);
int64_t z_width(const stage *st, int pair);
int64_t padded_count(const stage *st, int pair, int weight);
void compress(const stage *st, work *w, int pair, cmp_blocks in);
void compress_pack(stage *st);
void gated_weights(const stage *st, int pair, const real *x, real *a);
void mlp_hidden(const stage *st, work *w, int pair, cmp_blocks in);
void transpose(real *y, const real *x, int64_t x_row, int64_t rows, int64_t cols);

/* select.c */
void add_importance(const nsa_config *c, const real *p, int64_t n_cmp, int64_t blocks, real *imp);
void select_blocks(const nsa_config *c, const real *imp, int64_t t, int32_t *idx);

/* attend.c */
block_range list_spans(const stage *st, work *w, const query_tile *qt, int mask);
void score(const stage *st, const query_tile *qt, int64_t i, int branch, span sp, real *s);
void attend_blocks(const stage *st, work *w, const query_tile *qt, int branch, block_range range);
void attend_tile(stage *st, work *w, const query_tile *qt, const int32_t *forced);

/* read.c */
nsa_status read(void *self, nsa_id id, const nsa_tensor *to);

/* forward.c, decode.c, backward*.c */
void add_mean_times(stage *st);
nsa_status forward(void *self);
nsa_status causal(void *self, int pair);
nsa_status prefill(void *self);
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step);
nsa_status decode(void *self);
nsa_status backward(void *self);
void backward_tile(stage *st, work *w, const query_tile *qt);
void compress_backward(stage *st, work *w, int pair, cmp_blocks in, const real *dy, real *dx);

#endif
