/** @file
 *  @brief Step 0, a CUDA block a slot: forward's tile with one query, as in stage 02. A warp goes
 *  through all blocks of a slot, so that SLOTS multiprocessors work and the others have nothing. */
#include "problem.cuh"

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

/* All spans of a slot's branch. */
static __device__ __forceinline__ void attend_slot(softmax_state<1> *x, const problem *pb, int slot,
                                                   int branch, float *s_q) {
    span sp;
    softmax_init(x);
    for (int i = 0; (sp = span_of(pb, slot, branch, i)).hi; i++) {
        const int64_t block = (int64_t)slot * pb->slot_blocks + sp.block;
        attend_global_block(x, pb->scale2, pb->kt[branch] + block * D * BLOCK,
                            pb->v[branch] + block * BLOCK * D, s_q, range_mask(sp.lo, sp.hi));
    }
}

/* Store a finished tile: out [G,D] (+)= gate times it; `gate` is head 0's. */
static __device__ __forceinline__ void accumulate_gated(float *g_out, const float *gate,
                                                        const acc_16x64 *o, bool add) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        float *to = g_out + (lane_row() + i) * D + lane_col();
        const float g = gate[(lane_row() + i) * BRANCHES];
        const float4 sum = add ? load4(to) : make_float4(0, 0, 0, 0);
        store4(to, sum.x + g * o->x[i][0], sum.y + g * o->x[i][1], sum.z + g * o->x[i][2],
               sum.w + g * o->x[i][3]);
    }
}

/* Both branches and their gated sum (Eq. 5). Grid: slots. Block: a warp. Shared: Q^T, P^T. */
static __global__ void __launch_bounds__(WARP_SIZE) decode_kernel(problem pb) {
    __shared__ __align__(16) float s_q[(D + BLOCK) * G];
    const int slot = (int)blockIdx.x;
    load_query(s_q, pb.q + (int64_t)slot * G * D);
    for (int branch = SLC; branch <= WIN; branch++) {
        softmax_state<1> x;
        attend_slot(&x, &pb, slot, branch, s_q);
        softmax_finalize(&x);
        accumulate_gated(pb.out + (int64_t)slot * G * D, pb.gate + slot * G * BRANCHES + branch,
                         &x.o[0], branch == WIN);
    }
}

nsa_status decode_0_slot(const problem *pb) {
    NSA_LAUNCH(decode_kernel, SLOTS, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("decode");
    return NSA_OK;
}
