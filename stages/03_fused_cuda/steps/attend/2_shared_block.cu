/** @file
 *  @brief Step 2, a shared block: each block of keys, then of values, goes through shared memory,
 *  16 bytes a thread and load. Nobody else uses it yet: that is step 3. */
#include "problem.cuh"

/* What a row carries from block to block: column i of o, and key i's part of the sum. */
typedef struct row_state {
    float o, row_max, row_sum;
} row_state;

/* Shared memory of a CUDA block, 16.5 KiB: a block of keys or values, the row's q, p of a block, a
 * maximum a warp. */
typedef struct smem {
    float block[BLOCK * D], q[D], p[BLOCK], max[2];
} smem;

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

/* One span of a row: online softmax as in step 0, over a whole block of keys. */
static __device__ __forceinline__ void softmax_step(row_state *x, smem *s_mem, const problem *pb,
                                                    int branch, span sp) {
    const int i = (int)threadIdx.x;
    float s = 0;
    load_shared(s_mem->block, keys_of(pb, branch, sp.block), D * BLOCK);
#pragma unroll 16
    for (int c = 0; c < D; c++)
        s += s_mem->q[c] * s_mem->block[c * BLOCK + i];
    s = i >= sp.lo && i < sp.hi ? s : -INFINITY;
    const float new_max = fmaxf(x->row_max, block_max(s, s_mem->max));
    const float rescale = exp2f(pb->scale2 * (x->row_max - new_max)),
                p = exp2f(pb->scale2 * (s - new_max));
    x->row_max = new_max;
    x->row_sum = x->row_sum * rescale + p;
    x->o *= rescale;
    s_mem->p[i] = p;
    load_shared(s_mem->block, values_of(pb, branch, sp.block), BLOCK * D);
#pragma unroll 16
    for (int j = sp.lo; j < sp.hi; j++) /* the others are left out: 0 * NaN is NaN */
        x->o += s_mem->p[j] * s_mem->block[j * D + i];
}

/* One branch. Grid: a CUDA block for each row, heads innermost. Block: 64 threads; thread i owns
 * key i of each block, column i of q and o. */
template <int BRANCH> static __global__ void __launch_bounds__(BLOCK) attend_kernel(problem pb) {
    __shared__ __align__(16) smem s_mem;
    const int t = (int)blockIdx.x / G, i = (int)threadIdx.x;
    const int64_t row = row_of(t, (int)blockIdx.x % G) * D;
    row_state x = {0, -INFINITY, 0};
    float row_sum = 0;
    s_mem.q[i] = pb.q[row + i];
    span sp;
    for (int at = 0; (sp = span_of(&pb, BRANCH, t, at)).hi; at++)
        softmax_step(&x, &s_mem, &pb, BRANCH, sp);
    __syncthreads();
    s_mem.p[i] = x.row_sum;
    __syncthreads();
    for (int j = 0; j < BLOCK; j++)
        row_sum += s_mem.p[j];
    pb.o[BRANCH][row + i] = x.o / row_sum;
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

nsa_status attend_2_shared_block(const problem *pb) {
    const dim3 grid((unsigned)pb->T * G);
    NSA_LAUNCH(attend_kernel<SLC>, grid, dim3(BLOCK), 0, 0, *pb);
    NSA_LAUNCHED("selected");
    NSA_LAUNCH(attend_kernel<WIN>, grid, dim3(BLOCK), 0, 0, *pb);
    NSA_LAUNCHED("window");
    NSA_LAUNCH(combine_kernel, dim3((unsigned)pb->T), dim3(G * D / 4), 0, 0, *pb);
    NSA_LAUNCHED("combine");
    return NSA_OK;
}
