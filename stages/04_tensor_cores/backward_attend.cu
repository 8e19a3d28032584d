/** @file
 *  @brief Backward by queries: dgate, and dq, from the dS that backward_keys.cu has left. */
#include "backward.cuh"

enum {
    GATE_WARPS = 8, /* of a CUDA block of gate_backward_kernel, */
    DQ_WARPS = 4,   /* and of dq_kernel and dq_slc_kernel */
    DQ_CTAS = 2
};

/* Row tiles of a warp of dq_kernel: what registers allow. */
#define DQ_TILES(DK) ((DK) <= 128 ? 2 : 1)

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

/* Write (compressed, the first branch) or add the first `rows` rows of tiles of dq. All loads come
 * before the stores, as in attend.cu. */
template <int N>
static __device__ __forceinline__ void add_acc(real *to, int64_t ld, const acc_tiles<N> *acc,
                                               int rows, bool add) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = lane_row() + 8 * i;
        float2 old[N], *at = (float2 *)(to + row * ld + lane_col());
        for (int n = 0; n < N; n++)
            old[n] = add && row < rows ? at[n * (TILE_N / 2)] : make_float2(0, 0);
        for (int n = 0; n < N && row < rows; n++)
            at[n * (TILE_N / 2)] =
                make_float2(old[n].x + acc->x[n][2 * i], old[n].y + acc->x[n][2 * i + 1]);
    }
}

/* dS of 16 keys as A, 16 heads by 16 keys, from the piece that backward_keys.cu has left. There
 * keys are the rows: its fragment is transposed, 8 x 8 elements at a time, and the two quarters off
 * the diagonal change places. */
static __device__ __forceinline__ frag_a load_ds(const uint4 *at) {
    const uint4 x = *at;
    return {{nsa_movmatrix_trans(x.x), nsa_movmatrix_trans(x.z), nsa_movmatrix_trans(x.y),
             nsa_movmatrix_trans(x.w)}};
}

/* -------------------------------------------------------- shared blocks */

/* The shared memory of a CUDA block: two blocks of keys, and what each of its rows has of dS. */
template <int DK> struct dq_smem {
    enum { M = DQ_TILES(DK), ROWS = DQ_WARPS * M };
    bf16 k[2][BLOCK * DK];
    uint4 ds[2][ROWS][DS_TILE];
};

/* Start copying block b, and the warp's dS; zeros for rows that do not see it. */
template <int DK, int DV>
static __device__ __forceinline__ void load_dq_block(const grad_args *a, const inverse_list *inv,
                                                     const tile_coord *coord, dq_smem<DK> *m,
                                                     int which, int b, int g16,
                                                     const uint64_t (&mask)[DQ_TILES(DK)]) {
    const block_ptrs start = first_block_of<DK, DV>(&a->f, coord->sq, coord->kvh, inv->branch);
    copy_rows_async<DK, BLOCK>(m->k[which], block_after<DK, DV>(start, b).k, (int)threadIdx.x,
                               DQ_WARPS * WARP_SIZE);
    for (int i = 0; i < DQ_TILES(DK); i++) {
        const int row = warp_id() * DQ_TILES(DK) + i;
        const int64_t r = coord->rows.first + (mask[i] ? row : 0);
        const uint4 *g_ds = ds_tile(a, inv, head_tile(&a->f.c, r, coord->kvh, g16), b % inv->width);
        for (int k = lane_id(); k < DS_TILE; k += WARP_SIZE)
            nsa_cp_async_16(&m->ds[which][row][k], g_ds + k, mask[i] != 0);
    }
    nsa_cp_async_commit();
}

/* dq of neighbouring rows of one sequence over compressed or window keys, which they share. While
 * one block is multiplied the next is on its way. */
template <int DK, int DV>
static __device__ __forceinline__ void dq_of_rows(const grad_args *a, const inverse_list *inv,
                                                  const tile_coord *coord, dq_smem<DK> *m,
                                                  int g16) {
    enum { M = DQ_TILES(DK) };
    const dims *c = &a->f.c;
    const int begin = visible_range(c, inv->branch, position_of(coord, 0)).from / BLOCK;
    const int end = visible_range(c, inv->branch, coord->last_t).end;
    key_range range[M];
    uint64_t mask[M], next[M];
    acc_tiles<DK / TILE_N> acc[M] = {}, *dq[M];
    for (int i = 0; i < M; i++) {
        dq[i] = &acc[i];
        range[i] = visible_range(c, inv->branch, position_of(coord, warp_id() * M + i));
        next[i] = mask_of(range[i], begin);
    }
    if (begin * BLOCK < end)
        load_dq_block<DK, DV>(a, inv, coord, m, 0, begin, g16, next);
    for (int b = begin, which = 0; b * BLOCK < end; b++, which ^= 1) {
        frag_a ds[M][KEY_STEPS];
        for (int i = 0; i < M; i++) {
            mask[i] = next[i];
            next[i] = mask_of(range[i], b + 1);
        }
        nsa_cp_async_wait<0>();
        __syncthreads(); /* this block has arrived, the last one is used */
        if ((b + 1) * BLOCK < end)
            load_dq_block<DK, DV>(a, inv, coord, m, which ^ 1, b + 1, g16, next);
#pragma unroll
        for (int i = 0; i < M * KEY_STEPS; i++)
            ds[i / KEY_STEPS][i % KEY_STEPS] =
                load_ds(&m->ds[which][warp_id() * M + i / KEY_STEPS]
                              [i % KEY_STEPS * WARP_SIZE + lane_id()]);
        matmul_masked<DK>(dq, ds, m->k[which], mask);
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        const int row = warp_id() * M + i;
        const int64_t head =
            (coord->rows.first + row) * c->Hq + coord->kvh * c->G + g16 * TILE_ROWS;
        scale_rows(&acc[i], {c->scale, c->scale});
        add_acc(a->dq + head * DK, DK, &acc[i],
                row < coord->rows.count ? c->G - g16 * TILE_ROWS : 0, inv->branch != CMP);
    }
}

/* dq += scale sum_j dS_j K_j over compressed keys or the window. Grid: a CUDA block for each kv
 * head, tile of heads and 4 M rows of the slice, which it takes sequence by sequence. Block: 4
 * warps with M rows each. Shared: dq_smem, 64 KiB at 128/128. */
template <int DK, int DV>
static __global__ void __launch_bounds__(DQ_WARPS *WARP_SIZE, DQ_CTAS)
    dq_kernel(grad_args a, inverse_list inv) {
    NSA_DYNAMIC_SHARED(void, s_base);
    const dims *c = &a.f.c;
    const int g16 = (int)(blockIdx.x % c->GT), kvh = (int)(blockIdx.x / c->GT % c->Hkv);
    const int64_t unit = blockIdx.x / c->GT / c->Hkv;
    row_range rows = {inv.first_row + unit * dq_smem<DK>::ROWS, 0, 0};
    const int64_t end = min(rows.first + dq_smem<DK>::ROWS, inv.end_row);
    for (; rows.first < end; rows.first += rows.count) {
        rows.sequence = a.f.row_seq[rows.first];
        rows.count = 1;
        while (rows.first + rows.count < end &&
               a.f.row_seq[rows.first + rows.count] == rows.sequence)
            rows.count++;
        const tile_coord coord = tile_coord_of(&a.f, &rows, kvh);
        dq_of_rows<DK, DV>(&a, &inv, &coord, (dq_smem<DK> *)s_base, g16);
        __syncthreads(); /* the last block is used */
    }
}

/* ------------------------------------------------------ selected blocks */

/* dq += dS K over one block, of which `g_ds` and `g_k` are this lane's first pieces. */
template <int DK>
static __device__ __forceinline__ void add_block(acc_tiles<DK / TILE_N> *dq, const uint4 *g_ds,
                                                 const bf16 *g_k, uint64_t mask) {
    half_block<DK> k;
    frag_a ds[2][HALF_STEPS];
    load_half(&k, g_k);
#pragma unroll
    for (int i = 0; i < KEY_STEPS; i++)
        ds[i / HALF_STEPS][i % HALF_STEPS] = load_ds(g_ds + i * WARP_SIZE);
    if (mask == ALL_KEYS)
        add_values<DK, false>(dq, ds, &k, g_k, mask);
    else
        add_values<DK, true>(dq, ds, &k, g_k, mask);
}

/* dq += scale sum_j dS_j K_j over selected blocks. Each warp has a row tile and reads its blocks
 * alone. Grid: a warp for each kv head, row of the slice and tile of heads, as
 * attend_slc_win_kernel. */
template <int DK, int DV>
static __global__ void __launch_bounds__(DQ_WARPS *WARP_SIZE, DQ_CTAS)
    dq_slc_kernel(grad_args a, inverse_list inv) {
    const dims *c = &a.f.c;
    const int64_t rows = inv.end_row - inv.first_row;
    const int64_t unit = (int64_t)blockIdx.x * DQ_WARPS + warp_id();
    const int64_t row = inv.first_row + unit / c->GT % rows;
    const int g16 = (int)(unit % c->GT), kvh = (int)(unit / c->GT / rows);
    if (kvh >= c->Hkv)
        return;
    const int32_t *g_idx = a.f.block_idx + (row * c->Hkv + kvh) * c->n;
    const block_ptrs start = first_block_of<DK, DV>(&a.f, &a.f.seqs[a.f.row_seq[row]], kvh, SLC);
    const uint4 *g_ds = ds_tile(&a, &inv, head_tile(c, row, kvh, g16), 0) + lane_id();
    block_iter iter = {};
    uint64_t mask;
    acc_tiles<DK / TILE_N> dq;
    zero_acc(&dq);
    for (int b; next_block(&iter, g_idx, c, a.f.row_t[row], &b, &mask);)
        add_block<DK>(&dq, g_ds + iter.place * DS_TILE,
                      block_after<DK, DV>(start, b).k + mem_tile_lane(), mask);
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
    return nsa_allow_shared(dq_kernel<DK, DV>);
}

nsa_status open_queries(stage *st, scratch *s) {
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

template <int DK, int DV>
static nsa_status launch_dq(stage *st, const grad_args *args, const inverse_list *inv) {
    const int64_t rows = inv->end_row - inv->first_row, heads = args->f.c.Hkv * args->f.c.GT;
    if (inv->branch == SLC)
        LAUNCH((dq_slc_kernel<DK, DV>), (unsigned)((rows * heads + DQ_WARPS - 1) / DQ_WARPS),
               DQ_WARPS * WARP_SIZE, 0, st, *args, *inv);
    else
        LAUNCH((dq_kernel<DK, DV>),
               (unsigned)((rows + dq_smem<DK>::ROWS - 1) / dq_smem<DK>::ROWS * heads),
               DQ_WARPS * WARP_SIZE, sizeof(dq_smem<DK>), st, *args, *inv);
    return NSA_OK;
}

/* dq of a slice, over one branch. */
nsa_status backward_queries(stage *st, const grad_args *args, const inverse_list *inv) {
    return BY_WIDTH(&args->f.c, launch_dq, st, args, inv);
}
