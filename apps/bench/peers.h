/**
 * @file peers.h
 * @brief Other libraries' attention, timed in turn with ours by a separate program.
 *
 * The program reads requests from its standard input, one a line, and answers each with one line;
 * both are JSON objects. apps/peers.py is one. Times are in seconds, lengths in tokens.
 *
 *     {"op":"hello","threads":1,"gpu":1}
 *         {"about":"PyTorch 2.11 ...","absent":"fla","backends":[{"name":"torch_flash2",
 *          "device":"gpu","arith":"bfloat16","sparse":0,"passes":"forward backward decode"}, ...]}
 *     {"op":"open","backend":"torch_flash2","pass":"forward","B":1,"T":8192,"Hq":64,...}
 *         {"id":1,"first":0.0034,"checked":"float64, 3 tokens"}
 *     {"op":"time","id":1}
 *         {"seconds":0.0033}
 *     {"op":"close","id":1}
 *         {}
 *
 * `open` draws inputs, runs once and checks that run. Any answer may be {"error":"why"} if it
 * cannot run, or {"wrong":"what"} if its result is wrong. The end of its input ends the program.
 */
#ifndef BENCH_PEERS_H
#define BENCH_PEERS_H

#include "bench/workload.h"

enum { PEERS_MAX = 8 /**< maximum backends of one run */ };

/** One backend of the program. */
typedef struct peer {
    char name[48];          /**< "torch_flash2" */
    bench_device device;    /**< where it runs */
    nsa_arith arith;        /**< its arithmetic */
    int sparse;             /**< 1 for a native sparse attention, 0 for plain causal attention */
    int pass[BENCH_PASSES]; /**< 1 where it can be timed */
} peer;

/** The program, and what it offers. */
typedef struct peers {
    peer list[PEERS_MAX]; /**< its backends */
    int count;            /**< how many */
    char about[512];      /**< its description of itself, and what is missing */
    int pid;              /**< 0: none, or it was ended */
    int to;               /**< pipe to its standard input */
    int from;             /**< pipe from its standard output */
    char *line;           /**< answer read so far */
    size_t used;          /**< bytes of it */
    size_t capacity;      /**< bytes there is memory for */
} peers;

/** Start the program and ask for its backends.
 *  @param p        filled in, for peers_stop()
 *  @param command  for the shell
 *  @param o        threads, and whether the GPU is wanted
 *  @return an error if it does not answer; p->about says why */
nsa_status peers_start(peers *p, const char *command, const bench_options *o);

/** Draw inputs, run once, check.
 *  @param p      the program
 *  @param which  of p->list
 *  @param w      pass, lengths, heads and dims
 *  @param row    gets `checked`
 *  @param id     for the calls below
 *  @param first  seconds of that run
 *  @return NSA_ERR_UNSUPPORTED if it cannot run, NSA_ERR_INPUT if its result is wrong */
nsa_status peers_open(peers *p, const peer *which, const workload *w, bench_row *row, int *id,
                      double *first);

/** One run. */
nsa_status peers_time(peers *p, int id, double *seconds);

/** Free its memory. */
void peers_close(peers *p, int id);

/** End the program. */
void peers_stop(peers *p);

#endif
