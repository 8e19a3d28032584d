/** @file contender.h
 *  @brief What is timed: a stage, a stage's plain causal attention, the dense baseline on OpenBLAS,
 * and peers (other libraries' attention); all behind the same four calls. Their inputs, the work
 * these need, and checking results against an oracle's. */
#ifndef BENCH_CONTENDER_H
#define BENCH_CONTENDER_H

#include "bench/bench.h"
#include "common/timer.h"
#include "harness/case.h"

#include <stdio.h>

/* -------------------------------------------------------------- workload.c */

enum {
    DECODE_WARM = 16, /**< warm-up steps, which are also checked */
    DECODE_RUNS = 20, /**< maximum timed steps */
    /** steps that there are tokens for: a run may be timed as a graph, and with load and read */
    DECODE_STEPS = DECODE_WARM + 3 * DECODE_RUNS + 1
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
    nsa_tensor rows;      /**< int32: the rows that the check samples; for decode the slots */
    nsa_tensor sparse;    /**< dout of those rows, zero elsewhere (backward) */
    test_case judged;     /**< the case that the oracle runs */
    nsa_tensors truth[2]; /**< the oracle's results on the rows: of NSA, of causal attention */
} workload;

/** The case string of the inputs, as `nsa check --case` reads it; without T if that is 0. */
void workload_text(const bench_options *o, int64_t T, char *text, size_t capacity);

/** Draw the inputs, rounded if `arith` is NSA_BFLOAT16. Also an error leaves `w` to be closed. */
nsa_status workload_open(const bench_options *o, bench_pass pass, int64_t T, nsa_arith arith,
                         workload *w);

/** Copy the gates into `gate`, the window's set to 1 and the others to 0, and let `in` have it. */
nsa_status workload_gate(nsa_tensor *gate, nsa_tensors *in);

/** The inputs for plain causal attention by a stage's backward: window = T, gates 0, 0, 1. The
 * other two branches are computed all the same, so they are as small as the contract allows (l = d
 * = l' = 256, one block, phi mean). `gate` owns the changed gates; `in` is a view. */
nsa_status workload_dense(const workload *w, nsa_config *cfg, nsa_tensor *gate, nsa_tensors *in);

/** Free everything. */
void workload_close(workload *w);

/* The slots of a decode need little host memory: one stretch of tokens is drawn; slot b holds the T
 * of them that begin at b * DECODE_STEPS, and its steps append the DECODE_STEPS that follow. So no
 * two slots hold the same, and the host has the keys of little more than one sequence. */

/** @return the first `tokens` of a slot's sequence, a view; queries and gates are blank. */
nsa_tensors workload_slot(const workload *w, int64_t slot, int64_t tokens);

/** Fill every slot of a context, which is opened for loads of w->T tokens: a load of one sequence
 * and a prefill of no rows, which compresses and caches but attends to nothing. */
nsa_status slots_fill(const workload *w, nsa_context *ctx);

/** Copy all slots and the tokens of their steps: NSA_K_WIN or NSA_V_WIN for the dense baseline,
 * [B, T + DECODE_STEPS, Hkv, D]; free with tensor_free(). */
nsa_status slots_unroll(const workload *w, nsa_id id, nsa_tensor *t);

/* ------------------------------------------------------------------ work.c */

/** Count the work that the config needs: flops, bytes and tokens of a row. Operations: visible
 * pairs only, two products forward (4 D a pair for dk = dv = D), five backward (the scores once
 * more), and the compressor's products, twice more in its backward; exp, importance and selection
 * are not counted. Bytes: every input read once, every result written once, in the stage's type.
 * `causal` is 1 for plain causal attention over one pair, `arith` the stage's type. */
void workload_count(const workload *w, int causal, nsa_arith arith, bench_row *row);

/** Count the work of one phase of a GPU stage by its name: "cmp", "slc" and "win" are its branches
 * (none of them: all three); "compress" and "phi" the compressor; in a backward "dq" is the pass
 * over queries and "dk" or "dv" the pass over keys, each of which recomputes scores and dP; "gate"
 * is dgate; "lists" builds the inverse lists. Any other name has no floor. Operations of one query
 * head and one visible key, dk = dv = D: forward 4 D, and for importance, if the row has more
 * blocks than n, 2 D more for each compressed key; backward in one pass 10 D, the pass over queries
 * 6 D, the pass over keys 8 D. A stage in bfloat16 has importance in "select", and keeps dS: 2 D
 * for queries. Bytes: every tensor that the phase reads or writes, once.
 * Second-level cache: selected keys and values, once for each query row and kv head. */
void phase_work(const workload *w, nsa_arith arith, bench_phase *phase);

/* ---------------------------------------------------------------- verify.c */

/** @return 1 if that result is compared; of plain causal attention out, dq, dk_win and dv_win. */
int verify_wants(const workload *w, int causal, nsa_id id);

/** Run the oracle, stage 00 or one of verify_judge(), on the sampled rows, unless that was done
 * already; w keeps the results. `causal` is 1 for plain causal attention. */
nsa_status verify_truth(workload *w, const nsa_stage *oracle, int causal);

/** Judge a candidate's results on the sampled rows by the table of docs/specification.md: the
 * selection as a set, then outputs and gradients with its own blocks forced on the oracle.
 * `mine` has out, block_idx, dq and dgate of the sampled rows; other gradients whole. */
nsa_status verify(const workload *w, const nsa_stage *oracle, nsa_arith arith, int causal,
                  const nsa_tensors *mine);

/** Prove that a stage can be the oracle: its rows at 1024 tokens are right by stage 00. */
nsa_status verify_judge(const bench_options *o, bench_pass pass, const nsa_stage *judge);

/* ---------------------------------------------------------------- machine.c */

/** @return NULL if OpenBLAS is there, else why not; the first call loads it. */
const char *blas_missing(void);

/** @return OpenBLAS's own description of itself, or blas_missing(). */
const char *blas_name(void);

/** Set OpenBLAS's own threads; without memory for them blas_missing() says so from then on. */
void blas_threads(int threads);

enum { ROW_MAJOR = 101, AS_IT_IS = 111, TRANSPOSED = 112 }; /**< as in cblas.h */

/** cblas_sgemm(), where blas_missing() has returned NULL; enums are int, and so are sizes. */
extern void (*blas_sgemm)(int order, int ta, int tb, int m, int n, int k, float alpha,
                          const float *a, int lda, const float *b, int ldb, float beta, float *c,
                          int ldc);

/** @return the table; NULL without a GPU or that part, and then `missing`, if given, says why. */
const gpu_table *gpu(const char **missing);

/* ------------------------------------------------------------------ dense.c */

/** The dense baseline: causal attention by tiles on OpenBLAS, as carefully optimised as any stage.
 * The heads of a group share K and V, so a tile of query tokens times G heads is one matrix; it
 * loops over blocks of keys up to the diagonal with an online softmax. */
typedef struct dense dense;

/** Its inputs, laid out as in the contract. */
typedef struct dense_inputs {
    const float *q; /**< [B,T,Hq,dk]; for decode [B,Hq,dk] */
    const float *k; /**< [B,T,Hkv,dk] */
    const float *v; /**< [B,T,Hkv,dv] */
} dense_inputs;

/** Allocate all memory for B sequences of T tokens. @return for free(); NULL without memory.
 * `bytes` gets its size. */
dense *dense_open(const nsa_config *cfg, int64_t T, int64_t B, int threads, int64_t *bytes);

/** @return the outputs [.,Hq,dv] of all rows; if `len` is above 0, of one query a sequence over
 * `len` of its keys. They stay until the next call. */
float *dense_run(dense *d, const dense_inputs *in, int64_t len);

/* ------------------------------------------------------------------ peers.c */

enum { PEERS_MAX = 8 /**< maximum backends of one run */ };

/** One backend of the peers' program. */
typedef struct peer {
    char name[48];          /**< "torch_flash2" */
    bench_device device;    /**< where it runs */
    nsa_arith arith;        /**< its arithmetic */
    int sparse;             /**< 1 for a native sparse attention, 0 for plain causal attention */
    int pass[BENCH_PASSES]; /**< 1 where it can be timed */
} peer;

/** The program, and what it offers; docs/measuring.md has the protocol. */
typedef struct peers {
    peer list[PEERS_MAX]; /**< its backends */
    int count;            /**< how many */
    char about[512];      /**< its description of itself, and what is missing */
    int pid;              /**< 0: none, or it was ended */
    FILE *to;             /**< its standard input */
    FILE *from;           /**< its standard output */
} peers;

/** Start the program and ask for its backends.
 *  @return an error if it does not answer; p->about says why */
nsa_status peers_start(peers *p, const char *command, const bench_options *o);

/** End the program. */
void peers_stop(peers *p);

/* -------------------------------------------------------------- contender.c */

/** A program that is timed: a stage on a device by itself, as the sum of its phases, or if it lists
 * none by the host's clock from the call until the device is done. NSA by a stage on a device is
 * timed once more with load and read of its caller's tensors there. */
typedef struct contender {
    const nsa_stage *stage;          /**< NULL for the dense baseline and for peers */
    const char *name;                /**< of the stage, the dense baseline or the peer */
    int causal;                      /**< 1 for plain causal attention */
    bench_device device;             /**< where it runs */
    peers *program;                  /**< of a peer */
    const peer *peer;                /**< which, NULL for all others */
    int peer_id;                     /**< of its inputs */
    int threads;                     /**< that it may use */
    nsa_context *ctx;                /**< of a stage */
    dense *dense;                    /**< or the baseline */
    dense_inputs in;                 /**< of the baseline */
    float *out;                      /**< its outputs */
    nsa_tensor cache[2];             /**< its keys and values, for decode */
    bench_row *row;                  /**< its row of results */
    int64_t steps;                   /**< of decode that were loaded */
    int has_io;                      /**< 1 if it is timed with load and read as well */
    nsa_tensors given;               /**< then: its inputs on the device, [T,H,D], */
    nsa_tensors got;                 /**< and its results there */
    void *graph;                     /**< then, on a GPU: a decode step as a graph */
    int32_t active[BENCH_MAX_BATCH]; /**< slots of a step */
    double first;                    /**< seconds of the last warm-up run of the pass alone */
    int wanted;                      /**< runs to time */
    int runs;                        /**< timed so far */
    double sample[BENCH_MAX_RUNS];   /**< their seconds */
    double with_io[BENCH_MAX_RUNS];  /**< and with load and read */
    double phase[BENCH_MAX_PHASES][BENCH_MAX_RUNS]; /**< and those of their phases */
} contender;

/** Draw a peer's inputs, run once, check: fills in peer_id, first and the row's `checked`. */
nsa_status peers_open(contender *c, const workload *w);

/** One run of a peer. */
nsa_status peers_time(const contender *c, double *seconds);

/** Free a peer's memory. */
void peers_close(const contender *c);

/** @return where a stage runs. */
bench_device bench_device_of(const nsa_stage *stage);

/** @return its arithmetic. */
nsa_arith contender_arith(const contender *c);

/** Get memory, load inputs. @return NSA_ERR_DEVICE or NSA_ERR_UNSUPPORTED if it cannot run here */
nsa_status contender_open(contender *c, const workload *w);

/** Run once, as a warm-up too, and judge the sampled rows; after verify_truth() by `oracle`. */
nsa_status contender_check(contender *c, const workload *w, const nsa_stage *oracle);

/** Time one run and its phases. */
nsa_status contender_time(contender *c, const workload *w);

/** Free its memory. */
void contender_close(contender *c);

#endif
