/** @file
 *  @brief Backward by queries: dgate, and dq over the keys that a row sees. backward_keys.cu goes
 *  through the same attention by keys. */
#include "backward.cuh"

enum { GATE_WARPS = 8 }; /* of a CUDA block of gate_backward_kernel */

/* dgate = <dO,o> of each branch, and the terms that the other kernels need of a row. Grid: row
 * tiles / GATE_WARPS. A warp has one row tile; its lanes share a head's columns. */
static __global__ void __launch_bounds__(GATE_WARPS *WARP_SIZE) gate_backward_kernel(grad_args a) {
    const dims *c = &a.f.c;
    const int64_t tile = (int64_t)blockIdx.x * GATE_WARPS + warp_id();
    const int g0 = (int)(tile % c->GT) * TILE_ROWS;
    if (tile >= a.row_tiles)
        return;
    for (int i = 0; i < TILE_ROWS * BRANCHES; i++) {
        const int row = i / BRANCHES, branch = i % BRANCHES;
        const int64_t head = tile / c->GT * c->G + g0 + row; /* (r*Hkv + h)*G + g = r*Hq + ... */
        row_terms term = {0, 0, 0, 0};
        if (g0 + row < c->G) {
            const real *dout = a.dout_n + (tile * TILE_ROWS + row) * c->wp;
            const real *o = a.f.out_x[branch] + head * c->dvp;
            const row_stats stats = a.f.stats[head * BRANCHES + branch];
            float sum = 0;
            for (int col = lane_id(); col < c->dv; col += WARP_SIZE)
                sum += dout[col] * o[col];
            sum = warp_reduce_sum(sum);
            term = row_terms{stats.row_max, stats.inv_sum, a.f.gate[head * BRANCHES + branch], sum};
            if (lane_id() == 0)
                a.dgate[head * BRANCHES + branch] = sum;
        }
        if (lane_id() == 0)
            a.terms[(branch * a.row_tiles + tile) * TILE_ROWS + row] = term;
    }
}

/* dq over one block that all warps share:
 *     S [16,64] = Q K^T    dP [16,64] = dO V^T    dQ [16,dk] += dS K */
template <int N_TILES>
static __device__ __forceinline__ void backward_shared_block(acc_16x64 *dq, const dims *c,
                                                             const warp_smem *m,
                                                             const row_terms *terms, block_ptrs at,
                                                             key_masks mask) {
    {
        acc_16x64 s, dp;
        zero_acc_16x64(&s);
        zero_acc_16x64(&dp);
        shared_scores(&s, m, m->q, at.kt, c->dk8, mask.row != 0);
        shared_scores(&dp, m, m->dout, at.vt, c->dv8, mask.row != 0);
        if (mask.row) {
            softmax_backward(c, &s, &dp, terms, mask.row);
            __syncwarp();
            store_transposed(m->p, &dp);
            __syncwarp();
        }
    }
    shared_matmul<N_TILES>(dq, m, at.k, c->dkp, mask);
}

/* The same over one block of one warp, read straight from global memory. */
template <int N_TILES>
static __device__ __forceinline__ void backward_global_block(acc_16x64 *dq, const dims *c,
                                                             const warp_smem *m,
                                                             const row_terms *terms, block_ptrs at,
                                                             uint64_t mask) {
    {
        acc_16x64 s, dp;
        zero_acc_16x64(&s);
        zero_acc_16x64(&dp);
        warp_matmul<1>(&s, m->q + lane_row(), TILE_ROWS, at.kt + lane_col(), BLOCK, c->dk8);
        warp_matmul<1>(&dp, m->dout + lane_row(), TILE_ROWS, at.vt + lane_col(), BLOCK, c->dv8);
        softmax_backward(c, &s, &dp, terms, mask);
        __syncwarp();
        store_transposed(m->p, &dp);
        __syncwarp();
    }
    matmul_masked<N_TILES>(dq, m->p, at.k + lane_col(), c->dkp, key_run{0, BLOCK, mask});
}

/* dq of one tile of heads of each row. The blocks, and who loads them, are forward's: compressed
 * and window blocks are shared, selected ones are each warp's own. Grid: a CUDA block for each kv
 * head, tile of heads and tile of rows, the last rows first. Block: a warp for each query row.
 * Shared: smem_layout, 192 KiB at 128/128. */
template <int N_TILES>
static __global__ void __launch_bounds__(DQ_WARPS *WARP_SIZE, 1)
    dq_kernel(grad_args a, smem_layout layout) {
    NSA_DYNAMIC_SHARED(float, s_base);
    const dims *c = &a.f.c;
    const warp_smem m = smem_of(layout, s_base);
    const int g16 = (int)(blockIdx.x % c->GT);
    const int64_t unit = blockIdx.x / c->GT;
    const tile_coord coord =
        tile_coord_of(&a.f, a.f.n_tiles - 1 - unit / c->Hkv, (int)(unit % c->Hkv));
    const int t = coord.t, last = last_position(&a.f, &coord);
    const int n_visible = t < 0 ? 0 : cmp_visible(c, t), n_last = cmp_visible(c, last);
    const int64_t tile = head_tile(c, coord.row, coord.kvh, g16);
    const row_terms *terms = a.terms + tile * TILE_ROWS;
    acc_16x64 dq[N_TILES];
#pragma unroll
    for (int n = 0; n < N_TILES; n++)
        zero_acc_16x64(&dq[n]);
    if (t >= 0) {
        load_tile(m.q, a.f.q_t + tile * c->dk8 * TILE_ROWS, c->dk8 * TILE_ROWS);
        load_tile(m.dout, a.dout_t + tile * c->dv8 * TILE_ROWS, c->dv8 * TILE_ROWS);
    }
    for (int b = 0; b * BLOCK < n_last; b++)
        backward_shared_block<N_TILES>(
            dq, c, &m, terms + CMP * a.row_tiles * TILE_ROWS, block_ptrs_of(&a.f, &coord, CMP, b),
            key_masks{range_mask(0, n_visible - b * BLOCK), range_mask(0, n_last - b * BLOCK)});
    for (int b = 0; (b = next_win_block(&a.f, &coord, b)) != INT32_MAX; b++)
        backward_shared_block<N_TILES>(
            dq, c, &m, terms + WIN * a.row_tiles * TILE_ROWS, block_ptrs_of(&a.f, &coord, WIN, b),
            key_masks{range_mask(first_win(c, t) - b * BLOCK, t + 1 - b * BLOCK),
                      range_mask(0, last + 1 - b * BLOCK)});
    if (t < 0)
        return;
    const int32_t *g_idx = a.f.block_idx + (coord.row * c->Hkv + coord.kvh) * c->n;
    block_iter iter = {};
    uint64_t mask;
    int b;
    while (next_block(&iter, g_idx, c, t, &b, &mask))
        backward_global_block<N_TILES>(dq, c, &m, terms + SLC * a.row_tiles * TILE_ROWS,
                                       block_ptrs_of(&a.f, &coord, SLC, b), mask);
    const int g = g16 * TILE_ROWS + lane_row();
    real *g_dq = a.dq + (coord.row * c->Hq + coord.kvh * c->G + g) * c->dkp + lane_col();
#pragma unroll
    for (int n = 0; n < N_TILES; n++)
        store_acc(g_dq + n * TILE_COLS, c->dkp, &dq[n], c->G - g);
}

/* ---------------------------------------------------------------- launches */

template <int N_TILES> static nsa_status allow_shared(void) {
    return nsa_allow_shared(dq_kernel<N_TILES>);
}

/* Rows of a CUDA block: as many as shared memory allows. */
nsa_status open_queries(stage *st, scratch *s) {
    const int64_t rows = st->plan->setup.max_rows + st->cfg.max_seqs;
    s->dq_warps = DQ_WARPS;
    while (s->dq_warps > 1 &&
           smem_bytes(layout_of(&st->c, s->dq_warps, st->c.dv8, 0), s->dq_warps) > st->max_shared)
        s->dq_warps--;
    alloc(st, &s->tiles, NSA_MEM_PERSISTENT, rows);
    alloc(st, &s->terms, NSA_MEM_SCRATCH,
          BRANCHES * st->plan->setup.max_rows * st->c.Hkv * st->c.GT * TILE_ROWS);
    return BY_WIDTH(st->c.dkp, allow_shared);
}

/* dgate and the terms of all rows. */
nsa_status gate_backward(stage *st, const grad_args *args) {
    const int64_t blocks = (args->row_tiles + GATE_WARPS - 1) / GATE_WARPS;
    LAUNCH(gate_backward_kernel, (unsigned)blocks, GATE_WARPS * WARP_SIZE, 0, st, *args);
    return NSA_OK;
}

template <int N_TILES> static nsa_status launch_dq(stage *st, const grad_args *args) {
    const dims *c = &args->f.c;
    const int warps = ((const scratch *)st->scratch)->dq_warps;
    const smem_layout layout = layout_of(c, warps, c->dv8, 0);
    LAUNCH(dq_kernel<N_TILES>, (unsigned)(args->f.n_tiles * c->Hkv * c->GT), warps * WARP_SIZE,
           smem_bytes(layout, warps), st, *args, layout);
    return NSA_OK;
}

/* dq of all rows. */
nsa_status backward_queries(stage *st, const grad_args *args) {
    return BY_WIDTH(args->f.c.dkp, launch_dq, st, args);
}
