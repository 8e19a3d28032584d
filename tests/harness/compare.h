/**
 * @file compare.h
 * @brief How close is equal: the tolerance table of the specification. NaN passes nothing.
 */
#ifndef HARNESS_COMPARE_H
#define HARNESS_COMPARE_H

#include "harness/run.h"

/** A row of the table. */
typedef struct tolerance {
    double out_rms;   /**< outputs: rms(a-b) / rms(b) */
    double out_max;   /**< outputs: max abs(a-b) / max abs(b) */
    double grad_rms;  /**< gradients: rms ratio */
    double grad_soft; /**< gradients of dk_cmp and dphi_k_*, where bfloat16 is allowed more */
    double zero;      /**< gradients that are zero: max abs(a) in their own units */
    double slack;     /**< selection */
} tolerance;

/** @return the row for a stage's arithmetic. */
const tolerance *tolerance_of(nsa_arith arith);

/** @return NSA_OK if every output of a forward that is there is finite. Two runs that write nothing
 * agree bit for bit; who compares runs asks this first. */
nsa_status all_finite(const nsa_tensors *results);

/** Compare an output with the oracle's. @return NSA_OK, or NSA_ERR_INPUT saying by how much it is
 * off. */
nsa_status compare_output(const tolerance *tol, nsa_id id, const nsa_tensor *a,
                          const nsa_tensor *b);

/** What a gradient is measured in where it is zero by identity, and what to ask again if a stage
 * misses one. */
typedef struct gradient_units {
    const nsa_config *cfg;   /**< of the trial */
    const nsa_tensors *in;   /**< what the gradients are of, dout included */
    const nsa_stage *oracle; /**< asked whether the case is ill-conditioned; NULL: nobody is */
    const char *text;        /**< the case; NULL if there is none */
    double dout;             /**< rms(dout) */
    double tokens;           /**< its T */
    double q;                /**< scale rms(q) */
    double k[3];             /**< scale rms(k) of the three pairs */
    double v[3];             /**< rms(v) of the three pairs */
    double heads;            /**< max(1, sqrt(G dv) / 10) */
    double compressor;       /**< what a compressor may add to the rounding of its key weights */
} gradient_units;

/** Units of the gradients of `in`, which must have dout; nobody is asked again. Both must outlive
 * them. */
gradient_units units_of(const nsa_config *cfg, const nsa_tensors *in);

/** The same within a trial: a gradient that is missed says if the case is ill-conditioned. */
gradient_units units_for(const subject *s, const test_case *c, const nsa_tensors *in);

/** Compare a gradient with the oracle's. Where a stage misses it and the oracle is known, that runs
 * again with every input moved by a seeded +-2^-24 of itself: if that alone moves the gradient by
 * more than a fifth of the tolerance, the text ends with "ill-conditioned: ...". */
nsa_status compare_gradient(const tolerance *tol, nsa_id id, const nsa_tensor *a,
                            const nsa_tensor *b, const gradient_units *units);

/** Judge a selection as a set, row by row.
 *  @param cfg         for n, the forced blocks and l'
 *  @param position    [R] each row's position in its own sequence
 *  @param a           the stage's block_idx [R,Hkv,n]
 *  @param b           the oracle's
 *  @param importance  the oracle's [R,Hkv,J]
 *  @param slack       of the table, 0 where scores tie exactly */
nsa_status compare_selection(const nsa_config *cfg, const int64_t *position, const nsa_tensor *a,
                             const nsa_tensor *b, const nsa_tensor *importance, double slack);

/** @return sqrt(mean of squares); NaN if an element is NaN; 0 of nothing, and if absent. */
double rms_of(const nsa_tensor *t);

#endif
