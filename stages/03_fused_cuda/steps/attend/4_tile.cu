/** @file
 *  @brief Step 4, a warp's tile: a lane owns 8 heads and 4 keys, then 4 columns (tile.cuh). A
 *  number read is used 4 or 8 times in registers, so that K and V need no shared memory. */
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

/* One branch. Grid: a CUDA block for each query. Block: one warp. */
template <int BRANCH>
static __global__ void __launch_bounds__(WARP_SIZE) attend_kernel(problem pb) {
    __shared__ __align__(16) smem s_mem;
    const int t = (int)blockIdx.x;
    softmax_state<1> x;
    load_query(s_mem.q, pb.q + row_of(t, 0) * D);
    softmax_init(&x);
    span sp;
    for (int at = 0; (sp = span_of(&pb, BRANCH, t, at)).hi; at++)
        attend_global_block(&x, &s_mem, &pb, BRANCH, sp);
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

nsa_status attend_4_tile(const problem *pb) {
    const dim3 grid((unsigned)pb->T);
    NSA_LAUNCH(attend_kernel<SLC>, grid, dim3(WARP_SIZE), 0, 0, *pb);
    NSA_LAUNCHED("selected");
    NSA_LAUNCH(attend_kernel<WIN>, grid, dim3(WARP_SIZE), 0, 0, *pb);
    NSA_LAUNCHED("window");
    NSA_LAUNCH(combine_kernel, dim3((unsigned)pb->T), dim3(G * D / 4), 0, 0, *pb);
    NSA_LAUNCHED("combine");
    return NSA_OK;
}
