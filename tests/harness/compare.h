/**
 * @file compare.h
 * @brief How close is equal: the tolerance table of the specification. NaN passes nothing.
 */
#ifndef HARNESS_COMPARE_H
#define HARNESS_COMPARE_H

#include "nsa.h"

/** A row of the table. */
typedef struct tolerance {
    double out_rms;   /**< outputs: rms(a-b) / rms(b) */
    double out_max;   /**< outputs: max abs(a-b) / max abs(b) */
    double grad_rms;  /**< gradients: rms ratio */
    double grad_soft; /**< gradients of dk_cmp and dphi_k_*, where bfloat16 is allowed more */
    double zero;      /**< gradients that are zero: max abs(a) / (rms(dout) sqrt(T)) */
    double slack;     /**< selection */
} tolerance;

/** @return the row for a stage's arithmetic. */
const tolerance *tolerance_of(nsa_arith arith);

/** Compare an output with the oracle's. @return NSA_OK, or NSA_ERR_INPUT saying by how much it is
 * off. */
nsa_status compare_output(const tolerance *tol, nsa_id id, const nsa_tensor *a,
                          const nsa_tensor *b);

/** Compare a gradient with the oracle's. @param dout  whose rms scales gradients that are zero */
nsa_status compare_gradient(const tolerance *tol, nsa_id id, const nsa_tensor *a,
                            const nsa_tensor *b, const nsa_tensor *dout);

/** Judge a selection as a set, row by row.
 *  @param cfg         for n, the forced blocks and l'
 *  @param position    [R] each row's position in its own sequence
 *  @param a           the stage's block_idx [R,Hkv,n]
 *  @param b           the oracle's
 *  @param importance  the oracle's [R,Hkv,J]
 *  @param slack       of the table, 0 where scores tie exactly */
nsa_status compare_selection(const nsa_config *cfg, const int64_t *position, const nsa_tensor *a,
                             const nsa_tensor *b, const nsa_tensor *importance, double slack);

/** @return sqrt(mean of squares); NaN if an element is NaN; 0 of nothing. */
double rms_of(const nsa_tensor *t);

#endif
