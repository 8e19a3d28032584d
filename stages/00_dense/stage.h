/** @file
 *  @brief Stage 00: what its files share. Say what the equations say, in float64. */
#ifndef STAGE_H
#define STAGE_H

#include "common/counts.h"

#include <math.h>

typedef double real; /* what this stage computes in */
#define ARITH    NSA_FLOAT64
#define IDEA     "say what the equations say: masked softmaxes over all keys"
#define copy     nsa_copy_f64 /* from a tensor of either float type to reals */
#define real_exp exp

#include "common/cpu_stage.h"

/* The keys and values that one sequence attends to; k[CMP] and v[CMP] are its compressed tokens.
 * They are a stretch of the pack, or a slot of the decode cache. A row's stride is Hkv*dk or
 * Hkv*dv. */
typedef struct sequence {
    int64_t len;   /* tokens */
    int64_t n_cmp; /* compressed tokens, N */
    const real *k[BRANCHES], *v[BRANCHES];
} sequence;

/* The gradients of the same rows. */
typedef struct gradient {
    real *dk[BRANCHES], *dv[BRANCHES];
} gradient;

typedef struct stage {
    const nsa_plan *plan;
    nsa_config cfg;
    nsa_batch batch;            /* of the last load */
    nsa_timer timer;            /* of the last call */
    nsa_step step;              /* of the last load_step */
    int64_t rows;               /* of the results: R after forward, A after decode */
    void *result[NSA_ID_COUNT]; /* what read() copies from; NULL where nothing is kept */

    real *q, *gate, *dout;           /* [R,Hq,dk] [R,Hq,3] [R,Hq,dv]: the rows to compute */
    real *k[BRANCHES], *v[BRANCHES]; /* [T,Hkv,dk] [T,Hkv,dv]: the three pairs as loaded */
    real *phi[PAIR][WEIGHTS];        /* the compressors' weights; NULL where phi has none */

    real *out, *out_x[BRANCHES]; /* [R,Hq,dv]; out_x NULL if not wanted */
    real *out_causal;            /* [R,Hq,dv] */
    int32_t *block_idx;          /* [R,Hkv,n] */
    real *importance;            /* [R,Hkv,J], or one row [max_blocks] of scratch */
    int keep_importance;         /* which of the two */
    real *xphi[PAIR];            /* k_phi [N,Hkv,dk], v_phi [N,Hkv,dv] */

    real *dq, *dgate;                  /* [R,Hq,dk] [R,Hq,3] */
    real *dk[BRANCHES], *dv[BRANCHES]; /* [T,Hkv,dk] [T,Hkv,dv] */
    real *dxphi[PAIR];                 /* [N,Hkv,dk] [N,Hkv,dv] */
    real *dphi[PAIR][WEIGHTS];

    real *cache_k[BRANCHES], *cache_v[BRANCHES]; /* [max_seqs,max_seq_len,Hkv,dk or dv] */
    real *cache_phi[PAIR];                       /* [max_seqs,max N,Hkv,dk or dv] */
    int64_t cache_cmp;                           /* max N: compressed tokens of a full slot */

    unsigned char *mask;    /* scratch [keys]: 1 where the query sees the key */
    real *p;                /* scratch [keys]: probabilities */
    real *o, *d_o;          /* scratch [dv]: one head's branch output and its gradient */
    real *hidden, *dhidden; /* scratch [phi_hidden] of the mlp, [l] of the gated compressor */
    real *z, *dz;           /* scratch [l*D]: vec(x + pe) and its gradient */
} stage;

/* <a,b> over n elements */
static inline real dot(const real *a, const real *b, int64_t n) {
    real sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y += a x over n elements */
static inline void add_scaled(real *y, real a, const real *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* Scratch is written through a const stage * too: only the pointers are const. */

/* stage.c */
sequence pack_sequence(const stage *st, int64_t b);
int64_t sequence_of(const stage *st, int64_t token);

/* compress.c: y [D] = phi(x), the block's rows x_r = x + r*stride */
void compress(const stage *st, int pair, const real *x, real *y);
void compress_pack(stage *st);
int64_t width(const stage *st, int pair);
void gated_weights(const stage *st, int pair, const real *x, real *a);
void mlp_hidden(const stage *st, int pair, const real *x, real *z, real *pre);

/* select.c */
void add_importance(const nsa_config *c, const real *p, int64_t n_cmp, int64_t blocks, real *imp);
void select_blocks(const nsa_config *c, const real *imp, int64_t t, int32_t *idx);

/* attend.c */
int64_t visible_cmp(const stage *st, const sequence *sq, int64_t t);
int64_t visible_slc(const stage *st, const sequence *sq, int64_t t, const int32_t *idx);
int64_t visible_win(const stage *st, const sequence *sq, int64_t t);
int64_t visible_all(const stage *st, const sequence *sq, int64_t t);
void attend(const stage *st, const real *q, const real *k, const real *v, int64_t n, real *o);
void attend_row(stage *st, const sequence *sq, int64_t t, int64_t r, const int32_t *forced);

/* forward.c, decode.c, backward*.c */
nsa_status forward(void *self);
nsa_status causal(void *self, int pair);
nsa_status prefill(void *self);
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step);
nsa_status decode(void *self);
nsa_status backward(void *self);
void backward_row(stage *st, const sequence *sq, const gradient *g, int64_t t, int64_t r);
void compress_backward(stage *st, int pair, const real *x, const real *dy, real *dx);

#endif
