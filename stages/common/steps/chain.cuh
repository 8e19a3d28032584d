/** @file
 *  @brief What a chain of steps is to main.cu, and what its problem is made of (inputs.cu). For the
 *  steps.cuh of a CUDA stage, which also names BLOCK, the rows of a block, D, their elements, and
 *  SEED: every chain's random numbers begin with random_seed(SEED). */
#ifndef CHAIN_CUH
#define CHAIN_CUH

#include "common/device.h"

/* CHAIN/problem.cu defines chain_CHAIN. cuda.mk finds the folders and names them to main.cu. */
typedef struct chain {
    const char *name;        /* the folder's */
    const char *const *what; /* [n_steps] what the step changes, a few words each */
    int n_steps;
    int gpu_T;                       /* tokens on a GPU, if no number is given */
    double tolerance[2];             /* the largest error(); the largest difference() */
    void (*make)(int T);             /* the problem, inputs from SEED: allocates and fills */
    nsa_status (*run)(int step);     /* queues its launches on the default stream */
    void *(*result)(int64_t *bytes); /* device memory, one of the arrays of device_output() */
    /* What step 0 left in the result, here on the host: how far is it from the same in float64, or
     * from plain loops if it is integers? NaN if it holds one that should not be there. */
    double (*error)(const void *first);
    /* The same for another step's result, from step 0's. */
    double (*difference)(const void *out, const void *first);
} chain;

/* Memory: none left ends the program; release() frees all of it. */
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

/* a.b and y += a x of rows [D], for references */
double dot_float64(const float *a, const float *b);
void add_scaled_float64(double *y, double a, const float *x);
/* rms(x - reference) / rms(reference); NaN if either holds one */
double relative_rms(const float *x, const double *reference, int64_t n);
double relative_rms_float(const float *x, const float *reference, int64_t n);
/* the larger of two errors; NaN if one is NaN */
double larger(double a, double b);

#endif
