/** @file
 *  @brief Backward by queries: dgate, and dq over the keys that a row sees. backward_keys.cu goes
 *  through the same attention by keys. */
#include "backward.cuh"

enum {
    GATE_WARPS = 8, /* of a CUDA block of gate_backward_kernel, */
    SLC_WARPS = 4,  /* and of dq_slc_win_kernel */
    SLC_CTAS = 2,
    HALF_TILES = KEY_TILES / 2 /* keys at a time: S and dP of two row tiles are many registers */
};

/* Row tiles of a warp and warps of a CUDA block: what registers allow, and 99 KiB
 * of shared memory, which sm_86 and sm_89 have. */
#define DQ_TILES(DK) ((DK) <= 128 ? 2 : 1)
#define DQ_WARPS(DK) ((DK) <= 192 ? 4 : 2)

/* <dO,o> of row `row` of a row tile, whose head is `head`: a lane takes every fourth piece of dO,
 * and the row lies in 4 lanes. */
static __device__ __forceinline__ float dot_row(const grad_args *a, int64_t tile, int row,
                                                const real *o) {
    float sum = 0;
    for (int col = lane_id() % 4 * PIECE; col < a->f.c.dvp; col += MEM_COLS) {
        const uint4 x =
            *(const uint4 *)(a->dout + mem_offset(tile * TILE_ROWS + row, col, a->f.c.dvp));
        const float4 lo = *(const float4 *)(o + col), hi = *(const float4 *)(o + col + 4);
        sum += low_half(x.x) * lo.x + high_half(x.x) * lo.y + low_half(x.y) * lo.z +
               high_half(x.y) * lo.w + low_half(x.z) * hi.x + high_half(x.z) * hi.y +
               low_half(x.w) * hi.z + high_half(x.w) * hi.w;
    }
    return row_reduce_sum(sum);
}

/* dgate = <dO,o> of each branch, and the terms that the other kernels need of a row. Grid: row
 * tiles / GATE_WARPS. A warp has one row tile, 4 lanes a row, 8 rows at a time. */
static __global__ void __launch_bounds__(GATE_WARPS *WARP_SIZE) gate_backward_kernel(grad_args a) {
    const dims *c = &a.f.c;
    const int64_t tile = (int64_t)blockIdx.x * GATE_WARPS + warp_id();
    const int g0 = (int)(tile % c->GT) * TILE_ROWS;
    if (tile >= a.row_tiles)
        return;
#pragma unroll
    for (int i = 0; i < 2 * BRANCHES; i++) {
        const int row = lane_row() + i % 2 * 8, branch = i / 2;
        const bool there = g0 + row < c->G;
        const int64_t head = tile / c->GT * c->G + g0 + (there ? row : 0); /* of [R,Hq] */
        const row_stats stats = a.f.stats[head * BRANCHES + branch];
        const float sum = dot_row(&a, tile, row, a.f.out_x[branch] + head * c->dvp);
        row_terms term = {stats.row_max, stats.inv_sum * a.f.gate[head * BRANCHES + branch], sum,
                          a.f.row_t[tile / c->GT / c->Hkv]};
        if (!there)
            term.row_max = term.weight = term.dgate = 0;
        if (lane_id() % 4)
            continue;
        a.terms[(branch * a.row_tiles + tile) * TILE_ROWS + row] = term;
        if (there)
            a.dgate[head * BRANCHES + branch] = sum;
    }
}

/* dS of tiles of keys, in place of dP, for the lane's two rows; 0 where a key is not visible. */
template <int N>
static __device__ __forceinline__ void backward_tiles(acc_tiles<N> *s, acc_tiles<N> *dp,
                                                      float scale2, const row_terms (&term)[2],
                                                      uint64_t mask) {
    for (int i = 0; i < 4 * N; i++)
        softmax_backward(scale2, &s->x[i / 4][i % 4], &dp->x[i / 4][i % 4], term[i % 4 / 2]);
    mask_keys(dp, mask, 0);
}

/* Terms of the lane's two rows in a row tile. */
static __device__ __forceinline__ void load_terms(row_terms (&term)[2], const grad_args *a,
                                                  int branch, int64_t tile) {
    const row_terms *g_terms = a->terms + (branch * a->row_tiles + tile) * TILE_ROWS;
    term[0] = g_terms[lane_row()];
    term[1] = g_terms[lane_row() + 8];
}

/* -------------------------------------------------------- shared blocks */

/* The shared memory of a CUDA block. */
template <int DK, int DV> struct dq_smem {
    enum { ROWS = DQ_WARPS(DK) * DQ_TILES(DK) };
    bf16 q[ROWS * TILE_ROWS * DK], dout[ROWS * TILE_ROWS * DV]; /* the CUDA block's rows */
    bf16 k[BLOCK * DK], v[BLOCK * DV];                          /* a block of keys, its values */
};

/* dq of the warp's row tiles over half a block:
 *     S [16,32] = Q K^T    dP [16,32] = dO V^T    dQ [16,DK] += dS K */
template <int DK, int DV, int M>
static __device__ __forceinline__ void backward_half(acc_tiles<DK / TILE_N> *const (&dq)[M],
                                                     dq_smem<DK, DV> *m, float scale2,
                                                     const row_terms (&terms)[M][2], int half,
                                                     const uint64_t (&mask)[M]) {
    const int first = warp_id() * M * TILE_ROWS;
    frag_a p[M][HALF_TILES / 2];
    acc_tiles<HALF_TILES> s[M] = {}, dp[M] = {};
    add_scores<DK>(s, m->q + first * DK, m->k + half * HALF * DK);
    add_scores<DV>(dp, m->dout + first * DV, m->v + half * HALF * DV);
#pragma unroll
    for (int i = 0; i < M; i++) {
        backward_tiles(&s[i], &dp[i], scale2, terms[i], mask[i]);
        pack_tiles(p[i], dp[i]);
    }
    matmul_masked<DK>(dq, p, m->k + half * HALF * DK, mask);
}

/* dq of the warp's row tiles over the compressed keys. */
template <int DK, int DV, int M>
static __device__ __forceinline__ void backward_cmp(acc_tiles<DK / TILE_N> *const (&dq)[M],
                                                    const grad_args *a, const tile_coord *coord,
                                                    dq_smem<DK, DV> *m, int g16) {
    const dims *c = &a->f.c;
    const block_ptrs start = first_block_of<DK, DV>(&a->f, coord->sq, coord->kvh, CMP);
    const int end = visible_range(c, CMP, coord->last_t).end;
    row_terms terms[M][2];
    key_range range[M];
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int row = warp_id() * M + i, t = position_of(coord, row);
        range[i] = visible_range(c, CMP, t);
        load_terms(terms[i], a, CMP,
                   head_tile(c, coord->rows.first + (t < 0 ? 0 : row), coord->kvh, g16));
    }
    for (int b = 0; b * BLOCK < end; b++) {
        const block_ptrs at = block_after<DK, DV>(start, b);
        __syncthreads(); /* the last block is used */
        copy_rows_async<DK, BLOCK>(m->k, at.k, (int)threadIdx.x, DQ_WARPS(DK) * WARP_SIZE);
        copy_rows_async<DV, BLOCK>(m->v, at.v, (int)threadIdx.x, DQ_WARPS(DK) * WARP_SIZE);
        nsa_cp_async_commit();
        nsa_cp_async_wait<0>();
        __syncthreads();
#pragma unroll 1
        for (int half = 0; half < 2; half++) {
            uint64_t mask[M], any = 0;
            for (int i = 0; i < M; i++) {
                mask[i] = mask_of(range[i], b) >> half * HALF;
                any |= mask[i];
            }
            if (any & (ALL_KEYS >> HALF))
                backward_half<DK, DV, M>(dq, m, c->scale2, terms, half, mask);
        }
    }
}

/* dq over compressed keys, of one tile of heads of each row. Grid: a CUDA block for each
 * kv head, tile of heads and tile of rows, the last rows first. Block: up to 4 warps with M rows
 * each. Shared: Q and dO of all rows, one block of keys and values; 96 KiB at 128/128. */
template <int DK, int DV>
static __global__ void __launch_bounds__(DQ_WARPS(DK) * WARP_SIZE, 2) dq_cmp_kernel(grad_args a) {
    NSA_DYNAMIC_SHARED(void, s_base);
    enum { M = DQ_TILES(DK) };
    const dims *c = &a.f.c;
    const int g16 = (int)(blockIdx.x % c->GT);
    dq_smem<DK, DV> *m = (dq_smem<DK, DV> *)s_base;
    const int64_t unit = blockIdx.x / c->GT;
    const tile_coord coord =
        tile_coord_of(&a.f, &a.f.tiles[a.f.n_tiles - 1 - unit / c->Hkv], (int)(unit % c->Hkv));
    acc_tiles<DK / TILE_N> acc[M] = {}, *dq[M];
    for (int i = 0; i < M; i++)
        dq[i] = &acc[i];
    load_row_tiles<DK, DQ_WARPS(DK)>(m->q, a.f.q, c, &coord, g16);
    load_row_tiles<DV, DQ_WARPS(DK)>(m->dout, a.dout, c, &coord, g16);
    backward_cmp<DK, DV, M>(dq, &a, &coord, m, g16);
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int row = warp_id() * M + i;
        const int64_t head = (coord.rows.first + row) * c->Hq + coord.kvh * c->G + g16 * TILE_ROWS;
        scale_rows(&acc[i], {c->scale, c->scale});
        store_acc(a.dq + head * DK, DK, &acc[i],
                  row < coord.rows.count ? c->G - g16 * TILE_ROWS : 0);
    }
}

/* ------------------------------------------------------- selected blocks */

/* dq over one block of one warp, half of it at a time. */
template <int DK, int DV>
static __device__ __forceinline__ void backward_global_block(acc_tiles<DK / TILE_N> *dq,
                                                             float scale2, const frags_a<DK> &q,
                                                             const frags_a<DV> &dout,
                                                             const row_terms (&terms)[2],
                                                             const block_ptrs &at, uint64_t mask) {
#pragma unroll 1
    for (int half = 0; half < 2; half++, mask >>= HALF) {
        acc_tiles<HALF_TILES> s, dp;
        frag_a p[HALF_STEPS];
        half_block<DK> k;
        const bf16 *g_k = at.k + half * HALF * DK + mem_tile_lane();
        if (!(mask & (ALL_KEYS >> HALF)))
            continue;
        global_scores(&s, q, g_k);
        global_scores(&dp, dout, at.v + half * HALF * DV + mem_tile_lane());
        backward_tiles(&s, &dp, scale2, terms, mask);
        pack_tiles(p, dp);
        load_half(&k, g_k);
        if ((mask & ALL_KEYS >> HALF) == ALL_KEYS >> HALF)
            add_half<DK, false>(dq, p, k, mask);
        else
            add_half<DK, true>(dq, p, k, mask);
    }
}

/* dq over window and selected blocks, added to what dq_cmp left; each warp reads its blocks alone.
 * Grid and block as attend_slc_win_kernel. */
template <int DK, int DV>
static __global__ void __launch_bounds__(SLC_WARPS *WARP_SIZE, SLC_CTAS)
    dq_slc_win_kernel(grad_args a) {
    const dims *c = &a.f.c;
    const int64_t unit = (int64_t)blockIdx.x * SLC_WARPS + warp_id();
    const int64_t row = unit / c->GT % a.R;
    const int g16 = (int)(unit % c->GT), kvh = (int)(unit / c->GT / a.R);
    if (kvh >= c->Hkv)
        return;
    const sequence *sq = &a.f.seqs[a.f.row_seq[row]];
    const int t = a.f.row_t[row];
    const int32_t *g_idx = a.f.block_idx + (row * c->Hkv + kvh) * c->n;
    const int64_t tile = head_tile(c, row, kvh, g16);
    const key_range window = visible_range(c, WIN, t);
    block_ptrs start = first_block_of<DK, DV>(&a.f, sq, kvh, WIN);
    frags_a<DK> q;
    frags_a<DV> dout;
    row_terms terms[2];
    block_iter iter = {0, 0};
    uint64_t mask;
    acc_tiles<DK / TILE_N> dq;
    zero_acc(&dq);
    load_global_a(&q, a.f.q + tile * TILE_ROWS * DK + mem_tile_lane());
    load_global_a(&dout, a.dout + tile * TILE_ROWS * DV + mem_tile_lane());
    load_terms(terms, &a, WIN, tile);
    for (int b = window.from / BLOCK; b * BLOCK < window.end; b++)
        backward_global_block(&dq, c->scale2, q, dout, terms, block_after<DK, DV>(start, b),
                              mask_of(window, b));
    load_terms(terms, &a, SLC, tile);
    start = first_block_of<DK, DV>(&a.f, sq, kvh, SLC);
    for (int b; next_block(&iter, g_idx, c, t, &b, &mask);)
        backward_global_block(&dq, c->scale2, q, dout, terms, block_after<DK, DV>(start, b), mask);
    scale_rows(&dq, {c->scale, c->scale});
    const int64_t head = row * c->Hq + kvh * c->G + g16 * TILE_ROWS;
    const int heads = min((int)TILE_ROWS, c->G - g16 * TILE_ROWS);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float4 old[DK / 16];
        real *g_dq = a.dq + (head + lane_row() + 8 * i) * DK + quad_col();
        if (lane_row() + 8 * i >= heads)
            continue;
#pragma unroll
        for (int n = 0; n < DK / 16; n++)
            old[n] = *(const float4 *)(g_dq + quad_offset(n));
#pragma unroll
        for (int n = 0; n < DK / 16; n++) {
            const float4 x = quad_of(dq, n, i);
            *(float4 *)(g_dq + quad_offset(n)) =
                make_float4(old[n].x + x.x, old[n].y + x.y, old[n].z + x.z, old[n].w + x.w);
        }
    }
}

/* ---------------------------------------------------------------- launches */

template <int DK, int DV> static nsa_status allow_shared(void) {
    return nsa_allow_shared(dq_cmp_kernel<DK, DV>);
}

int dq_rows(const dims *c) {
    return DQ_WARPS(c->dkp) * DQ_TILES(c->dkp);
}

nsa_status open_queries(stage *st, scratch *s) {
    const int64_t rows = st->plan->setup.max_rows + st->cfg.max_seqs;
    alloc(st, &s->tiles, NSA_MEM_PERSISTENT, rows);
    alloc(st, &s->terms, NSA_MEM_SCRATCH,
          BRANCHES * st->plan->setup.max_rows * st->c.Hkv * st->c.GT * TILE_ROWS);
    return BY_WIDTH(&st->c, allow_shared);
}

/* dgate and the terms of all rows. */
nsa_status gate_backward(stage *st, const grad_args *args) {
    const int64_t blocks = (args->row_tiles + GATE_WARPS - 1) / GATE_WARPS;
    LAUNCH(gate_backward_kernel, (unsigned)blocks, GATE_WARPS * WARP_SIZE, 0, st, *args);
    return NSA_OK;
}

template <int DK, int DV> static nsa_status launch_dq(stage *st, const grad_args *args) {
    const dims *c = &args->f.c;
    LAUNCH((dq_cmp_kernel<DK, DV>), (unsigned)(args->f.n_tiles * c->Hkv * c->GT),
           DQ_WARPS(DK) * WARP_SIZE, sizeof(dq_smem<DK, DV>), st, *args);
    LAUNCH((dq_slc_win_kernel<DK, DV>), (unsigned)((args->row_tiles + SLC_WARPS - 1) / SLC_WARPS),
           SLC_WARPS * WARP_SIZE, 0, st, *args);
    return NSA_OK;
}

/* dq of all rows. */
nsa_status backward_queries(stage *st, const grad_args *args) {
    return BY_WIDTH(&args->f.c, launch_dq, st, args);
}
