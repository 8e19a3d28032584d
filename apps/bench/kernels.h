/**
 * @file kernels.h
 * @brief What one phase of a call needs at least: the floor that its time stands beside.
 *
 * A phase is known by its name. "cmp", "slc" and "win" in it say which branches it is about (none:
 * all three); "compress" and "phi" are the compressor; in a backward "dq" is the queries' pass and
 * "dk" or "dv" the keys', each of which has to make scores and dP again; "gate" is dgate, "lists"
 * turns rows' blocks into blocks' rows. Any other name has no floor.
 *
 * Operations of one query head and one key that it sees, dk = dv = D: forward 4 D, and for
 * importance, where a row has more blocks than it may choose, 2 D of the compressed keys once more;
 * a backward of its own 10 D, of the queries 6 D, of the keys 8 D.
 *
 * Bytes: every tensor that the phase reads or writes, once. Second-level cache: selected keys and
 * values, once for each query row and kv head, for neighbours need not choose alike.
 */
#ifndef BENCH_KERNELS_H
#define BENCH_KERNELS_H

#include "bench/workload.h"

/** Fill in flops, l2 and bytes of a phase.
 *  @param w       the workload
 *  @param causal  1 for plain causal attention: the phase is all of it
 *  @param arith   the stage's type
 *  @param phase   its name is read */
void kernels_count(const workload *w, int causal, nsa_arith arith, bench_phase *phase);

/** The floor's parts: seconds at the ceilings of the machine that the row ran on. */
typedef struct kernel_floor {
    double seconds;    /**< the largest part; 0 if nothing is known */
    const char *bound; /**< "FMA", "MMA", "L2" or "memory" */
} kernel_floor;

/** @return the floor of a phase of a row, by the ceilings of its run. */
kernel_floor kernels_floor(const bench_run *run, const bench_row *row, const bench_phase *phase);

#endif
