/** @file
 *  @brief Step 3, dS once: the warps that make dS^T also keep it in device memory, 2 KiB for a
 * query and a block, and dq = scale dS K is one product, where it was three: five products in all
 * for seven, and no exponential twice. dq and dk have the same dS. */
#include "problem.cuh"

enum { M = 2, WARP_KEYS = M * TILE_ROWS, GROUPS = BLOCK / WARP_KEYS };

/* Shared memory of a CUDA block, 37 KiB. p: P^T of two row tiles in turns, as fragments. */
typedef struct smem {
    bf16 k[BLOCK * D], v[BLOCK * D];
    row_step step;
    frag_a p[2][GROUPS][M][WARP_SIZE];
} smem;

/* From S^T of a row tile, 16 keys by 16 heads, to gate P^T. Element i of a lane is key lane_row() +
 * 8 (i % 4 / 2), head 8 (i / 4) + lane_col() + i % 2. */
static __device__ __forceinline__ frag_a make_p(acc_tiles<2> *s, const row_terms *terms,
                                                float scale2, unsigned mask) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const row_terms &term = terms[i / 4 * TILE_N + lane_col() + i % 2];
        const bool visible = mask >> (lane_row() + i % 4 / 2 * 8) & 1;
        float *x = &s->x[i / 4][i % 4];
        *x = visible ? exp_score(scale2, *x, term.row_max) * term.weight : 0;
    }
    return a_of_acc(s->x[0], s->x[1]);
}

/* From dP^T and gate P^T, rounded, to dS^T. */
static __device__ __forceinline__ frag_a make_ds(acc_tiles<2> *dp, const frag_a &p,
                                                 const row_terms *terms, unsigned mask) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const row_terms &term = terms[i / 4 * TILE_N + lane_col() + i % 2];
        const bool visible = mask >> (lane_row() + i % 4 / 2 * 8) & 1;
        const unsigned two = p.x[i / 4 * 2 + i % 4 / 2];
        float *x = &dp->x[i / 4][i % 4];
        *x = visible ? (i % 2 ? high_half(two) : low_half(two)) * (*x - term.dgate) : 0;
    }
    return a_of_acc(dp->x[0], dp->x[1]);
}

/* Row tile i of the step: to dv of the warp's keys, or to dk. */
static __device__ __forceinline__ void add_row_tile(acc_tiles<D / TILE_N> (&acc)[M], smem *m,
                                                    const problem *pb, int i, uint64_t mask,
                                                    uint4 *g_ds) {
    const int group = warp_id() % GROUPS, key = group * WARP_KEYS;
    const bool values = warp_id() < GROUPS;
    const bf16 *s_q = m->step.q + i * TILE_ROWS * D, *s_dout = m->step.dout + i * TILE_ROWS * D;
    const row_terms *terms = m->step.terms + i * TILE_ROWS;
    acc_tiles<2> s[M] = {};
    frag_a p[M];
    add_scores<D>(s, (values ? m->k : m->v) + key * D, values ? s_q : s_dout);
    for (int n = 0; values && n < M; n++) {
        p[n] = make_p(&s[n], terms, pb->scale2, (unsigned)(mask >> (key + n * TILE_ROWS)));
        m->p[i % 2][group][n][lane_id()] = p[n];
    }
    __syncthreads(); /* P^T has arrived, and that of the row tile before is used */
    for (int n = 0; !values && n < M; n++) {
        p[n] = make_ds(&s[n], m->p[i % 2][group][n][lane_id()], terms,
                       (unsigned)(mask >> (key + n * TILE_ROWS)));
        g_ds[(group * M + n) * WARP_SIZE + lane_id()] =
            make_uint4(p[n].x[0], p[n].x[1], p[n].x[2], p[n].x[3]);
    }
    add_rows(acc, p, values ? s_dout : s_q);
}

/* dk and dv of one block of keys. Grid: blocks. Block: two warps for each 32 keys. */
static __global__ void __launch_bounds__(THREADS) dkv_kernel(problem pb) {
    __shared__ __align__(16) smem m;
    const int block = (int)blockIdx.x, end = end_query(&pb, block);
    const bool values = warp_id() < GROUPS;
    acc_tiles<D / TILE_N> acc[M] = {};
    copy_rows_async<D, BLOCK>(m.k, pb.k_mem + block_offset(block), (int)threadIdx.x, THREADS);
    copy_rows_async<D, BLOCK>(m.v, pb.v_mem + block_offset(block), (int)threadIdx.x, THREADS);
    for (int first = block * BLOCK; first < end; first += TILES) {
        copy_step(&m.step, &pb, first, min((int)TILES, end - first));
        wait_for_copies();
        for (int i = 0; i < min((int)TILES, end - first); i++)
            add_row_tile(acc, &m, &pb, i, visible_mask(&pb, first + i, block),
                         ds_of(&pb, first + i, block));
        __syncthreads(); /* all warps have used the row tiles */
    }
#pragma unroll
    for (int n = 0; n < M; n++) {
        const int key = warp_id() % GROUPS * WARP_KEYS + n * TILE_ROWS;
        if (!values)
            scale_rows(&acc[n], {pb.scale, pb.scale});
        store_acc((values ? pb.dv : pb.dk) + block_offset(block) + key * D, D, &acc[n], TILE_ROWS);
    }
}

/* dS of 16 keys as A, 16 heads by 16 keys: the fragment of dS^T transposed, 8 x 8 elements at a
 * time. */
static __device__ __forceinline__ frag_a load_ds(const uint4 *at) {
    const uint4 x = *at;
    return {{nsa_movmatrix_trans(x.x), nsa_movmatrix_trans(x.z), nsa_movmatrix_trans(x.y),
             nsa_movmatrix_trans(x.w)}};
}

/* dq of a query. Grid: queries. Block: a warp. */
static __global__ void __launch_bounds__(WARP_SIZE) dq_kernel(problem pb) {
    const int t = (int)blockIdx.x;
    acc_tiles<D / TILE_N> dq = {};
    for (int block = first_block(&pb, t); block <= t / BLOCK; block++) {
        const bf16 *g_k = pb.k_mem + block_offset(block) + mem_tile_lane();
        frag_a ds[2][HALF_STEPS];
        half_block<D> k;
        load_half(&k, g_k);
#pragma unroll
        for (int i = 0; i < KEY_STEPS; i++)
            ds[i / HALF_STEPS][i % HALF_STEPS] =
                load_ds(ds_of(&pb, t, block) + i * WARP_SIZE + lane_id());
        add_values<D, true>(&dq, ds, &k, g_k, visible_mask(&pb, t, block));
    }
    store_queries(&pb, t, &dq);
}

nsa_status backward_3_ds(const problem *pb) {
    NSA_LAUNCH(dkv_kernel, (unsigned)pb->blocks, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("dkv");
    NSA_LAUNCH(dq_kernel, (unsigned)pb->T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("dq");
    return NSA_OK;
}
