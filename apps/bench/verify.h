/**
 * @file verify.h
 * @brief Checking before timing: sampled rows against the oracle's.
 */
#ifndef BENCH_VERIFY_H
#define BENCH_VERIFY_H

#include "bench/workload.h"

/** Compute the sampled rows as an oracle does.
 *  @param w          the workload
 *  @param stage      computes them
 *  @param causal     1 for plain causal attention
 *  @param block_idx  [R,Hkv,n] to force, or NULL to select
 *  @param[out] results  free with tensors_free() */
nsa_status verify_run(const workload *w, const nsa_stage *stage, int causal,
                      const nsa_tensor *block_idx, nsa_tensors *results);

/** Run the oracle on the sampled rows, unless that was done already.
 *  @param w       keeps the results
 *  @param oracle  stage 00, or a stage that was proven at shorter lengths
 *  @param name    its name
 *  @param causal  1 for plain causal attention */
nsa_status verify_truth(workload *w, const nsa_stage *oracle, const char *name, int causal);

/** Judge a candidate's results on the sampled rows by the table of docs/specification.md: the
 * selection as a set, then outputs and gradients with its own blocks forced on the oracle.
 *  @param w       after verify_truth()
 *  @param oracle  as there
 *  @param arith   the candidate's arithmetic
 *  @param causal  1 for plain causal attention: out, dq, dk_win and dv_win count
 *  @param mine    out, block_idx and gradients; out, block_idx, dq and dgate only of the sampled
 *                 rows */
nsa_status verify(const workload *w, const nsa_stage *oracle, nsa_arith arith, int causal,
                  const nsa_tensors *mine);

/** Gather the sampled rows from a result of all rows; all of it must be finite.
 *  @param rows  int32: which
 *  @param all   [T,...]
 *  @param sampled  [R,...]; free with tensor_free() */
nsa_status verify_gather(const nsa_tensor *rows, const nsa_tensor *all, nsa_tensor *sampled);

#endif
