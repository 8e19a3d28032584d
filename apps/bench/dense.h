/**
 * @file dense.h
 * @brief The dense baseline: causal attention by tiles on OpenBLAS, as carefully optimised as any
 * stage.
 *
 * The heads of a group share K and V, so a tile of query tokens times G heads is one matrix; it
 * loops over blocks of keys with an online softmax. Blocks wholly above the diagonal are skipped.
 */
#ifndef BENCH_DENSE_H
#define BENCH_DENSE_H

#include "nsa.h"

/** Its memory, all allocated by dense_open(). */
typedef struct dense dense;

/** Its inputs, laid out as in the contract. */
typedef struct dense_inputs {
    const float *q;    /**< [B,T,Hq,dk]; for decode [B,Hq,dk] */
    const float *k;    /**< [B,T,Hkv,dk] */
    const float *v;    /**< [B,T,Hkv,dv] */
    const float *dout; /**< [B,T,Hq,dv], for backward */
} dense_inputs;

/** Allocate all memory.
 *  @param cfg       heads, dims and scale
 *  @param T         tokens of a sequence
 *  @param B         sequences
 *  @param backward  1 if dense_backward() will be called
 *  @param threads   to use
 *  @return NULL without memory or OpenBLAS */
dense *dense_open(const nsa_config *cfg, int64_t T, int64_t B, int backward, int threads);

/** Outputs of all rows. */
void dense_forward(dense *d, const dense_inputs *in);

/** Gradients of all rows; after dense_forward() of the same inputs. */
void dense_backward(dense *d, const dense_inputs *in);

/** Outputs of one query a sequence, over the first `len` of its T keys. */
void dense_decode(dense *d, const dense_inputs *in, int64_t len);

/** @return the result: NSA_OUT, NSA_DQ, NSA_DK_WIN or NSA_DV_WIN. */
const float *dense_result(const dense *d, nsa_id id);

/** @return bytes held. */
size_t dense_memory(const dense *d);

/** Free it; NULL is allowed. */
void dense_close(dense *d);

#endif
