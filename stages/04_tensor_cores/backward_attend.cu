/** @file
 *  @brief Backward by queries: dgate, and dq, from the dS that backward_keys.cu has left. */
#include "backward.cuh"

enum {
    GATE_WARPS = 8, /* of a CUDA block of gate_backward_kernel, */
    DQ_WARPS = 4,   /* and of dq_kernel */
    DQ_CTAS = 2
};

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

/* dq += dS K over one block, of which `g_ds` and `g_k` are this lane's first pieces. dS was made
 * with keys as rows: its fragments are transposed, 8 x 8 elements at a time. */
template <int DK>
static __device__ __forceinline__ void add_block(acc_tiles<DK / TILE_N> *dq, const uint4 *g_ds,
                                                 const bf16 *g_k, uint64_t mask) {
    half_block<DK> k;
    frag_a ds[2][HALF_STEPS];
    load_half(&k, g_k);
#pragma unroll
    for (int i = 0; i < KEY_STEPS; i++) {
        const uint4 x = g_ds[i * WARP_SIZE];
        ds[i / HALF_STEPS][i % HALF_STEPS] = {
            {nsa_movmatrix_trans(x.x), nsa_movmatrix_trans(x.z), nsa_movmatrix_trans(x.y),
             nsa_movmatrix_trans(x.w)}};
    }
    if (mask == ALL_KEYS)
        add_values<DK, false>(dq, ds, &k, g_k, mask);
    else
        add_values<DK, true>(dq, ds, &k, g_k, mask);
}

/* dq += scale sum_j dS_j K_j over one branch. Each warp has a row tile and reads its blocks alone;
 * what its neighbours read too comes from the first-level cache. Grid: a warp for each kv head, row
 * of the slice and tile of heads, as attend_slc_win_kernel. */
template <int DK, int DV>
static __global__ void __launch_bounds__(DQ_WARPS *WARP_SIZE, DQ_CTAS)
    dq_kernel(grad_args a, inverse_list inv) {
    const dims *c = &a.f.c;
    const int64_t rows = inv.end_row - inv.first_row;
    const int64_t unit = (int64_t)blockIdx.x * DQ_WARPS + warp_id();
    const int64_t row = inv.first_row + unit / c->GT % rows;
    const int g16 = (int)(unit % c->GT), kvh = (int)(unit / c->GT / rows);
    if (kvh >= c->Hkv)
        return;
    const int t = a.f.row_t[row];
    const int32_t *g_idx = a.f.block_idx + (row * c->Hkv + kvh) * c->n;
    const block_ptrs start =
        first_block_of<DK, DV>(&a.f, &a.f.seqs[a.f.row_seq[row]], kvh, inv.branch);
    const uint4 *g_ds = ds_tile(&a, &inv, head_tile(c, row, kvh, g16), 0) + lane_id();
    acc_tiles<DK / TILE_N> dq;
    zero_acc(&dq);
    if (inv.branch == SLC) {
        block_iter iter = {};
        uint64_t mask;
        for (int b; next_block(&iter, g_idx, c, t, &b, &mask);)
            add_block<DK>(&dq, g_ds + iter.slot * DS_TILE,
                          block_after<DK, DV>(start, b).k + mem_tile_lane(), mask);
    } else {
        const key_range range = visible_range(c, inv.branch, t);
        for (int b = range.from / BLOCK; b * BLOCK < range.end; b++)
            add_block<DK>(&dq, g_ds + b % inv.width * DS_TILE,
                          block_after<DK, DV>(start, b).k + mem_tile_lane(), mask_of(range, b));
    }
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
            old[n] = inv.branch == CMP ? make_float4(0, 0, 0, 0)
                                       : *(const float4 *)(g_dq + quad_offset(n));
#pragma unroll
        for (int n = 0; n < DK / 16; n++) {
            const float4 x = quad_of(dq, n, i);
            *(float4 *)(g_dq + quad_offset(n)) =
                make_float4(old[n].x + x.x, old[n].y + x.y, old[n].z + x.z, old[n].w + x.w);
        }
    }
}

/* ---------------------------------------------------------------- launches */

void open_queries(stage *st, scratch *s) {
    alloc(st, &s->terms, NSA_MEM_SCRATCH,
          BRANCHES * st->plan->setup.max_rows * st->c.Hkv * st->c.GT * TILE_ROWS);
}

/* dgate and the terms of all rows. */
nsa_status gate_backward(stage *st, const grad_args *args) {
    const int64_t blocks = (args->row_tiles + GATE_WARPS - 1) / GATE_WARPS;
    LAUNCH(gate_backward_kernel, (unsigned)blocks, GATE_WARPS * WARP_SIZE, 0, st, *args);
    return NSA_OK;
}

template <int DK, int DV>
static nsa_status launch_dq(stage *st, const grad_args *args, const inverse_list *inv) {
    const int64_t units = (inv->end_row - inv->first_row) * args->f.c.Hkv * args->f.c.GT;
    LAUNCH((dq_kernel<DK, DV>), (unsigned)((units + DQ_WARPS - 1) / DQ_WARPS),
           DQ_WARPS * WARP_SIZE, 0, st, *args, *inv);
    return NSA_OK;
}

/* dq of a slice, over one branch. */
nsa_status backward_queries(stage *st, const grad_args *args, const inverse_list *inv) {
    return BY_WIDTH(&args->f.c, launch_dq, st, args, inv);
}
