/** @file
 *  @brief Step 1: a CUDA block is a row. It loads each block of keys, then of values, into shared
 *  memory as whole lines; a thread owns a key there, then a column. */
#include "../steps.cuh"

/* The largest x of both warps, in every thread. s_max [2] may be reused after another barrier. */
static __device__ __forceinline__ float block_max(float x, float *s_max) {
#pragma unroll
    for (int lane = 1; lane < WARP_SIZE; lane *= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lane));
    if (lane_id() == 0)
        s_max[warp_id()] = x;
    __syncthreads();
    return fmaxf(s_max[0], s_max[1]);
}

/* One span of a row: online softmax as in step 0, over a whole block of keys. Thread i has key i's
 * part of the sum, and column i of o. */
static __device__ __forceinline__ void softmax_step(const problem *pb, int branch, span sp,
                                                    float *s_block, const float *s_q, float *s_p,
                                                    float *s_max, float *o, float *row_max,
                                                    float *row_sum) {
    const int i = (int)threadIdx.x;
    float s = 0;
    load_shared(s_block, keys_of(pb, branch, sp.block), D * BLOCK);
#pragma unroll 16
    for (int c = 0; c < D; c++)
        s += s_q[c] * s_block[c * BLOCK + i];
    s = i >= sp.lo && i < sp.hi ? s : -INFINITY;
    const float new_max = fmaxf(*row_max, block_max(s, s_max));
    const float rescale = exp2f(pb->scale2 * (*row_max - new_max)),
                p = exp2f(pb->scale2 * (s - new_max));
    *row_max = new_max;
    *row_sum = *row_sum * rescale + p;
    *o *= rescale;
    s_p[i] = p;
    load_shared(s_block, values_of(pb, branch, sp.block), BLOCK * D);
#pragma unroll 16
    for (int j = sp.lo; j < sp.hi; j++) /* the others are left out: 0 * NaN is NaN */
        *o += s_p[j] * s_block[j * D + i];
}

/* One branch. Grid: a CUDA block for each row, heads innermost. Block: 64 threads; thread i owns
 * key i of each block, column i of q and o. Shared: 16.5 KiB, a block of keys or values and the
 * row's q and p. */
template <int BRANCH> static __global__ void __launch_bounds__(BLOCK) attend_kernel(problem pb) {
    __shared__ __align__(16) float s_block[BLOCK * D], s_q[D], s_p[BLOCK], s_max[2];
    const int t = (int)blockIdx.x / G, i = (int)threadIdx.x;
    const int64_t row = row_of(t, (int)blockIdx.x % G) * D;
    float o = 0, row_max = -INFINITY, row_sum = 0, total = 0;
    s_q[i] = pb.q[row + i];
    span sp;
    for (int at = 0; (sp = span_of(&pb, BRANCH, t, at)).hi; at++)
        softmax_step(&pb, BRANCH, sp, s_block, s_q, s_p, s_max, &o, &row_max, &row_sum);
    __syncthreads();
    s_p[i] = row_sum;
    __syncthreads();
    for (int j = 0; j < BLOCK; j++)
        total += s_p[j];
    pb.o[BRANCH][row + i] = o / total;
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

nsa_status step_1_shared_block(const problem *pb) {
    const dim3 grid((unsigned)pb->T * G);
    NSA_LAUNCH(attend_kernel<SLC>, grid, dim3(BLOCK), 0, 0, *pb);
    NSA_LAUNCHED("selected");
    NSA_LAUNCH(attend_kernel<WIN>, grid, dim3(BLOCK), 0, 0, *pb);
    NSA_LAUNCHED("window");
    NSA_LAUNCH(combine_kernel, dim3((unsigned)pb->T), dim3(G * D / 4), 0, 0, *pb);
    NSA_LAUNCHED("combine");
    return NSA_OK;
}
