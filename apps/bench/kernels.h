/**
 * @file kernels.h
 * @brief The work that one phase of a call needs at least, and its floor: the shortest time that
 * the ceilings allow.
 *
 * A phase is recognised by its name. "cmp", "slc" and "win" are its branches (none of them: all
 * three); "compress" and "phi" are the compressor; in a backward "dq" is the pass over queries and
 * "dk" or "dv" the pass over keys, each of which recomputes scores and dP; "gate" is dgate; "lists"
 * builds the inverse lists (for each block, the queries that selected it). Any other name has no
 * floor.
 *
 * Operations of one query head and one visible key, dk = dv = D: forward 4 D, and for importance,
 * if the row has more blocks than n, 2 D more for each compressed key; backward in one pass 10 D,
 * the pass over queries 6 D, the pass over keys 8 D.
 *
 * Bytes: every tensor that the phase reads or writes, once. Second-level cache: selected keys and
 * values, once for each query row and kv head, for neighbours may select different blocks.
 */
#ifndef BENCH_KERNELS_H
#define BENCH_KERNELS_H

#include "bench/workload.h"

/** Fill in flops, l2 and bytes of a phase.
 *  @param w       the workload
 *  @param causal  1 for plain causal attention, which has no floor
 *  @param arith   the stage's type
 *  @param phase   its name is an input */
void kernels_count(const workload *w, int causal, nsa_arith arith, bench_phase *phase);

/** The floor of a phase, from the ceilings of the machine that the row ran on. */
typedef struct kernel_floor {
    double seconds;    /**< the shortest possible time; 0 if unknown */
    const char *bound; /**< "FMA", "MMA", "L2" or "memory" */
} kernel_floor;

/** @return the floor of a phase of a row, by the ceilings of its run. */
kernel_floor kernels_floor(const bench_run *run, const bench_row *row, const bench_phase *phase);

#endif
