/**
 * @file decode_case.h
 * @brief `nsa run --decode P`: the first P tokens of every sequence by prefill, the others by
 * decode steps; results in packed order.
 */
#ifndef DECODE_CASE_H
#define DECODE_CASE_H

#include "nsa.h"
#include "io/progress.h"

/** Counts of tokens and steps. */
typedef struct decode_counts {
    int64_t prefilled; /**< tokens of the prefill */
    int64_t decoded;   /**< tokens of the steps */
    int64_t steps;     /**< calls of decode */
} decode_counts;

/** Flags of decode_case(). */
enum {
    DECODE_SIT_OUT = 1,   /**< a third of the sequences skips each step, by turns */
    DECODE_TIGHT = 2,     /**< `ctx` can load only the prefill: do not load the whole case first */
    DECODE_ONE_BY_ONE = 4 /**< prefill each sequence alone, the last first, each in two halves of
                             its rows: only `active` keeps the slots of the others */
};

/** Prefill and decode a whole case.
 *  @param ctx          opened with NSA_DECODE and NSA_WANT_BRANCHES
 *  @param in           the case's inputs; dout is ignored, rows must be absent
 *  @param prefix       tokens of each sequence to prefill; may be more than it has
 *  @param flags          DECODE_SIT_OUT | DECODE_TIGHT | ..., or 0
 *  @param p            shows the progress
 *  @param[out] results out, out_cmp, out_slc, out_win and block_idx of all tokens, for
 *                      decode_free(); also on an error
 *  @param[out] counts  how much was done
 *  @return the status of the first call that failed */
nsa_status decode_case(nsa_context *ctx, const nsa_tensors *in, int64_t prefix, int flags,
                       progress *p, nsa_tensors *results, decode_counts *counts);

/** Free what decode_case() filled in.
 *  @param results  of decode_case() */
void decode_free(nsa_tensors *results);

#endif
