/** @file
 *  @brief Step 6, neighbours: the windows of four neighbouring queries are nearly the same, so a
 *  window's block goes through shared memory once for all four. Selected blocks differ: each warp
 *  reads its own. */
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

/* One branch. Grid: a CUDA block for each 4 neighbouring queries. Block: a warp for each query.
 * Shared: 48 KiB, a block of keys or values and the warps' parts. */
template <int BRANCH>
static __global__ void __launch_bounds__(NEIGHBOURS *WARP_SIZE) attend_kernel(problem pb) {
    __shared__ __align__(16) float s_block[BLOCK * D];
    __shared__ __align__(16) smem s_warps[NEIGHBOURS];
    smem *s_mem = &s_warps[warp_id()];
    const int t0 = (int)blockIdx.x * NEIGHBOURS, t = t0 + warp_id();
    softmax_state<1> x;
    if (t < pb.T)
        load_query(s_mem->q, pb.q + row_of(t, 0) * D);
    softmax_init(&x);
    if (BRANCH == WIN)
        attend_window(&x, s_mem, s_block, &pb, t0);
    if (t >= pb.T)
        return;
    span sp;
    for (int at = 0; BRANCH == SLC && (sp = span_of(&pb, SLC, t, at)).hi; at++)
        attend_global_block(&x, s_mem, &pb, SLC, sp);
    softmax_finalize(&x);
    store_acc(pb.o[BRANCH] + row_of(t, 0) * D + lane_row() * D + lane_col(), D, &x.o[0], LANE_ROWS);
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

nsa_status attend_6_neighbours(const problem *pb) {
    const dim3 grid((unsigned)((pb->T + NEIGHBOURS - 1) / NEIGHBOURS));
    NSA_LAUNCH(attend_kernel<SLC>, grid, dim3(NEIGHBOURS * WARP_SIZE), 0, 0, *pb);
    NSA_LAUNCHED("selected");
    NSA_LAUNCH(attend_kernel<WIN>, grid, dim3(NEIGHBOURS * WARP_SIZE), 0, 0, *pb);
    NSA_LAUNCHED("window");
    NSA_LAUNCH(combine_kernel, dim3((unsigned)pb->T), dim3(G * D / 4), 0, 0, *pb);
    NSA_LAUNCHED("combine");
    return NSA_OK;
}
