/** @file
 *  @brief Step 2, warps: a split has four warps, which share Q^T and take blocks in turn. Their
 *  outputs are combined on the chip, so that no more splits go through memory than before. */
#include "problem.cuh"

enum {
    SPLITS = 4,     /* CUDA blocks of a slot and branch */
    SPLIT_WARPS = 4 /* warps of each */
};

/* load_query() by all warps of the CUDA block, for all of them. */
static __device__ __forceinline__ void load_shared_query(float *s_q, const float *g_q) {
    for (int i = (int)threadIdx.x; i < G * D; i += SPLIT_WARPS * WARP_SIZE)
        s_q[i % D * G + i / D] = g_q[i];
    __syncthreads();
}

/* Attention over one span: S [16,64] = Q K^T, online softmax, O [16,D] += P V. */
static __device__ __forceinline__ void attend_global_block(softmax_state<1> *x, float scale2,
                                                           const float *g_kt, const float *g_v,
                                                           float *s_q, uint64_t mask) {
    float *s_p = s_q + (D + warp_id() * BLOCK) * G;
    acc_16x64 s;
    zero_acc_16x64(&s);
    warp_matmul<1>(&s, s_q + lane_row(), G, g_kt + lane_col(), BLOCK, D);
    online_softmax_update(x, &s, mask, scale2, s_p);
    matmul_masked<1>(x->o, s_p, g_v + lane_col(), D, key_run{0, BLOCK, mask});
}

/* This warp's share of a split of a slot's branch: every 16th span. */
static __device__ __forceinline__ void attend_split(softmax_state<1> *x, const problem *pb,
                                                    int slot, int branch, int split, float *s_q) {
    span sp;
    softmax_init(x);
    for (int i = split * SPLIT_WARPS + warp_id(); (sp = span_of(pb, slot, branch, i)).hi;
         i += SPLITS * SPLIT_WARPS) {
        const int64_t block = (int64_t)slot * pb->slot_blocks + sp.block;
        attend_global_block(x, pb->scale2, pb->kt[branch] + block * D * BLOCK,
                            pb->v[branch] + block * BLOCK * D, s_q, range_mask(sp.lo, sp.hi));
    }
}

/* Combine the warps' outputs in s_o [G,D], which may be Q^T's place, one after the other, and
 * store: g_o [G,D] as it is, row maxima and sums [G]. s_stats [SPLIT_WARPS,G]. */
static __device__ __forceinline__ void write_split(const softmax_state<1> *x, float scale2,
                                                   float *s_o, partial_stats *s_stats, float *g_o,
                                                   partial_stats *g_stats) {
    float rescale[LANE_ROWS];
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float total = row_reduce_sum(x->row_sum[i]);
        if (lane_id() < 2)
            s_stats[warp_id() * G + lane_row() + i] = partial_stats{x->row_max[i], total};
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        float row_max = -INFINITY, row_sum = 0;
        for (int w = 0; w < SPLIT_WARPS; w++)
            row_max = fmaxf(row_max, s_stats[w * G + lane_row() + i].row_max);
        const float base = row_max == -INFINITY ? 0 : row_max; /* avoids -inf - -inf */
        for (int w = 0; w < SPLIT_WARPS; w++) {
            const partial_stats r = s_stats[w * G + lane_row() + i];
            row_sum += exp2f(scale2 * (r.row_max - base)) * r.row_sum;
        }
        rescale[i] = exp2f(scale2 * (x->row_max[i] - base));
        if (threadIdx.x < 2)
            g_stats[lane_row() + i] = partial_stats{row_max, row_sum};
    }
    for (int w = 0; w < SPLIT_WARPS; w++) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS && w == warp_id(); i++) {
            float *at = s_o + (lane_row() + i) * D + lane_col();
            const float *o = x->o[0].x[i], f = rescale[i];
            const float4 sum = w ? load4(at) : make_float4(0, 0, 0, 0);
            store4(at, sum.x + f * o[0], sum.y + f * o[1], sum.z + f * o[2], sum.w + f * o[3]);
        }
        __syncthreads();
    }
    for (int i = 4 * (int)threadIdx.x; i < G * D; i += 4 * SPLIT_WARPS * WARP_SIZE)
        *(float4 *)(g_o + i) = load4(s_o + i);
}

/* Grid: splits (x), branches SLC and WIN (y), slots (z). Block: SPLIT_WARPS warps. Shared: Q^T,
 * P^T of each warp. */
static __global__ void __launch_bounds__(SPLIT_WARPS *WARP_SIZE) decode_splits_kernel(problem pb) {
    __shared__ __align__(16) float s_q[(D + SPLIT_WARPS * BLOCK) * G];
    __shared__ partial_stats s_stats[SPLIT_WARPS * G];
    const int split = (int)blockIdx.x, branch = SLC + (int)blockIdx.y, slot = (int)blockIdx.z;
    const int64_t part = (slot * BRANCHES + branch) * SPLITS + split;
    softmax_state<1> x;
    load_shared_query(s_q, pb.q + (int64_t)slot * G * D);
    attend_split(&x, &pb, slot, branch, split, s_q);
    write_split(&x, pb.scale2, s_q, s_stats, pb.split_o + part * G * D, pb.split_stats + part * G);
}

/* Combine a slot's splits to branch outputs, and these by their gates to out (Eq. 5). A split
 * without keys has row_sum 0 and row_max -inf, so it adds 0. Grid: slots (x), heads (y). Block: a
 * thread a column. */
static __global__ void __launch_bounds__(D) decode_combine_kernel(problem pb) {
    const int head = (int)(blockIdx.x * G + blockIdx.y), c = (int)threadIdx.x;
    float out = 0;
    for (int branch = SLC; branch <= WIN; branch++) {
        const int64_t first = (int64_t)(blockIdx.x * BRANCHES + branch) * SPLITS;
        const partial_stats *g_stats = pb.split_stats + first * G + blockIdx.y;
        const float *g_o = pb.split_o + (first * G + blockIdx.y) * D + c;
        float row_max = -INFINITY, row_sum = 0, o = 0;
        for (int i = 0; i < SPLITS; i++)
            row_max = fmaxf(row_max, g_stats[i * G].row_max);
        for (int i = 0; i < SPLITS; i++) {
            const float rescale = exp2f(pb.scale2 * (g_stats[i * G].row_max - row_max));
            row_sum += rescale * g_stats[i * G].row_sum;
            o += rescale * g_o[i * G * D];
        }
        out += pb.gate[head * BRANCHES + branch] * (o / row_sum);
    }
    pb.out[head * D + c] = out;
}

nsa_status decode_2_warps(const problem *pb) {
    NSA_LAUNCH(decode_splits_kernel, dim3(SPLITS, 2, SLOTS), SPLIT_WARPS * WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("decode_splits");
    NSA_LAUNCH(decode_combine_kernel, dim3(SLOTS, G), D, 0, 0, *pb);
    NSA_LAUNCHED("decode_combine");
    return NSA_OK;
}
