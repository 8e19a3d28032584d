/** @file
 *  @brief Step 0, a thread a row: stage 02's sums. The loops over queries and heads are the grid; a
 *  thread goes through its row's keys alone, one after another. */
#include "problem.cuh"

/* What a row carries from key to key. */
typedef struct row_state {
    float o[D], row_max, row_sum;
} row_state;

/* Online softmax (Milakov and Gimelshein 2018), one key. If m and m' are the row maximum before and
 * after it, o = o 2^(m-m') + 2^(s-m') v, and the same for the sum. */
static __device__ __forceinline__ void softmax_step(row_state *x, const float *q, const float *kt,
                                                    const float *v, float scale2) {
    float s = 0;
#pragma unroll
    for (int c = 0; c < D; c++)
        s += q[c] * kt[c * BLOCK];
    const float new_max = fmaxf(x->row_max, s);
    const float rescale = exp2f(scale2 * (x->row_max - new_max)), p = exp2f(scale2 * (s - new_max));
    x->row_max = new_max;
    x->row_sum = x->row_sum * rescale + p;
#pragma unroll
    for (int c = 0; c < D; c++)
        x->o[c] = x->o[c] * rescale + p * v[c];
}

/* One branch. Grid: a CUDA block for each 64 neighbouring queries (x) and head (y). Block: 64
 * threads; thread i owns query 64 blockIdx.x + i: q and o in its registers, nothing shared. In the
 * window the lanes of a warp happen to read the same keys at the same time; selected blocks differ
 * from lane to lane, so that one load asks for 32 lines, of each for 4 bytes. */
template <int BRANCH> static __global__ void __launch_bounds__(BLOCK) attend_kernel(problem pb) {
    const int t = (int)(blockIdx.x * BLOCK + threadIdx.x);
    if (t >= pb.T)
        return;
    const int64_t row = row_of(t, (int)blockIdx.y) * D;
    row_state x = {{0}, -INFINITY, 0};
    float q[D];
#pragma unroll
    for (int c = 0; c < D; c++)
        q[c] = pb.q[row + c];
    span sp;
    for (int at = 0; (sp = span_of(&pb, BRANCH, t, at)).hi; at++) {
        const float *kt = keys_of(&pb, BRANCH, sp.block), *v = values_of(&pb, BRANCH, sp.block);
#pragma unroll 1
        for (int j = sp.lo; j < sp.hi; j++)
            softmax_step(&x, q, kt + j, v + j * D, pb.scale2);
    }
#pragma unroll
    for (int c = 0; c < D; c++)
        pb.o[BRANCH][row + c] = x.o[c] / x.row_sum;
}

/* The gated sum (Eq. 5) of the branches' outputs in memory. Grid: a CUDA block for each query.
 * Block: a thread for 4 columns of a head. */
static __global__ void __launch_bounds__(G *D / 4) combine_kernel(problem pb) {
    const int64_t at = row_of((int)blockIdx.x, 0) * D + (int)threadIdx.x * 4;
    const float *gate = pb.gate + at / D * BRANCHES;
    const float4 a = load4(pb.o[SLC] + at), b = load4(pb.o[WIN] + at);
    store4(pb.out + at, gate[SLC] * a.x + gate[WIN] * b.x, gate[SLC] * a.y + gate[WIN] * b.y,
           gate[SLC] * a.z + gate[WIN] * b.z, gate[SLC] * a.w + gate[WIN] * b.w);
}

nsa_status attend_0_thread_row(const problem *pb) {
    const dim3 grid((unsigned)((pb->T + BLOCK - 1) / BLOCK), G);
    NSA_LAUNCH(attend_kernel<SLC>, grid, dim3(BLOCK), 0, 0, *pb);
    NSA_LAUNCHED("selected");
    NSA_LAUNCH(attend_kernel<WIN>, grid, dim3(BLOCK), 0, 0, *pb);
    NSA_LAUNCHED("window");
    NSA_LAUNCH(combine_kernel, dim3((unsigned)pb->T), dim3(G * D / 4), 0, 0, *pb);
    NSA_LAUNCHED("combine");
    return NSA_OK;
}
