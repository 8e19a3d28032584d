/**
 * @file workload.h
 * @brief The inputs of one pass at one length, the work they need, the slots of a decode, and
 * checking a program's results against an oracle's.
 */
#ifndef BENCH_WORKLOAD_H
#define BENCH_WORKLOAD_H

#include "bench/bench.h"
#include "harness/case.h"

enum {
    DECODE_WARM = 16,                            /**< warm-up steps, which are also checked */
    DECODE_RUNS = 20,                            /**< maximum timed steps */
    DECODE_STEPS = DECODE_WARM + DECODE_RUNS + 1 /**< steps that there are tokens for */
};

/** One pass at one length. */
typedef struct workload {
    bench_pass pass;      /**< which */
    int64_t T;            /**< tokens of a sequence */
    int64_t B;            /**< sequences */
    int threads;          /**< threads for the oracle */
    nsa_arith arith;      /**< NSA_BFLOAT16 if the inputs are rounded to it */
    nsa_config cfg;       /**< resolved, for nsa_open() */
    nsa_tensors in;       /**< drawn inputs, without `rows`; for decode see slots_open() */
    nsa_tensors step;     /**< decode: tokens of DECODE_STEPS steps, B a step */
    nsa_tensor blank[2];  /**< decode: q and gate of a sequence, zero but in judged rows */
    nsa_tensor slots;     /**< decode, int32: the slots that are judged */
    nsa_tensor rows;      /**< int32: the rows that the check samples; for decode two a slot, each
                             the position in its own sequence */
    nsa_tensor sparse;    /**< dout of those rows, zero elsewhere (backward) */
    test_case judged;     /**< the case that the oracle runs */
    nsa_tensors truth[2]; /**< the oracle's results on the rows: of NSA, of causal attention */
    char oracle[64];      /**< the stage that computed them */
} workload;

/** The case string of the inputs; `nsa check --case` reads it too.
 *  @param o     the options
 *  @param T     tokens of a sequence, 0 to leave them out
 *  @param text  filled in
 *  @param capacity  its size */
void workload_text(const bench_options *o, int64_t T, char *text, size_t capacity);

/** Draw the inputs.
 *  @param o      config, batch, rows, seed
 *  @param pass   which
 *  @param T      tokens of a sequence
 *  @param arith  NSA_BFLOAT16 to round them
 *  @param w      for workload_close(), also on an error */
nsa_status workload_open(const bench_options *o, bench_pass pass, int64_t T, nsa_arith arith,
                         workload *w);

/** The oracle's inputs for forward and backward: all inputs, the rows and dout. With `causal` 1,
 * `out` is plain causal attention over the window's pair (window = T, gates 0, 0, 1).
 *  @param cfg   filled in
 *  @param gate  owns the changed gates; free with tensor_free()
 *  @param in    filled in, a view */
nsa_status workload_judged(const workload *w, int causal, nsa_config *cfg, nsa_tensor *gate,
                           nsa_tensors *in);

/** The inputs for plain causal attention by a stage's backward: window = T, gates 0, 0, 1. The
 * other two branches are computed all the same, so they are as small as the contract allows (l = d
 * = l' = 256, one block, phi mean). Parameters as above. */
nsa_status workload_dense(const workload *w, nsa_config *cfg, nsa_tensor *gate, nsa_tensors *in);

/** Free everything. */
void workload_close(workload *w);

/* ------------------------------------------------------------------- work.c */

/** The work of a run. */
typedef struct workload_cost {
    double flops;  /**< useful operations */
    double bytes;  /**< moved at least once */
    double tokens; /**< query tokens */
} workload_cost;

/** Count the work that the config needs. Operations: visible pairs only, two products forward (4 D
 * a pair for dk = dv = D), five backward (the scores once more), and the compressor's products,
 * twice more in its backward; exp, importance and selection are not counted. Bytes: every input
 * read once, every result written once, in the stage's type.
 *  @param causal  1 for plain causal attention over one pair
 *  @param arith   the stage's type */
workload_cost workload_count(const workload *w, int causal, nsa_arith arith);

/**
 * Count the work of one phase of a GPU stage, recognised by its name: "cmp", "slc" and "win" are
 * its branches (none of them: all three); "compress" and "phi" are the compressor; in a backward
 * "dq" is the pass over queries and "dk" or "dv" the pass over keys, each of which recomputes
 * scores and dP; "gate" is dgate; "lists" builds the inverse lists (for each block, the queries
 * that selected it). Any other name has no floor.
 *
 * Operations of one query head and one visible key, dk = dv = D: forward 4 D, and for importance,
 * if the row has more blocks than n, 2 D more for each compressed key; backward in one pass 10 D,
 * the pass over queries 6 D, the pass over keys 8 D. Bytes: every tensor that the phase reads or
 * writes, once. Second-level cache: selected keys and values, once for each query row and kv head,
 * for neighbours may select different blocks.
 */
void phase_work(const workload *w, nsa_arith arith, bench_phase *phase);

/* ------------------------------------------------------------------ slots.c */

/** Draw the inputs of a decode from little host memory: one stretch of tokens; slot b holds the T
 * of them that begin at b * DECODE_STEPS, and its steps append the DECODE_STEPS that follow. So no
 * two slots hold the same, and the host has the keys of little more than one sequence.
 *  @param w  its T, B, threads and arith are set; the rest is filled in */
nsa_status slots_open(const bench_options *o, workload *w);

/** Fill every slot of a context, which is opened for loads of w->T tokens: a load of one sequence
 * and a prefill of no rows, which compresses and caches but attends to nothing. */
nsa_status slots_fill(const workload *w, nsa_context *ctx);

/** Inputs of one decode step of all slots: a view into w->step with `active` beside it.
 *  @param number  0 for the first
 *  @param active  capacity for w->B slots
 *  @param in      filled in */
void slots_step(const workload *w, int64_t number, int32_t *active, nsa_tensors *in);

/** Compute the judged rows by a stage's forward over the judged slots, one after another.
 *  @param stage   the oracle
 *  @param causal  1 for plain causal attention over the window's pair
 *  @param blocks  int32 [2 a slot,Hkv,n] to force, or NULL to select
 *  @param[out] results  out, block_idx and importance, two rows a slot; free with tensors_free() */
nsa_status slots_judge(const workload *w, const nsa_stage *stage, int causal,
                       const nsa_tensor *blocks, nsa_tensors *results);

/** Copy all slots and the tokens of their steps: NSA_K_WIN or NSA_V_WIN for the dense baseline,
 * [B, T + DECODE_STEPS, Hkv, D]; free with tensor_free(). */
nsa_status slots_unroll(const workload *w, nsa_id id, nsa_tensor *t);

/** Free what slots_open() allocated beside w->in and w->step. */
void slots_close(workload *w);

/* ----------------------------------------------------------------- verify.c */

/** Judge a stage on a small case: with small blocks every boundary, such as the window's edge or
 * the first rejected block, is within 130 tokens.
 *  @return NSA_OK also if it cannot run here; contender_open() says why */
nsa_status verify_small(const nsa_found *found, const nsa_stage *oracle, const bench_options *o,
                        bench_pass pass);

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

/** The stages that can be the oracle of a row: stage 00, or where it would take too long a CPU
 * stage that stage 00 has checked on the same heads and dims. */
typedef struct bench_judge {
    const bench_options *o; /**< budget, --judge, where the stages are */
    nsa_found oracle;       /**< stage 00 */
    nsa_found second;       /**< --judge, or stage 02 or 01; no stage if there is none */
    double oracle_seconds; /**< of this pass: stage 00's seconds for the rows, over T; 0: unknown */
    int tried;             /**< of this pass: 1 if the second stage was checked */
    int proven;            /**< of this pass: 1 if that check passed */
} bench_judge;

/** Find both stages.
 *  @return an error if stage 00 is not there, or the stage that --judge names does not qualify */
nsa_status judge_open(bench_judge *j, const bench_options *o);

/** Choose the oracle at this length.
 *  @return the second stage if stage 00 would take more than half of a row's budget (for decode an
 * eighth), or --judge is given, and if its own rows are right at 1024 tokens; else stage 00 */
const nsa_found *judge_of(bench_judge *j, bench_pass pass, int64_t T);

/** Record how long stage 00 took. */
void judge_note(bench_judge *j, int64_t T, double seconds);

/** Unload both. */
void judge_close(bench_judge *j);

#endif
