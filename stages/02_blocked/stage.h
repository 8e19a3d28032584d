/** @file
 *  @brief Stage 02: what its files share. Blocks in memory, each loaded once for a whole group. */
#ifndef STAGE_H
#define STAGE_H

#include "common/counts.h"
#include "common/timer.h"
#include "common/pool.h"
#include "common/tensors.h"
#include "tile.h"

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif

typedef float real; /* what this stage computes in */
#define ARITH    NSA_FLOAT32
#define IDEA     "lay memory out in blocks, and give each loaded block to a whole group"
#define copy     nsa_copy_f32 /* from a tensor of either float type to reals */
#define real_exp expf

enum { CMP, SLC, WIN, BRANCHES }; /* the branches, in the order of the gate */
enum { RAW = BRANCHES, LAYOUTS }; /* k_cmp and v_cmp laid out too, for plain attention over them */
enum { KEYS, VALUES, PAIR };      /* the two compressors */
enum { PE, W, B, W1, B1, W2, B2, WEIGHTS }; /* a compressor's weights, in nsa_id's order */

/* What the lap clock tells apart; the branches' phases have the branches' numbers. */
enum { SELECT = BRANCHES, COMPRESS, PHASES };

enum {
    BLOCK = 64,      /* keys of a block in memory, whatever l' is */
    QUERY_TILE = 32, /* neighbouring queries that walk the blocks together: a bit of a word each */
    QUERIES_PER_PASS = 4, /* of them, those whose compressed scores are kept at the same time */
    FLUSH_EVERY = 32,     /* blocks after which a long sum is set aside */
    ZERO_PAD = 256,       /* zeros before a row of probabilities: l/d, at the most */
    RESCALE_THRESHOLD =
        8 /* a score may be this far above the online softmax's maximum, in units of log2 */
};

_Static_assert(QUERY_TILE <= 32, "each has a bit of a word of `wanted`");

/* Where one branch's keys and values lie. Head h's block j of a sequence is at
 *     kt + (h * stride + first + j) * dk * BLOCK      keys,   transposed: [dk,BLOCK]
 *     v  + (h * stride + first + j) * BLOCK * dvp     values, natural:    [BLOCK,dvp]
 * so that q k^T and p v are both sums of rows that are contiguous. Backward needs them the other
 * way round too: k [BLOCK,dkp] and vt [dv,BLOCK]. dkp and dvp are dk and dv, rounded up to LANES.
 */
typedef struct kv_blocks {
    real *kt, *v, *k, *vt;
    real *dk, *dv;  /* gradients, [BLOCK,dkp] and [BLOCK,dvp]; one such set for each thread */
    int64_t stride; /* blocks of one head */
} kv_blocks;

/* One sequence: where it begins in the blocks of each branch. */
typedef struct sequence {
    int64_t len;   /* tokens */
    int64_t n_cmp; /* compressed tokens, N */
    const kv_blocks *in[LAYOUTS];
    int64_t first[LAYOUTS];
} sequence;

/* The keys lo..hi-1 of one block: what stage 01's list of tokens has become. */
typedef struct span {
    int32_t block;
    int16_t lo, hi;
} span;

/* Query rows first..first+count-1 of the results, of one sequence. */
typedef struct tile_of_rows {
    int64_t first, count, sequence;
} tile_of_rows;

/* A tile's walk: at `block`, then at `next`; `end` is one behind the last. */
typedef struct block_iter {
    int64_t block, next, end;
} block_iter;

/* One thread's scratch. */
typedef struct work {
    span *spans; /* [QUERY_TILE*max_spans] what each query sees, query after query */
    int64_t *next_span, *end_span; /* [QUERY_TILE] its next span, and the end of its spans */
    uint32_t *query_mask;          /* [blocks of a sequence] which queries want it: bit i query i */
    real *s, *dp;                  /* [G,BLOCK] scores, then probabilities; and their gradients */
    real *scores;                  /* [QUERIES_PER_PASS][blocks of compressed keys][G,BLOCK] */
    int64_t score_stride;          /* from one query's scores to the next one's */
    real *lane_max; /* [QUERIES_PER_PASS,G,LANES] largest compressed scores, by lanes */
    real *partial;  /* [QUERIES_PER_PASS,G,dvp] long sums of the compressed branch */
    real *group_p;  /* [ZERO_PAD + compressed keys + strides] probabilities summed over the group */
    real *strides;  /* [strides] those summed over the blocks that share a stride; then what is
                     * left to choose from */
    real *importance; /* [max_blocks] */
    real *o;          /* [QUERY_TILE,G,dvp] a branch's outputs as they grow */
    real *row_max; /* [QUERY_TILE,G] lazy maximum of the online softmax: a score q.k, not scaled */
    real *row_sum, *inv_sum;     /* [QUERY_TILE,G,LANES] running sums; [QUERY_TILE,G] 1/sum */
    real *hidden, *dhidden, *dz; /* compressors: MLP_BATCH blocks at a time */
    nsa_timer timer;
} work;

typedef struct stage {
    const nsa_plan *plan;
    nsa_config cfg;
    nsa_batch batch;  /* of the last load */
    nsa_step step;    /* of the last load_step */
    int64_t rows;     /* of the results: R after forward, A after decode */
    int64_t dkp, dvp; /* dk and dv, rounded up to whole vectors */
    int threads;
    work *work;      /* [threads] */
    nsa_timer timer; /* of the last call: the threads' mean */
    tile_of_rows *tiles;
    int64_t n_tiles;
    int64_t max_spans;

    real *q, *gate, *dout;      /* [R,Hq,dkp] [R,Hq,3] [R,Hq,dvp]: the rows to compute */
    real *raw[PAIR];            /* [T,Hkv,dk] [T,Hkv,dv]: k_cmp and v_cmp, which only phi reads */
    kv_blocks in[LAYOUTS];      /* compressed, selected and window keys and values */
    int64_t *first[LAYOUTS];    /* [B+1] each sequence's first block */
    real *phi[PAIR][WEIGHTS];   /* the compressors' weights; NULL where phi has none */
    real *w1t[PAIR], *w2[PAIR]; /* [l*D,P] W1 transposed, [D,P] W2; P is hidden up to LANES */
    real *w1[PAIR], *w2t[PAIR]; /* [l,hidden,Dp] W1, [hidden,Dp] W2 transposed; Dp is dkp or dvp */
    real *bias[PAIR];           /* [P] W1 pe + b1 */

    real *out, *out_x[BRANCHES]; /* [R,Hq,dv]; out_x NULL if not wanted */
    real *out_causal;            /* [R,Hq,dv] */
    int32_t *block_idx;          /* [R,Hkv,n] */
    real *importance;            /* [R,Hkv,J]; NULL if not wanted */
    int keep_importance;         /* after forward, not after decode */
    real *stats;                 /* [R,Hq,3,2] maximum and 1/sum of each softmax, for backward */

    real *dq, *dgate;          /* [R,Hq,dkp] [R,Hq,3] */
    real *draw[PAIR];          /* [T,Hkv,dk] [T,Hkv,dv]: gradients of k_cmp and v_cmp */
    real *dphi[PAIR][WEIGHTS]; /* those of W1, B1 and W2 as w1t and w2 are */

    kv_blocks cache[BRANCHES]; /* decode: the same layout, max_seqs slots of a full length each */
    real *cache_raw[PAIR];     /* [max_seqs,max_seq_len,Hkv,dk or dv] */
    int64_t cache_first[BRANCHES]; /* blocks of one slot */
} stage;

/* Number of the thread that runs this. */
static inline int this_thread(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* Threads that a caller who asks for none in particular gets. */
static inline int max_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static inline int64_t round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

/* y += a x over n elements */
static inline void add_scaled(real *y, real a, const real *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
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

/* Whether query i's next span lies in this block; it may have several there where l' is no multiple
 * of BLOCK. */
static inline int in_block(const work *w, int64_t i, int64_t block) {
    return w->next_span[i] < w->end_span[i] && w->spans[w->next_span[i]].block == block;
}

/* stage.c */
int64_t weight_count(const stage *st, int pair, int weight);
int64_t gradient_count(const stage *st, int pair, int weight);
sequence pack_sequence(const stage *st, int64_t b);
void pack_key(const stage *st, const kv_blocks *in, int64_t h, int64_t block, int64_t at,
              const real *k);
void pack_value(const stage *st, const kv_blocks *in, int64_t h, int64_t block, int64_t at,
                const real *v);

/* compress.c */
enum { MLP_BATCH = 48 }; /* blocks that an mlp compressor takes at a time */
int64_t width(const stage *st, int pair);
void compress(const stage *st, work *w, int pair, const real *x, int64_t block_stride,
              int64_t count, real *y);
void mlp_hidden(const stage *st, int pair, const real *x, int64_t block_stride, int64_t count,
                real *u);
void compress_pack(stage *st);
void gated_weights(const stage *st, int pair, const real *x, real *a);

/* select.c */
void add_importance(const nsa_config *c, const real *p, real *strides, int64_t blocks, real *imp);
void select_blocks(const nsa_config *c, const real *imp, int64_t t, real *candidates, int32_t *idx);

/* attend.c */
int64_t visible_cmp(const stage *st, int64_t t, span *spans);
int64_t visible_slc(const stage *st, int64_t t, const int32_t *idx, span *spans);
int64_t visible_win(const stage *st, int64_t t, span *spans);
int64_t visible_all(const stage *st, int64_t t, span *spans);
void score(const stage *st, const real *q, const real *kt, int64_t lo, int64_t hi, real *s,
           const real *next);
real log2_scale(const stage *st);
block_iter block_iter_init(work *w, int64_t count);
int next_block(const work *w, block_iter *iter);
void attend_tile(stage *st, work *w, const sequence *sq, const tile_of_rows *rows, int64_t kvh,
                 const int64_t *t, const int32_t *forced);
void attend_blocks(const stage *st, work *w, const sequence *sq, int branch, int64_t row,
                   int64_t count, int64_t kvh);

/* read.c */
nsa_status read(void *self, nsa_id id, void *dst);

/* forward.c, decode.c, backward*.c */
void start_timers(stage *st);
void stop_timers(stage *st);
nsa_status forward(void *self);
nsa_status causal(void *self, int pair);
nsa_status prefill(void *self);
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step);
nsa_status decode(void *self);
nsa_status backward(void *self);
void backward_tile(stage *st, work *w, int thread, const sequence *sq, const tile_of_rows *rows,
                   int64_t kvh);
void compress_backward(stage *st, work *w, int pair, const real *x, int64_t block_stride,
                       int64_t count, const real *dy, real *dx);
void compress_end_backward(stage *st, int pair);

#endif
