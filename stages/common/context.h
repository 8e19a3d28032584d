/**
 * @file context.h
 * @brief The struct behind nsa_context, and the checks of its inputs.
 */
#ifndef NSA_CONTEXT_H
#define NSA_CONTEXT_H

#include "common/pool.h"
#include "common/tensors.h"

/** What has been done since the last load: bits of nsa_context.done. */
enum {
    WEIGHTS = 1, /* the phi weights of the last load are valid */
    LOADED = 2,  /* q, keys, values and gate of a load; a step replaces them */
    DOUT = 4,
    FORWARD = 8,
    BACKWARD = 16,
    STEP = 32,
    DECODED = 64,
    CAUSAL = 128
};

/** An open stage, and the memory behind its plan, batch and step. */
struct nsa_context {
    const nsa_stage *stage; /**< the stage's table */
    void *self;             /**< the stage's own state, from its open */
    nsa_plan plan;          /**< passed to its open */
    nsa_batch batch;        /**< of the last load */
    nsa_step step;          /**< of the last load_step */
    unsigned done;          /**< LOADED | FORWARD | ... */
    int packed;             /**< 1 if the stage has the tables of `batch` */
    int stepped;            /**< 1 if it has those of `step` */
    int has_stream;         /**< nsa_set_stream() was called: calls only submit */
    int64_t max_seqs;       /**< as the caller set it; plan.cfg.max_seqs may be smaller */
    int64_t *seq;           /**< [max_seqs+1] behind batch.seq */
    int64_t *cmp;           /**< [max_seqs+1] behind batch.cmp */
    int64_t *row;           /**< [max_rows] behind batch.row */
    int32_t *block_idx;     /**< [max_rows,Hkv,n] behind batch.block_idx */
    int64_t *len;           /**< [max_seqs] tokens in each decode slot, of a stage with slot_lens
                                 when it was last asked; NULL without NSA_DECODE */
    int32_t *load_slot;     /**< [max_seqs] behind batch.slot; NULL without NSA_DECODE */
    int32_t *slot;          /**< [max_seqs] behind step.slot */
    int64_t *pos;           /**< [max_seqs] behind step.pos */
    int32_t *step_idx;      /**< [max_seqs,Hkv,n] behind step.block_idx */
};

/** @return selection blocks of a sequence of `len` tokens. */
static inline int64_t blocks_of(const nsa_config *c, int64_t len) {
    return (len + c->slc_block - 1) / c->slc_block;
}

/** Check the tensors of a load and find T, B and R. */
nsa_status nsa_check_load(const nsa_context *ctx, const nsa_tensors *in, nsa_batch *batch);

/** Check the tensors of a decode step and find A. */
nsa_status nsa_check_step(const nsa_context *ctx, const nsa_tensors *in, nsa_step *step);

/** Check that one input is present, with the right type, shape, place and pointer. */
nsa_status nsa_check_tensor(const nsa_context *ctx, const nsa_lengths *lengths, nsa_id id,
                            const nsa_tensor *tensor);

/** Check where a tensor lies, an input or one to read into. */
nsa_status nsa_check_place(const nsa_context *ctx, nsa_id id, const nsa_tensor *tensor);

/** Check one forced row of `n` blocks for a query in block `own_block` and copy it, ascending, -1
 * last.
 *  @param[out] dst   [n]
 *  @param src        [n], as the caller gave it
 *  @param n          blocks to select
 *  @param own_block  the query's block
 *  @param where      what the row is called in an error: "row" or "slot", and then
 *  @param number     its number */
nsa_status nsa_check_blocks(int32_t *dst, const int32_t *src, int64_t n, int64_t own_block,
                            const char *where, int64_t number);

#endif
