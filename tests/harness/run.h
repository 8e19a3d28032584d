/**
 * @file run.h
 * @brief Running a stage on inputs with every trap set: poisoned memory, fences, poisoned results.
 */
#ifndef HARNESS_RUN_H
#define HARNESS_RUN_H

#include "harness/case.h"

/** The stage under test, and its oracle. */
typedef struct subject {
    const nsa_stage *stage;  /**< the candidate */
    const nsa_stage *oracle; /**< stage 00 */
    const char *name;        /**< the candidate's name */
} subject;

/** How run_stage() runs a stage: flags, plus n * RUN_THREADS to allow n threads. */
enum {
    RUN_FORWARD = 0,
    RUN_BACKWARD = 1,
    RUN_TWICE = 2,
    RUN_OUT_ONLY = 4,
    RUN_TWO_CONTEXTS = 8,
    RUN_ONE_BY_ONE = 16,
    RUN_UNFENCED = 32,
    RUN_THREADS = 64
};

/** Open the stage, load, run forward (and backward, if the stage has one), read every result, check
 * all fences. RUN_TWICE first runs other values, and more of them, through the same context; that
 * must not change the results. RUN_OUT_ONLY asks for no branch outputs and no importance.
 * RUN_TWO_CONTEXTS opens a second, tiny context before the run; that must not matter either.
 * RUN_UNFENCED is for inputs of gigabytes and a stage that was judged before: they are used where
 * they are, and no memory is filled with NaN.
 *  @param stage         the stage to run
 *  @param cfg           the shape
 *  @param in            inputs, and dout for RUN_BACKWARD
 *  @param flags         RUN_...
 *  @param[out] results  those that exist; free with tensors_free() */
nsa_status run_stage(const nsa_stage *stage, const nsa_config *cfg, const nsa_tensors *in,
                     int flags, nsa_tensors *results);

/** Other values of the same kind, with `extra` tokens of NaN in the last sequence.
 *  @param in           the values that others must differ from
 *  @param extra        tokens added
 *  @param[out] others  free with tensors_free() */
nsa_status other_values(const nsa_tensors *in, int64_t extra, nsa_tensors *others);

/** Plain causal attention over one pair. */
nsa_status run_causal(const nsa_stage *stage, const nsa_config *cfg, const nsa_tensors *in,
                      int pair, nsa_tensor *result);

/** Prefill `prefix` tokens of each sequence, then decode the rest, one step a token for a batch of
 * sequences; in each step some sequences sit out. Results are collected in packed order: out,
 * out_*, block_idx. in->at[NSA_BLOCK_IDX] is used if it is present.
 *  @param stage         the stage to run
 *  @param cfg           the shape
 *  @param in            inputs, all tokens of every sequence
 *  @param prefix        tokens to prefill
 *  @param flags         RUN_TWICE decodes other values first, in the same context; RUN_ONE_BY_ONE
 *                       prefills each sequence alone, into its slot
 *  @param[out] results  free with tensors_free() */
nsa_status run_decode(const nsa_stage *stage, const nsa_config *cfg, const nsa_tensors *in,
                      int64_t prefix, int flags, nsa_tensors *results);

/** Make block_idx [T,Hkv,n] an input from a result [R,Hkv,n]: rows not listed get -1. */
nsa_status force_blocks(const nsa_config *cfg, nsa_tensors *in, const nsa_tensor *block_idx);

/** Each row's position in its own sequence.
 *  @param in             cu_seqlens, and the listed rows if there are any
 *  @param T              tokens
 *  @param[out] position  [R], with capacity for T */
void row_positions(const nsa_tensors *in, int64_t T, int64_t *position);

/** @return rows of the results: the listed ones, or T. */
int64_t row_count(const nsa_tensors *in);

/** Read one result into a fenced tensor, and check that its fences are intact. */
nsa_status read_result(nsa_context *ctx, nsa_id id, nsa_tensor *t);

#endif
