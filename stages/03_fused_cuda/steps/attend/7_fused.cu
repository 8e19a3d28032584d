/** @file
 *  @brief Step 7, fused: one launch for both branches and the gated sum. The window's outputs
 *  are written once, gated, and the selected ones added to them. */
#include "problem.cuh"

/* Shared memory of a warp, 8 KiB: Q^T, P^T. */
typedef struct smem {
    float q[D * G], p[BLOCK * G];
} smem;

/* One span of a query's rows: S [16,64] = Q K^T, online softmax as in step 0, O [16,D] += P V. */
static __device__ __forceinline__ void attend_global_block(softmax_state<1> *x, smem *s_mem,
                                                           const problem *pb, int branch, span sp) {
    const float *g_kt = keys_of(pb, branch, sp.block), *g_v = values_of(pb, branch, sp.block);
    const uint64_t mask = range_mask(sp.lo, sp.hi);
    acc_16x64 s;
    zero_acc_16x64(&s);
    warp_matmul<1>(&s, s_mem->q + lane_row(), G, g_kt + lane_col(), BLOCK, D);
    online_softmax_update(x, &s, mask, pb->scale2, s_mem->p);
    matmul_masked<1>(x->o, s_mem->p, g_v + lane_col(), D, key_run{0, BLOCK, mask});
}

/* The same with a block of the window that all four warps share: K^T and V from shared memory. The
 * query may see none of its keys. */
static __device__ __forceinline__ void attend_shared_block(softmax_state<1> *x, smem *s_mem,
                                                           float *s_block, const problem *pb,
                                                           span sp) {
    const uint64_t mask = range_mask(sp.lo, sp.hi);
    acc_16x64 s;
    zero_acc_16x64(&s);
    load_shared(s_block, keys_of(pb, WIN, sp.block), D * BLOCK);
    if (mask) {
        warp_matmul<1>(&s, s_mem->q + lane_row(), G, s_block + lane_col(), BLOCK, D);
        online_softmax_update(x, &s, mask, pb->scale2, s_mem->p);
    }
    load_shared(s_block, values_of(pb, WIN, sp.block), BLOCK * D);
    if (mask)
        matmul_masked<1>(x->o, s_mem->p, s_block + lane_col(), D, key_run{0, BLOCK, mask});
}

/* The window of the CUDA block's queries t0..t0+3: all blocks that one of them sees. */
static __device__ __forceinline__ void attend_window(softmax_state<1> *x, smem *s_mem,
                                                     float *s_block, const problem *pb, int t0) {
    const int t = t0 + warp_id(), last = min(t0 + NEIGHBOURS, pb->T) - 1;
    for (int b = max(t0 - pb->w + 1, 0) / BLOCK; b <= last / BLOCK; b++) {
        const span none = {b, 0, 0};
        attend_shared_block(x, s_mem, s_block, pb, t <= last ? span_win(pb, t, b) : none);
    }
}

/* Store a finished tile: out [G,D] (+)= gate times it; `gate` is head 0's. A lane adds to what it
 * has just stored itself, so the second-level cache still has it. */
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

/* Both branches and their gated sum (Eq. 5). Grid: a CUDA block for each 4 neighbouring queries.
 * Block: a warp for each query. Shared: 48 KiB, a block of keys or values and the warps' parts. */
static __global__ void __launch_bounds__(NEIGHBOURS *WARP_SIZE) attend_kernel(problem pb) {
    __shared__ __align__(16) float s_block[BLOCK * D];
    __shared__ __align__(16) smem s_warps[NEIGHBOURS];
    smem *s_mem = &s_warps[warp_id()];
    const int t0 = (int)blockIdx.x * NEIGHBOURS, t = t0 + warp_id();
    softmax_state<1> x;
    if (t < pb.T)
        load_query(s_mem->q, pb.q + row_of(t, 0) * D);
    softmax_init(&x);
    attend_window(&x, s_mem, s_block, &pb, t0);
    if (t >= pb.T)
        return;
    const float *gate = pb.gate + row_of(t, 0) * BRANCHES;
    softmax_finalize(&x);
    accumulate_gated(pb.out + row_of(t, 0) * D, gate + WIN, &x.o[0], false);
    softmax_init(&x);
    span sp;
    for (int at = 0; (sp = span_of(&pb, SLC, t, at)).hi; at++)
        attend_global_block(&x, s_mem, &pb, SLC, sp);
    softmax_finalize(&x);
    accumulate_gated(pb.out + row_of(t, 0) * D, gate + SLC, &x.o[0], true);
}

nsa_status attend_7_fused(const problem *pb) {
    const dim3 grid((unsigned)((pb->T + NEIGHBOURS - 1) / NEIGHBOURS));
    NSA_LAUNCH(attend_kernel, grid, dim3(NEIGHBOURS * WARP_SIZE), 0, 0, *pb);
    NSA_LAUNCHED("fused");
    return NSA_OK;
}
