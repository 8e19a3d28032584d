/**
 * @file explain.h
 * @brief `nsa run --explain`: one query of a case, step by step, as docs/specification.md works
 * its example.
 *
 * What the contract can read (k_phi, v_phi, importance, block_idx, the branches, out) is the
 * stage's own. Scores, probabilities and sums are computed here once more, plainly and in float64,
 * and the two must agree: a difference is an error, and then nothing is printed.
 */
#ifndef EXPLAIN_H
#define EXPLAIN_H

#include "io/case_folder.h"
#include "nsa_find.h"

/** The branches, in the order of the gates. */
enum { EXPLAIN_CMP, EXPLAIN_SLC, EXPLAIN_WIN, EXPLAIN_BRANCHES };

/** One branch of the query, for all heads of the group. */
typedef struct explain_branch {
    int64_t count;     /**< keys that the query sees */
    int64_t *key;      /**< [count] compressed tokens, or positions, ascending */
    double *k;         /**< [keys,dk] all keys of the kv head */
    double *v;         /**< [keys,dv] all values of the kv head */
    double *score;     /**< [G,count] q.k */
    double *weight;    /**< [G,count] exp(scale (score - row_max)) */
    double *p;         /**< [G,count] weight / row_sum */
    double *row_max;   /**< [G] */
    double *row_sum;   /**< [G] */
    const double *out; /**< [G,dv] the stage's output of the branch */
} explain_branch;

/** One query of one kv head: everything that is printed. */
typedef struct explanation {
    const case_folder *input;                /**< the case */
    const nsa_found *stage;                  /**< whose results these are */
    int64_t t;                               /**< position of the query */
    int64_t kv_head;                         /**< the group */
    int64_t T;                               /**< tokens */
    int64_t N;                               /**< compressed tokens of the sequence */
    int64_t J;                               /**< selection blocks of the sequence */
    int64_t own_block;                       /**< b = floor(t / l') */
    int64_t G;                               /**< query heads of the group */
    double *q;                               /**< [G,dk] */
    double *gate;                            /**< [G,3] */
    explain_branch branch[EXPLAIN_BRANCHES]; /**< cmp, slc, win */
    double *head_importance;                 /**< [G,J] Eq. 9, before the sum over the heads */
    const double *importance;                /**< [J] the stage's, Eq. 10 */
    const int32_t *block_idx;                /**< [n] the stage's, -1 last */
    const double *out;                       /**< [G,dv] the stage's */
    void *memory[64];                        /**< all allocations */
    int allocations;                         /**< how many */
} explanation;

/** Run the query at position e->t on the stage, compute it again, and compare.
 *  @param e  input, stage, t and kv_head are set, all else is zero; for explain_free() afterwards
 *  @return NSA_ERR_INPUT for a position, kv head, case or stage that cannot be explained,
 * NSA_ERR_STATE if the stage's results differ from those computed here, or what the stage returned
 */
nsa_status explain_query(explanation *e);

/** Print it on standard output.
 *  @param e  from explain_query() */
void explain_print(const explanation *e);

/** Free it.
 *  @param e  from explain_query() */
void explain_free(explanation *e);

/** How often compressed token i counts in the importance of block j: the pairs (m,r) of Eq. 9
 * with (l'/d) j + m - r = i.
 *  @param c  the config
 *  @param j  a selection block
 *  @param i  a compressed token
 *  @return 0 if it does not overlap the block */
int64_t explain_weight(const nsa_config *c, int64_t j, int64_t i);

/** Is block j forced for a query whose own block is b?
 *  @param c  the config
 *  @param j  a block of [0,b]
 *  @param b  the query's own block
 *  @return 1 or 0 */
int explain_forced(const nsa_config *c, int64_t j, int64_t b);

#endif
