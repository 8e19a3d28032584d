/**
 * @file compare.h
 * @brief The tolerance table of the specification, and comparisons with it. NaN never passes.
 */
#ifndef HARNESS_COMPARE_H
#define HARNESS_COMPARE_H

#include "harness/run.h"

/** A row of the table. */
typedef struct tolerance {
    double out_rms;   /**< outputs: rms(a-b) / rms(b) */
    double out_max;   /**< outputs: max abs(a-b) / max abs(b) */
    double grad_rms;  /**< gradients: rms ratio */
    double grad_soft; /**< gradients of dk_cmp and dphi_k_*: larger for bfloat16 */
    double zero;      /**< gradients that are zero: max abs(a), in gradient_units */
    double slack;     /**< selection */
} tolerance;

/** @return the row of a stage's arithmetic. */
const tolerance *tolerance_of(nsa_arith arith);

/** @return NSA_OK if every forward result that is present is finite. Properties that compare two
 * runs check this first: two runs that write nothing agree bit for bit. */
nsa_status all_finite(const nsa_tensors *results);

/** Compare an output with the oracle's. @return NSA_OK, or NSA_ERR_INPUT saying by how much it is
 * off. */
nsa_status compare_output(const tolerance *tol, nsa_id id, const nsa_tensor *a,
                          const nsa_tensor *b);

/** The scale of a gradient that is zero by identity, and what is needed to run the oracle again if
 * a stage misses a gradient. */
typedef struct gradient_units {
    const nsa_config *cfg;   /**< the trial's */
    const nsa_tensors *in;   /**< the inputs, dout included */
    const nsa_stage *oracle; /**< runs again to find ill-conditioned cases; NULL: no check */
    const char *text;        /**< the case; NULL if there is none */
    double dout;             /**< rms(dout) */
    double tokens;           /**< its T */
    double q;                /**< scale rms(q) */
    double k[3];             /**< scale rms(k) of the three pairs */
    double v[3];             /**< rms(v) of the three pairs */
    double heads;            /**< max(1, sqrt(G dv) / 10) */
    double compressor;       /**< factor for the rounding in the key compressor */
} gradient_units;

/** Units of the gradients of `in`, which must have dout, without a check for ill-conditioned cases.
 * `cfg` and `in` must outlive them. */
gradient_units units_of(const nsa_config *cfg, const nsa_tensors *in);

/** The same with the check: the error of a missed gradient says if the case is ill-conditioned. */
gradient_units units_for(const subject *s, const test_case *c, const nsa_tensors *in);

/** Compare a gradient with the oracle's. If a stage misses it and units->oracle is set, the oracle
 * runs again with every input changed by a seeded relative +-2^-24. If that alone changes the
 * gradient by more than a fifth of the tolerance, the error ends with "ill-conditioned: ...". */
nsa_status compare_gradient(const tolerance *tol, nsa_id id, const nsa_tensor *a,
                            const nsa_tensor *b, const gradient_units *units);

/** Judge a selection as a set, row by row.
 *  @param cfg         for n, the forced blocks and l'
 *  @param position    [R] each row's position in its own sequence
 *  @param a           the stage's block_idx [R,Hkv,n]
 *  @param b           the oracle's
 *  @param importance  the oracle's [R,Hkv,J]
 *  @param slack       from the table, 0 where scores tie exactly */
nsa_status compare_selection(const nsa_config *cfg, const int64_t *position, const nsa_tensor *a,
                             const nsa_tensor *b, const nsa_tensor *importance, double slack);

/** @return sqrt(mean of squares); NaN if an element is NaN; 0 if there are no elements. */
double rms_of(const nsa_tensor *t);

#endif
