/** @file
 *  @brief What the chains share. A chain goes from what stage 03 does, a warp's tile in float32, to
 *  what stage 04 does in small steps, for one part of the operator: a folder, and in it numbered
 *  files.
 *
 *  Read a chain's problem.cuh, then its steps in order: `make diff A=04/attend/0 B=04/attend/1`,
 *  and so on. Each step is complete for its part and changes one thing. What no step changes is the
 *  stage's own (tile.cuh, attend.cuh), or in short what stage 03 has (float_tile.cuh). */
#ifndef STEPS_CUH
#define STEPS_CUH

#include "attend.cuh"
#include "common/steps/chain.cuh"

enum {
    G = TILE_ROWS, /* heads of the group: the 16 rows of a tile */
    D = PAD_COLS   /* head dimension of keys and values: 64 */
};

/* Every chain's random numbers begin with random_seed(SEED). */
#define SEED "steps of 04_tensor_cores"

/* rounded.cu: x [rows,D] as bfloat16 on the device, rows padded to blocks of BLOCK; those after the
 * last are NaN. ROWS: as they are; COLUMNS: each block transposed, [D,BLOCK]; MEM_TILES: tile.cuh
 */
typedef enum layout { ROWS, COLUMNS, MEM_TILES } layout;
bf16 *rounded(const float *x, int64_t rows, layout to);
/* x [n] on the host, as it is or rounded to bfloat16 and back. */
const float *floats(const float *x, int64_t n, bool is_rounded);

/* How far steps that round may be from step 0. bfloat16 has 8 bits, so rounding is off by up to
 * 2^-9 of an element, and in random directions: some operands together by 2^-8 of the result. */
static const double ROUNDED = 1.0 / 256;
/* relative_rms_float() of all rows [rows,columns], or a fourth of the worst row's if that is
 * larger: one wrong element is not lost among many. A row that is smaller than the others counts as
 * if it were as large. */
double rounding_error(const float *x, const float *reference, int64_t rows, int64_t columns);

/* Copy `bytes` to shared memory, by all `threads` of the CUDA block, 16 bytes each at a time. */
static __device__ __forceinline__ void load_shared(void *s_to, const void *g_from, int bytes,
                                                   int threads) {
    __syncthreads(); /* what lies there is used */
    for (int i = (int)threadIdx.x; i < bytes / 16; i += threads)
        ((uint4 *)s_to)[i] = ((const uint4 *)g_from)[i];
    __syncthreads();
}

#endif
