/** @file
 *  @brief Step 1, splits (split-KV, as in FlashDecoding): a slot's blocks are split over many
 *  CUDA blocks. Each stores its outputs, a row maximum and a row sum, and a second kernel combines
 *  them in their order. */
#include "problem.cuh"

enum { SPLITS = 4 }; /* CUDA blocks of a slot and branch */

/* Attention over one span: S [16,64] = Q K^T, online softmax, O [16,D] += P V. */
static __device__ __forceinline__ void attend_global_block(softmax_state<1> *x, float scale2,
                                                           const float *g_kt, const float *g_v,
                                                           float *s_q, uint64_t mask) {
    float *s_p = s_q + D * G;
    acc_16x64 s;
    zero_acc_16x64(&s);
    warp_matmul<1>(&s, s_q + lane_row(), G, g_kt + lane_col(), BLOCK, D);
    online_softmax_update(x, &s, mask, scale2, s_p);
    matmul_masked<1>(x->o, s_p, g_v + lane_col(), D, key_run{0, BLOCK, mask});
}

/* One split of a slot's branch: every SPLITS-th span from number `split` on. */
static __device__ __forceinline__ void attend_split(softmax_state<1> *x, const problem *pb,
                                                    int slot, int branch, int split, float *s_q) {
    span sp;
    softmax_init(x);
    for (int i = split; (sp = span_of(pb, slot, branch, i)).hi; i += SPLITS) {
        const int64_t block = (int64_t)slot * pb->slot_blocks + sp.block;
        attend_global_block(x, pb->scale2, pb->kt[branch] + block * D * BLOCK,
                            pb->v[branch] + block * BLOCK * D, s_q, range_mask(sp.lo, sp.hi));
    }
}

/* Store a split: its outputs g_o [G,D] as they are, row maxima and sums [G]. */
static __device__ __forceinline__ void write_split(const softmax_state<1> *x, float *g_o,
                                                   partial_stats *g_stats) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float *o = x->o[0].x[i], total = row_reduce_sum(x->row_sum[i]);
        store4(g_o + (lane_row() + i) * D + lane_col(), o[0], o[1], o[2], o[3]);
        if (lane_id() < 2)
            g_stats[lane_row() + i] = partial_stats{x->row_max[i], total};
    }
}

/* Grid: splits (x), branches SLC and WIN (y), slots (z). Block: a warp. Shared: Q^T, P^T. */
static __global__ void __launch_bounds__(WARP_SIZE) decode_splits_kernel(problem pb) {
    __shared__ __align__(16) float s_q[(D + BLOCK) * G];
    const int split = (int)blockIdx.x, branch = SLC + (int)blockIdx.y, slot = (int)blockIdx.z;
    const int64_t part = (slot * BRANCHES + branch) * SPLITS + split;
    softmax_state<1> x;
    load_query(s_q, pb.q + (int64_t)slot * G * D);
    attend_split(&x, &pb, slot, branch, split, s_q);
    write_split(&x, pb.split_o + part * G * D, pb.split_stats + part * G);
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

nsa_status decode_1_splits(const problem *pb) {
    NSA_LAUNCH(decode_splits_kernel, dim3(SPLITS, 2, SLOTS), WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("decode_splits");
    NSA_LAUNCH(decode_combine_kernel, dim3(SLOTS, G), D, 0, 0, *pb);
    NSA_LAUNCHED("decode_combine");
    return NSA_OK;
}
