/**
 * @file contender.h
 * @brief What is timed: a stage, a stage's plain causal attention, the dense baseline on OpenBLAS,
 * and peers (other libraries' attention); all behind the same four calls.
 */
#ifndef BENCH_CONTENDER_H
#define BENCH_CONTENDER_H

#include "bench/workload.h"

#include <stdio.h>

/* -------------------------------------------------------------- libraries.c */

/** @return NULL if OpenBLAS is there, else why not; the first call loads it. */
const char *blas_missing(void);

/** @return OpenBLAS's own description of itself, or blas_missing(). */
const char *blas_name(void);

/** Set OpenBLAS's own threads; if there is no memory for them, blas_missing() says so from then
 * on. */
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
 * loops over blocks of keys with an online softmax. Blocks wholly above the diagonal are skipped.
 */
typedef struct dense dense;

/** Its inputs, laid out as in the contract. */
typedef struct dense_inputs {
    const float *q; /**< [B,T,Hq,dk]; for decode [B,Hq,dk] */
    const float *k; /**< [B,T,Hkv,dk] */
    const float *v; /**< [B,T,Hkv,dv] */
} dense_inputs;

/** Allocate all memory for B sequences of T tokens. @return for free(); NULL without memory */
dense *dense_open(const nsa_config *cfg, int64_t T, int64_t B, int threads);

/** The outputs of all rows; if `len` is above 0, of one query a sequence over the first `len` of
 * its T keys. */
void dense_run(dense *d, const dense_inputs *in, int64_t len);

/** @return the outputs [.,Hq,dv]; `bytes` gets the size of all its memory. */
float *dense_out(dense *d, int64_t *bytes);

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

/** A program that is timed. A stage on a device times itself: a run's seconds are the sum of its
 * phases, timed by events in the device's queue. If it lists no phases, the host's clock runs from
 * the call until the device is done. NSA by a stage on a device is timed once more with load and
 * read of its caller's tensors there. */
typedef struct contender {
    const nsa_stage *stage;         /**< NULL for the dense baseline and for peers */
    const char *name;               /**< of the stage, the dense baseline or the peer */
    int causal;                     /**< 1 for plain causal attention */
    bench_device device;            /**< where it runs */
    peers *program;                 /**< of a peer */
    const peer *peer;               /**< which, NULL for all others */
    int peer_id;                    /**< of its inputs */
    int threads;                    /**< that it may use */
    nsa_context *ctx;               /**< of a stage */
    dense *dense;                   /**< or the baseline */
    dense_inputs in;                /**< of the baseline */
    nsa_tensor cache[2];            /**< its keys and values, for decode */
    bench_row *row;                 /**< its row of results */
    int64_t steps;                  /**< of decode that were loaded */
    struct caller *caller;          /**< whose tensors are on the device; NULL: not timed so */
    double first;                   /**< seconds of the last warm-up run of the pass alone */
    int wanted;                     /**< runs to time */
    int runs;                       /**< timed so far */
    double sample[BENCH_MAX_RUNS];  /**< their seconds */
    double with_io[BENCH_MAX_RUNS]; /**< and with load and read */
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
