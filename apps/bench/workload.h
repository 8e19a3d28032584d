/**
 * @file workload.h
 * @brief The inputs of one pass at one length, the work they need, and the oracle's results for the
 * sampled rows.
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
    nsa_tensors in;       /**< drawn inputs, without `rows`; for decode see slots.h */
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
 *  @param w       the workload
 *  @param causal  1 for the dense baselines
 *  @param cfg     filled in
 *  @param gate    owns the changed gates; free with tensor_free()
 *  @param in      filled in, a view */
nsa_status workload_judged(const workload *w, int causal, nsa_config *cfg, nsa_tensor *gate,
                           nsa_tensors *in);

/** The inputs for plain causal attention by a stage's backward: window = T, gates 0, 0, 1. The
 * other two branches are computed all the same, so they are as small as the contract allows (l = d
 * = l' = 256, one block, phi mean).
 *  @param w     the workload
 *  @param cfg   filled in
 *  @param gate  owns the changed gates; free with tensor_free()
 *  @param in    filled in, a view */
nsa_status workload_dense(const workload *w, nsa_config *cfg, nsa_tensor *gate, nsa_tensors *in);

/** Free everything. */
void workload_close(workload *w);

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
 *  @param w       the workload
 *  @param causal  1 for plain causal attention over one pair
 *  @param arith   the stage's type */
workload_cost workload_count(const workload *w, int causal, nsa_arith arith);

/** The compressors' forward alone: operations, and the number of weights in `bytes`. */
workload_cost workload_phi(const workload *w);

#endif
