/**
 * @file emitted.h
 * @brief Importance and selection from the compressed keys that a bfloat16 stage emitted.
 */
#ifndef HARNESS_EMITTED_H
#define HARNESS_EMITTED_H

#include "harness/run.h"

/** Importance (Eq. 9, 10) in float64, from q and given compressed keys; and the blocks that it
 * selects (Eq. 11), unless `in` has block lists.
 *  @param cfg              the shape
 *  @param in               q; cu_seqlens, rows and block_idx where the run has them
 *  @param k_phi            [N,Hkv,dk] compressed keys
 *  @param[in,out] results  of a float64 run on `in`: importance and block_idx are overwritten */
nsa_status select_by_keys(const nsa_config *cfg, const nsa_tensors *in, const nsa_tensor *k_phi,
                          nsa_tensors *results);

/** A bfloat16 stage may round k_phi, and a rounded key moves its scores, so whole blocks change
 * places that a float64 key keeps apart. The specification judges the importance and the selection
 * of such a stage by the k_phi that it emitted: select_by_keys() for them, and nothing for stages
 * of other arithmetic.
 *  @param s               the stage that is judged
 *  @param cfg             the shape
 *  @param in              what the oracle ran on
 *  @param mine            the stage's results, k_phi among them; outputs are not changed
 *  @param[in,out] oracle  the oracle's results on `in` */
nsa_status use_emitted_keys(const subject *s, const nsa_config *cfg, const nsa_tensors *in,
                            const nsa_tensors *mine, nsa_tensors *oracle);

#endif
