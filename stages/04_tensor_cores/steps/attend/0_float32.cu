/** @file
 *  @brief Step 0, float32: what stage 03 does. A warp has the 16 heads of a query, and its lanes
 *  multiply and add. Four neighbouring queries share each block of keys, then of values, through
 *  shared memory. */
#include "problem.cuh"
#include "../float_tile.cuh"

/* Shared memory of a CUDA block, 48 KiB: K^T or V of a block, and of each warp Q^T and P^T. */
typedef struct smem {
    float block[BLOCK * D], q[WARPS][D * G], p[WARPS][BLOCK * G];
} smem;

/* One block: S [16,64] = Q K^T, online softmax, O [16,D] += P V. */
static __device__ __forceinline__ void attend_block(float_softmax *x, smem *m, const problem *pb,
                                                    int block, uint64_t mask) {
    float_tile s = {};
    load_shared(m->block, pb->kt + block_offset(block), sizeof m->block, THREADS);
    float_matmul<D>(&s, m->q[warp_id()], G, m->block);
    float_softmax_update(x, &s, mask, pb->scale2);
    float_store_p(m->p[warp_id()], &s);
    load_shared(m->block, pb->v + block_offset(block), sizeof m->block, THREADS);
    float_add_keys(&x->o, m->p[warp_id()], m->block, mask);
}

/* Grid: a CUDA block for each 4 neighbouring queries. Block: a warp for each query; those past the
 * end repeat the last query and store nothing. */
static __global__ void __launch_bounds__(THREADS) attend_kernel(problem pb) {
    __shared__ __align__(16) smem m;
    const int first = first_query(WARPS), t = min(first + warp_id(), pb.T - 1);
    float_softmax x;
    float_softmax_init(&x);
    float_load_query(m.q[warp_id()], pb.q + query_offset(t));
    for (int block = 0; block <= first / BLOCK; block++)
        attend_block(&x, &m, &pb, block, visible_mask(t, block));
    float_softmax_finalize(&x);
    if (first + warp_id() < pb.T)
        float_store(pb.out + query_offset(t), &x.o);
}

nsa_status attend_0_float32(const problem *pb) {
    NSA_LAUNCH(attend_kernel, (unsigned)((pb->T + WARPS - 1) / WARPS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("attend");
    return NSA_OK;
}
