/** @file
 *  @brief What main.cu and the chains share. A chain goes from what stage 02 does, with the
 *  simplest grid, to what stage 03 does in small steps, for one part of the operator: a folder,
 *  and in it numbered files.
 *
 *  Read a chain's problem.cuh, then its steps in order: `make diff A=03/attend/0
 *  B=03/attend/1`, and so on. Each step is complete for its part and changes one thing.
 *  Products, reductions and the online softmax of a warp's tile are the stage's own (tile.cuh,
 *  attend.cuh): no step changes them. */
#ifndef STEPS_CUH
#define STEPS_CUH

#include "attend.cuh"

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

/* CHAIN/problem.cu defines chain_CHAIN. steps.mk finds the folders and names them to main.cu. */
typedef struct chain {
    const char *name;        /* the folder's */
    const char *const *what; /* [n_steps] what the step changes, a few words each */
    int n_steps;
    int gpu_T;                       /* tokens on a GPU, if no number is given */
    double tolerance;                /* the largest error() and difference() */
    void (*make)(int T);             /* the problem, inputs from SEED: allocates and fills */
    nsa_status (*run)(int step);     /* queues its launches on the default stream */
    void *(*result)(int64_t *bytes); /* device memory, one of the arrays of device_output() */
    /* What step 0 left in the result, here on the host: how far is it from the same in float64, or
     * from plain loops if it is integers? NaN if it holds one that should not be there. */
    double (*error)(const void *first);
    /* The same for another step's result, from step 0's. */
    double (*difference)(const void *out, const void *first);
} chain;

/* inputs.cu. Memory: none left ends the program; release() frees all of it. */
void *allocate(int64_t count, size_t size); /* on the host, zeroed */
void *copy_to_device(const void *from, int64_t count, size_t size);
void *device_output(int64_t count, size_t size); /* what steps write: poison() fills it with NaN, */
nsa_status poison(void);                         /* which is -1 as an integer */
void release(void);
/* n normal numbers, none of them 0: a product with 0 would hide a wrong factor */
float *draw(int64_t n, uint64_t *random);
/* idx [count] of the query at position t: its own block of BLOCK tokens and count-1 earlier ones,
 * every set equally likely, ascending; -1 after the last */
void draw_blocks(int32_t *idx, int count, int t, uint64_t *random);
/* x [T,D] in blocks of BLOCK rows, on the device: each transposed, [D,BLOCK], or as it is,
 * [BLOCK,D]. The rows after the last are NaN: nothing may come of them. */
float *transposed_blocks(const float *x, int64_t T);
float *natural_blocks(const float *x, int64_t T);

/* rms(x - reference) / rms(reference); NaN if either holds one */
double relative_rms(const float *x, const double *reference, int64_t n);
double relative_rms_float(const float *x, const float *reference, int64_t n);
/* the larger of two errors; NaN if one is NaN */
double larger(double a, double b);

#endif
