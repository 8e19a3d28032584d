/**
 * @file counts.h
 * @brief How many tokens a query sees in each branch: the numbers of the paper's Table 4.
 */
#ifndef NSA_COUNTS_H
#define NSA_COUNTS_H

#include "nsa.h"

/** @return N = floor((len-l)/d)+1 compressed tokens of a sequence of `len` tokens, 0 if len < l
 * (Eq. 7). */
NSA_EXPORT int64_t nsa_cmp_tokens(const nsa_config *config, int64_t len);

/** @return how many compressed tokens query position t sees: those with i*d + l - 1 <= t (Eq.
 * 8). */
NSA_EXPORT int64_t nsa_cmp_visible(const nsa_config *config, int64_t t);

/** Tokens that one query reads in each branch; overlaps of the branches are counted twice. */
typedef struct nsa_reads {
    int64_t cmp;   /**< visible compressed tokens */
    int64_t slc;   /**< tokens of the selected blocks up to the query */
    int64_t win;   /**< tokens of the sliding window */
    int64_t dense; /**< tokens that full causal attention reads: t + 1 */
} nsa_reads;

/** @return the tokens that the query at position t of its sequence reads (section 2.2 and Table
 * 4). */
NSA_EXPORT nsa_reads nsa_reads_at(const nsa_config *config, int64_t t);

#endif
