/**
 * @file slots.h
 * @brief The inputs of a decode: many slots of long sequences, from little host memory.
 *
 * One stretch of tokens is drawn, and slot b holds the T of them that begin at b * DECODE_STEPS;
 * its steps append the DECODE_STEPS that follow. So no two slots hold the same, a token's position
 * differs from slot to slot, and the host has the keys of little more than one sequence, however
 * many slots there are. A stage's caches are its own: it copies every window.
 *
 * A slot is filled by a load of its sequence alone and a prefill of no rows, which compresses and
 * caches but attends to nothing. Rows of steps are judged on some of the slots, each by a forward
 * over its own sequence.
 */
#ifndef BENCH_SLOTS_H
#define BENCH_SLOTS_H

#include "bench/workload.h"

/** Draw the stretch and the steps of w->B slots; choose those that are judged.
 *  @param o  config, rows, seed
 *  @param w  its T, B, threads and arith are set; the rest is filled in */
nsa_status slots_open(const bench_options *o, workload *w);

/** Fill every slot of a context, which is opened for loads of w->T tokens. */
nsa_status slots_fill(const workload *w, nsa_context *ctx);

/** Inputs of one decode step of all slots: a view into w->step with `active` beside it.
 *  @param w       of a decode
 *  @param number  0 for the first
 *  @param active  capacity for w->B slots
 *  @param in      filled in */
void slots_step(const workload *w, int64_t number, int32_t *active, nsa_tensors *in);

/** Compute the judged rows by a stage's forward over the judged slots, one after another.
 *  @param w       of a decode
 *  @param stage   the oracle
 *  @param causal  1 for plain causal attention over the window's pair
 *  @param blocks  int32 [2 a slot,Hkv,n] to force, or NULL to select
 *  @param[out] results  out, block_idx and importance, two rows a slot; free with tensors_free() */
nsa_status slots_judge(const workload *w, const nsa_stage *stage, int causal,
                       const nsa_tensor *blocks, nsa_tensors *results);

/** Write out a tensor of all slots and the tokens of their steps, as the dense baseline reads them.
 *  @param w  of a decode
 *  @param id NSA_K_WIN or NSA_V_WIN
 *  @param t  [B, T + DECODE_STEPS, Hkv, D]; free with tensor_free() */
nsa_status slots_unroll(const workload *w, nsa_id id, nsa_tensor *t);

/** Free what slots_open() allocated beside w->in and w->step. */
void slots_close(workload *w);

#endif
