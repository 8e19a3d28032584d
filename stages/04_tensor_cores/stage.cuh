/** @file
 *  @brief Stage 04: what its files share. Keys and values lie in blocks of 64 rows, in bfloat16. */
#ifndef STAGE_CUH
#define STAGE_CUH

#include "common/device_pool.h"
#include "common/device_refusals.h"
#include "common/device_rows.h"
#include "common/device_timer.h"
#include "common/device_values.h"
#include "tile.cuh"
extern "C" { /* the contract is C */
#include "common/counts.h"
#include "common/pool.h"
#include "common/tensors.h"
}

#include <math.h>

typedef float real; /* sums and results */
#define ARITH NSA_BFLOAT16
#define IDEA  "the group's heads are the rows of a matrix unit's tile: count FLOPs"

enum { CMP, SLC, WIN, BRANCHES }; /* the branches, in the order of the gate */
/* RAW: k_cmp and v_cmp, which the compressors read; also for plain causal attention */
enum { RAW = (int)BRANCHES, LAYOUTS = RAW + 1 };
enum { KEYS, VALUES, PAIR };                /* the two compressors */
enum { PE, W, B, W1, B1, W2, B2, WEIGHTS }; /* a compressor's weights, in nsa_id's order */

enum {
    BLOCK = 64 /* keys of a memory block, for any selection block size l' */
};

/* The configuration as kernels take it, by value. */
typedef struct dims {
    int dk, dv;             /* head dimensions, as configured */
    int dkp, dvp, wp;       /* padded, see BY_WIDTH: width of rows; the wider of both */
    int G, GT, Hq, Hkv;     /* heads of a group, its tiles of 16, query and kv heads */
    int l, d, lb, n;        /* compression block and stride, l', n */
    int per_block, overlap; /* l'/d, l/d */
    int each;               /* memory blocks that a selected block touches, at most */
    int init, local, w;     /* forced blocks, window */
    int hidden;             /* phi_hidden */
    float scale, scale2;    /* of scores; the same for base 2: scale log2(e) */
} dims;

/* Where one branch's keys and values lie, [KEYS] and [VALUES]. Block j of head h in a sequence is
 * number h * stride + first_block + j of all blocks, and is [BLOCK,Dp] in mem tiles (tile.cuh); Dp
 * is dkp or dvp. Both products of attention read such rows: what stage 03 transposed, ldmatrix
 * transposes on its way to registers. All padding is zero. Keys past a sequence's end are masked:
 * there an older text may have left others. */
typedef struct kv_blocks {
    bf16 *rows[PAIR];
    real *gradient[PAIR]; /* [BLOCK,Dp], not in mem tiles */
    int64_t stride;       /* blocks of one head */
} kv_blocks;

/* One sequence, and where it begins in each branch's blocks. */
typedef struct sequence {
    int64_t len;                  /* tokens */
    int64_t n_cmp;                /* compressed tokens, N */
    int64_t token;                /* its first token in the pack */
    int64_t cmp;                  /* its first compressed token */
    int64_t first_block[LAYOUTS]; /* where it begins in each branch */
} sequence;

/* Rows first..first+count-1 of the results, all of one sequence: the rows of one CUDA block. */
typedef struct row_range {
    int64_t first;
    int32_t count, sequence;
} row_range;

/* Row maximum, scaled (scale2 q.k), and 1/sum of one softmax:
 * p = 2^(scale2 s - row_max) inv_sum. */
typedef struct row_stats {
    float row_max, inv_sum;
} row_stats;

/* Compressed tokens: what each is made of, and where it goes. Indices among the keys of one head's
 * blocks: first block * BLOCK + position. */
typedef struct cmp_tokens {
    int64_t *first; /* [count] the first of its l tokens, in RAW */
    int64_t *key;   /* [count] its own index, in CMP; -1 for none */
    int64_t count;
    const int64_t *g_rows = NULL; /* how many rows (tokens x Hkv) hold a token; NULL: all */
} cmp_tokens;

/* Scratch of a compressor. It takes a batch of compressed tokens at a time; m = i*Hkv + h numbers
 * token i of the batch, head h. */
typedef struct compressor_scratch {
    int64_t batch;  /* compressed tokens of one batch */
    real *y;        /* [batch*Hkv][D] mlp: compressed tokens; backward: their dy; gated: dw */
    real *z;        /* [batch*Hkv][l*D] mlp: vec(x), in backward vec(x + pe); gated and mlp: dz */
    real *h;        /* [batch*Hkv][hidden] mlp: silu(u) */
    real *du;       /* [batch*Hkv][hidden] mlp, [batch*Hkv][l] gated */
    real *partials; /* [SUM_PARTIALS][columns, at most] of column_sums() */
} compressor_scratch;

/* Arguments of one launch over query rows; all pointers are to device memory. The tile g16 of the
 * heads of (row r, kv head h) has the number (r*Hkv + h)*GT + g16. */
typedef struct attend_args {
    dims c;
    const row_range *tiles; /* [n_tiles] */
    int64_t n_tiles;
    const sequence *seqs;   /* [B] */
    const int32_t *row_t;   /* [R] each row's position in its sequence, */
    const int32_t *row_seq; /* and its sequence */
    int64_t R;              /* rows */
    kv_blocks in[LAYOUTS];  /* where the sequences' blocks are */
    const bf16 *q;          /* [R,Hkv,GT][16][dkp] in mem tiles; heads past G are zero */
    const real *gate;       /* [R,Hq,3] */
    real *out;              /* [R,Hq,dvp] */
    real *out_x[BRANCHES];  /* [R,Hq,dvp]; NULL if not wanted */
    row_stats *stats;       /* [R,Hq,3] */
    int32_t *block_idx;     /* [R,Hkv,n] */
    real *importance;       /* [R,Hkv,J]; NULL if not wanted */
    int64_t J;
    bool forced; /* block_idx is given: do not select */
} attend_args;

/* The phases that are timed. */
enum {
    PHASE_CMP,
    PHASE_SELECT,
    PHASE_SLC_WIN,
    PHASE_COMPRESS,
    PHASE_GATE,
    PHASE_DQ,
    PHASE_LISTS,
    PHASE_DKV, /* one for each branch */
    PHASE_PHI = PHASE_DKV + BRANCHES,
    PHASES
};

typedef struct stage {
    const nsa_plan *plan;
    nsa_config cfg;
    dims c;
    nsa_batch batch;   /* of the last load */
    size_t max_shared; /* bytes of shared memory that a CUDA block may have */

    nsa_device_stream streams; /* the own one and the caller's */
    cudaStream_t stream;       /* where calls submit: streams.now */
    nsa_device_timer timer;
    nsa_device_pool memory;
    nsa_staging staging;
    nsa_refusals refusals; /* of full decode slots */

    /* inputs; row tiles as in attend_args */
    row_range *tiles, *host_tiles; /* device, host */
    int64_t n_tiles;
    row_range *select_tiles, *host_select_tiles; /* of select.cu */
    int64_t n_select_tiles;
    int select_queries;         /* rows of a CUDA block there */
    sequence *seqs, *host_seqs; /* [B] */
    int32_t *row_t, *row_seq;   /* [R] position in its sequence; its sequence */
    int32_t *host_rows;         /* [2,R] */
    int64_t *token;             /* [R] its token in the pack */
    int64_t *key, *host_key;    /* [T] each token's index in SLC, WIN and RAW */
    cmp_tokens cmp, host_cmp;   /* [N] the compressed tokens */
    bf16 *q, *dout;             /* [R,Hkv,GT][16][dkp]  [R,Hkv,GT][16][dvp], in mem tiles */
    real *gate;                 /* [R,Hq,3] */
    kv_blocks in[LAYOUTS];      /* keys and values of each branch */
    real *phi[PAIR][WEIGHTS];   /* the compressors' weights; NULL if phi has none of that name */
    real *bias[PAIR];           /* [hidden] mlp: b1 + W1 vec(pe), from the last load */
    real *u[PAIR]; /* [N,Hkv][hidden] mlp: hidden units before silu, from the last compress */
    compressor_scratch phi_scratch;

    /* results */
    real *out, *out_x[BRANCHES], *out_causal; /* [R,Hq,dvp] */
    row_stats *stats;                         /* [R,Hq,3] */
    int32_t *block_idx;                       /* [R,Hkv,n] */
    int32_t *forced_idx;                      /* [R,Hkv,n] block lists that a load or step gave */
    bool forced;                              /* the last load or step gave some */
    nsa_bad_values *bad;                      /* on the device: what NSA_CHECK_VALUES found */
    real *importance;                         /* [R,Hkv,J]; NULL if not wanted */
    real *batch_importance;                   /* if it is not: of some rows at a time, */
    int64_t batch_floats;                     /* as many as fit */

    real *dq, *dgate; /* [R,Hq,dkp] [R,Hq,3] */
    real *dphi[PAIR][WEIGHTS];
    void *scratch; /* backward.cuh: what its attention kernels need */

    kv_blocks cache[LAYOUTS]; /* decode: the same layout, max_seqs slots of max_seq_len tokens */
    int64_t slot_blocks[LAYOUTS]; /* blocks of one slot, for one head */
    void *decoder;                /* private to decode.cu */
} stage;

/* Return the first error to the caller. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        const nsa_status try_ = (call);                                                            \
        if (try_)                                                                                  \
            return try_;                                                                           \
    } while (0)

/* Launch a kernel in the stage's stream, and return if that fails. */
#define LAUNCH(kernel, grid, block, shared_bytes, st, ...)                                         \
    do {                                                                                           \
        NSA_LAUNCH(kernel, grid, block, shared_bytes, (st)->stream, __VA_ARGS__);                  \
        NSA_LAUNCHED(#kernel);                                                                     \
    } while (0)

/* f<DK, DV>(...), where DK and DV, dkp and dvp, are constants for the compiler, so that
 * accumulators are registers and addresses are offsets. Both are padded to the wider, but for the
 * paper's 192 and 128. */
#define BY_WIDTH(c, f, ...)                                                                        \
    ((c)->dkp == 32    ? f<32, 32>(__VA_ARGS__)                                                    \
     : (c)->dkp == 64  ? f<64, 64>(__VA_ARGS__)                                                    \
     : (c)->dkp == 128 ? f<128, 128>(__VA_ARGS__)                                                  \
     : (c)->dkp == 256 ? f<256, 256>(__VA_ARGS__)                                                  \
     : (c)->dvp == 128 ? f<192, 128>(__VA_ARGS__)                                                  \
                       : f<192, 192>(__VA_ARGS__))

static inline int64_t round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

/* Zeroed device memory, during open only. */
template <class T>
static inline void alloc(stage *st, T **to, nsa_memory_kind kind, int64_t count) {
    *to = (T *)nsa_device_alloc(&st->memory, kind, count, sizeof(T), st->stream);
}

/* A table on the device, and on the host what is copied to it. */
template <class T> static inline void open_table(stage *st, T **there, T **here, int64_t count) {
    alloc(st, there, NSA_MEM_PERSISTENT, count);
    *here = (T *)nsa_pool_alloc(st->plan->pool, NSA_MEM_PERSISTENT, count, sizeof(T));
}

static inline nsa_status poison(stage *st, unsigned kinds) {
    return nsa_device_poison(&st->memory, kinds, st->stream);
}

template <class T> static inline nsa_status zero(const stage *st, T *x, int64_t count) {
    NSA_CUDA(cudaMemsetAsync(x, 0, (size_t)count * sizeof *x, st->stream));
    return NSA_OK;
}

/* A table of the host to the device; waits. */
template <class T> static inline nsa_status upload(stage *st, T *to, const T *from, int64_t count) {
    return nsa_stream_copy(&st->streams, to, from, (size_t)count * sizeof *to);
}

/* The timing of a call: its start; the work since that or the phase before is `phase`. */
static inline nsa_status start_phases(stage *st) {
    return nsa_device_timer_start(&st->timer, &st->streams);
}

static inline nsa_status record_phase(stage *st, int phase) {
    return nsa_device_timer_add(&st->timer, &st->streams, phase);
}

/* compress.cu: `in` [LAYOUTS] is the pack's or the caches' */
nsa_status open_compress(stage *st);
nsa_status compress(stage *st, const kv_blocks *in, const cmp_tokens *tokens);
nsa_status compress_pack(stage *st);
nsa_status make_biases(stage *st); /* of the mlp, from the weights of a load */

/* read.cu */
nsa_status read(void *self, nsa_id id, const nsa_tensor *to);

/* load.cu: the batch's rows in tiles of up to `rows` neighbours, on the host and on the device */
nsa_status make_tiles(stage *st, int rows, row_range *host, row_range *tiles, int64_t *n_tiles);

/* attend.cu */
nsa_status open_attend(stage *st);
int query_tile(const dims *c); /* rows of a CUDA block of attend_cmp */
nsa_status attend_cmp(stage *st, const attend_args *args, bool is_causal);
nsa_status attend_slc_win(stage *st, const attend_args *args);

/* select.cu */
nsa_status open_select(stage *st);
nsa_status make_select_tiles(stage *st);
/* Importance and block lists, from the statistics that attend_cmp left. */
nsa_status select_blocks(stage *st, const attend_args *args);

/* forward.cu, decode.cu, backward.cu */
attend_args make_attend_args(const stage *st);
nsa_status forward(void *self);
nsa_status causal(void *self, int pair);
nsa_status open_decode(stage *st);
nsa_status prefill(void *self);
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step);
nsa_status decode(void *self);
nsa_status slot_lens(void *self, int64_t *len);
/* Allocates what backward needs beyond the fields above; sets st->scratch. */
nsa_status open_backward(stage *st);
nsa_status backward(void *self);

/* backward_compress.cu */
nsa_status compress_pack_backward(stage *st);

#endif
