/** @file
 *  @brief What the chains share. A chain goes from what stage 02 does, with the simplest grid, to
 *  what stage 03 does in small steps, for one part of the operator: a folder, and in it numbered
 *  files.
 *
 *  Read a chain's problem.cuh, then its steps in order: `make diff A=03/attend/0
 *  B=03/attend/1`, and so on. Each step is complete for its part and changes one thing.
 *  Products, reductions and the online softmax of a warp's tile are the stage's own (tile.cuh,
 *  attend.cuh): no step changes them. */
#ifndef STEPS_CUH
#define STEPS_CUH

#include "attend.cuh"
#include "common/steps/chain.cuh"

enum {
    G = TILE_ROWS, /* heads of the group: the 16 rows of a tile */
    D = TILE_COLS  /* head dimension of keys and values: one tile of 64 columns */
};

/* The G rows of a query's q [G,D], as Q^T [D][G], by one warp. */
static __device__ __forceinline__ void load_query(float *s_q, const float *g_q) {
    for (int i = lane_id(); i < G * D; i += WARP_SIZE)
        s_q[i % D * G + i / D] = g_q[i];
    __syncwarp();
}

/* Every chain's random numbers begin with random_seed(SEED). */
#define SEED "steps of 03_fused_cuda"

#endif
