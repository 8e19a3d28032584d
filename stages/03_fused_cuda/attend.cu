/** @file
 *  @brief The three branches and their gate in two kernels: the compressed branch with importance
 *  and selection; then window, selected blocks and the gated sum. Each warp has one query row of a
 *  group. */
#include "select.cuh"

/* Maximum of queries of a CUDA block, one warp each: one CUDA block fills a multiprocessor's
 * registers. Wide outputs need more of them. N_TILES = dvp/64 is a constant, so that outputs stay
 * in registers. */
#define QUERY_TILE_OF(N_TILES) ((N_TILES) <= 2 ? (int)QUERY_TILE : (int)QUERY_TILE * 2 / 3)

/* Q^T of the warp's row, tile g16 of its heads, into m->q. */
static __device__ __forceinline__ void load_query(const attend_args *a, const tile_coord *coord,
                                                  int g16, const warp_smem *m) {
    load_tile(m->q, a->q_t + head_tile(&a->c, coord->row, coord->kvh, g16) * a->c.dk8 * TILE_ROWS,
              a->c.dk8 * TILE_ROWS);
}

/* Store the statistics of a finished tile of heads; one lane of each row group writes. */
template <int N_TILES>
static __device__ __forceinline__ void store_stats(const softmax_state<N_TILES> *x, row_stats *to,
                                                   int stride, int heads) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        if (lane_id() < 2 && lane_row() + i < heads) {
            to[(lane_row() + i) * stride].row_max = x->row_max[i];
            to[(lane_row() + i) * stride].inv_sum = x->row_sum[i];
        }
    }
}

/* out = or += gate o: the first branch writes, the others add (Eq. 5). For backward and for those
 * who want them, o itself and its softmax's statistics are stored too. */
template <int N_TILES>
static __device__ __forceinline__ void accumulate_gated(const attend_args *a,
                                                        const softmax_state<N_TILES> *x,
                                                        const tile_coord *coord, int g16,
                                                        int branch) {
    const dims *c = &a->c;
    const int heads = c->G - g16 * TILE_ROWS;
    const int64_t head = coord->row * c->Hq + coord->kvh * c->G + g16 * TILE_ROWS;
    if (a->stats)
        store_stats(x, a->stats + head * BRANCHES + branch, BRANCHES, heads);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        if (lane_row() + i >= heads)
            continue;
        const int64_t h = head + lane_row() + i;
        const float gate = a->gate[h * BRANCHES + branch];
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
            const int64_t col = h * c->dvp + n * TILE_COLS + lane_col();
            const float *o = x->o[n].x[i];
            const float4 sum = branch == CMP ? make_float4(0, 0, 0, 0) : load4(a->out + col);
            store4(a->out + col, sum.x + gate * o[0], sum.y + gate * o[1], sum.z + gate * o[2],
                   sum.w + gate * o[3]);
            if (a->out_x[branch])
                store4(a->out_x[branch] + col, o[0], o[1], o[2], o[3]);
        }
    }
}

/* -------------------------------------------------------- compressed branch */

/* Compressed attention of one tile of heads over all visible blocks; its statistics go to m->stats
 * too. Partial sums wait in `out`, which nobody has written yet. */
template <int N_TILES>
static __device__ __forceinline__ void attend_cmp_tile(const attend_args *a,
                                                       const tile_coord *coord, const warp_smem *m,
                                                       int g16) {
    const dims *c = &a->c;
    const bool live = coord->t >= 0;
    const int n_visible = live ? cmp_visible(c, coord->t) : 0;
    const int n_last = cmp_visible(c, last_position(a, coord));
    const int heads = live ? c->G - g16 * TILE_ROWS : 0;
    real *g_o = a->out + (coord->row * c->Hq + coord->kvh * c->G + g16 * TILE_ROWS) * c->dvp;
    row_stats *s_stats = m->stats + g16 * TILE_ROWS;
    softmax_state<N_TILES> x;
    softmax_init(&x);
    for (int b = 0; b * BLOCK < n_last; b++) {
        if (b > 0 && b % PARTIAL_BLOCKS == 0) {
            if (b > PARTIAL_BLOCKS)
                add_partial(&x, c, g_o, heads, s_stats);
            flush_partial(&x, c, g_o, heads, s_stats);
        }
        attend_shared_block(
            &x, c, m, block_ptrs_of(a, coord, CMP, b),
            key_masks{range_mask(0, n_visible - b * BLOCK), range_mask(0, n_last - b * BLOCK)});
    }
    if (n_last > PARTIAL_BLOCKS * BLOCK)
        add_partial(&x, c, g_o, heads, s_stats);
    softmax_finalize(&x);
    if (!live)
        return;
    store_stats(&x, s_stats, 1, TILE_ROWS);
    accumulate_gated(a, &x, coord, g16, CMP);
}

/* Importance and selection for the warp's row (Eq. 9-11), in a second pass over the compressed
 * keys: only now that each row's maximum and sum are known can the probabilities themselves be
 * computed. All warps take part, for the barriers of shared_scores(). */
static __device__ __forceinline__ void select_row(const attend_args *a, const tile_coord *coord,
                                                  const warp_smem *m) {
    const dims *c = &a->c;
    const bool live = coord->t >= 0;
    const int n_last = cmp_visible(c, last_position(a, coord));
    const int64_t group = coord->row * c->Hkv + coord->kvh;
    selection sel;
    selection_init(&sel, c, coord->t, m->ring, m->ring_floats);
    sel.g_imp = a->importance && live ? a->importance + group * a->J : NULL;
    for (int b = 0; b * BLOCK < n_last; b++) {
        for (int g16 = 0; g16 < c->GT; g16++) {
            acc_16x64 s;
            zero_acc_16x64(&s);
            if (live && c->GT > 1)
                load_query(a, coord, g16, m);
            shared_scores(&s, m, m->q, block_ptrs_of(a, coord, CMP, b).kt, c->dk8, live);
            if (live)
                add_to_ring(&sel, &s, m->stats, g16, b * BLOCK);
        }
        if (live)
            add_importance(&sel, min(sel.own_block + 1, (b + 1) * BLOCK / c->per_block));
    }
    if (!live)
        return;
    add_importance(&sel, sel.own_block + 1);
    for (int64_t j = sel.own_block + 1 + lane_id(); sel.g_imp && j < a->J; j += WARP_SIZE)
        sel.g_imp[j] = 0; /* blocks after the query's own */
    if (!a->forced)
        topk_emit(&sel.best, c, sel.own_block, (int *)m->p, a->block_idx + group * c->n);
}

/* Compressed attention, then importance and selection (Eq. 8-11). Grid: a CUDA block for each kv
 * head and tile of rows, the last rows first, because they see the most. Block: a warp for each
 * query row of the tile, with all G heads. Shared: smem_layout, 200 KiB at 128/128. */
template <int N_TILES>
static __global__ void __launch_bounds__(QUERY_TILE_OF(N_TILES) * WARP_SIZE, 1)
    attend_cmp_kernel(attend_args a, smem_layout layout) {
    NSA_DYNAMIC_SHARED(float, s_base);
    const dims *c = &a.c;
    const warp_smem m = smem_of(layout, s_base);
    const tile_coord coord =
        tile_coord_of(&a, a.n_tiles - 1 - blockIdx.x / c->Hkv, (int)(blockIdx.x % c->Hkv));
    for (int g16 = 0; g16 < c->GT; g16++) {
        if (coord.t >= 0)
            load_query(&a, &coord, g16, &m);
        attend_cmp_tile<N_TILES>(&a, &coord, &m, g16);
    }
    __syncwarp(); /* the statistics are in shared memory */
    if (a.importance || !a.forced)
        select_row(&a, &coord, &m);
}

/* ------------------------------------------- window, selected blocks, gate */

/* Attention over the window, the tokens t - w < s <= t. */
template <int N_TILES>
static __device__ __forceinline__ void attend_window(softmax_state<N_TILES> *x,
                                                     const attend_args *a, const tile_coord *coord,
                                                     const warp_smem *m) {
    const int lo = first_win(&a->c, coord->t), last = last_position(a, coord);
    softmax_init(x);
    for (int b = 0; (b = next_win_block(a, coord, b)) != INT32_MAX; b++)
        attend_shared_block(x, &a->c, m, block_ptrs_of(a, coord, WIN, b),
                            key_masks{range_mask(lo - b * BLOCK, coord->t + 1 - b * BLOCK),
                                      range_mask(0, last + 1 - b * BLOCK)});
    softmax_finalize(x);
}

/* Window and selected attention and the gated sum (Eq. 5, 12) of one tile of heads. The CUDA
 * block's rows share window blocks; each warp reads its selected blocks alone. Grid: a CUDA block
 * for each kv head, tile of rows and tile of heads, kv head outermost, so that one head's keys and
 * values stay in the second-level cache. Block: a warp for each query row, with 16 of its heads.
 * The window comes first, for its barriers need all warps: those without a row leave after it.
 * Shared: smem_layout without ring buffers, 192 KiB at 128/128. */
template <int N_TILES>
static __global__ void __launch_bounds__(QUERY_TILE_OF(N_TILES) * WARP_SIZE, 1)
    attend_slc_win_kernel(attend_args a, smem_layout layout) {
    NSA_DYNAMIC_SHARED(float, s_base);
    const dims *c = &a.c;
    const warp_smem m = smem_of(layout, s_base);
    const int64_t unit = blockIdx.x / c->GT; /* the grid replaces stage 02's loop over units */
    const int g16 = (int)(blockIdx.x % c->GT);
    const tile_coord coord = tile_coord_of(&a, unit % a.n_tiles, (int)(unit / a.n_tiles));
    softmax_state<N_TILES> x;
    if (coord.t >= 0)
        load_query(&a, &coord, g16, &m);
    attend_window(&x, &a, &coord, &m);
    if (coord.t < 0)
        return;
    accumulate_gated(&a, &x, &coord, g16, WIN);
    const int32_t *g_idx = a.block_idx + (coord.row * c->Hkv + coord.kvh) * c->n;
    block_iter iter = {};
    uint64_t mask;
    int block;
    softmax_init(&x);
    while (next_block(&iter, g_idx, c, coord.t, &block, &mask))
        attend_global_block(&x, c, &m, block_ptrs_of(&a, &coord, SLC, block), mask, (float *)NULL);
    softmax_finalize(&x);
    accumulate_gated(&a, &x, &coord, g16, SLC);
}

/* Plain causal attention, over a window without a beginning (a.c.w is INT32_MAX). Grid as above,
 * the last rows first; block and shared memory as above. */
template <int N_TILES>
static __global__ void __launch_bounds__(QUERY_TILE_OF(N_TILES) * WARP_SIZE, 1)
    attend_causal_kernel(attend_args a, smem_layout layout) {
    NSA_DYNAMIC_SHARED(float, s_base);
    const dims *c = &a.c;
    const warp_smem m = smem_of(layout, s_base);
    const int64_t unit = blockIdx.x / c->GT;
    const int g16 = (int)(blockIdx.x % c->GT);
    const tile_coord coord =
        tile_coord_of(&a, a.n_tiles - 1 - unit % a.n_tiles, (int)(unit / a.n_tiles));
    softmax_state<N_TILES> x;
    if (coord.t >= 0)
        load_query(&a, &coord, g16, &m);
    attend_window(&x, &a, &coord, &m);
    const int g = g16 * TILE_ROWS + lane_row();
    real *g_out = a.out + (coord.row * c->Hq + coord.kvh * c->G + g) * c->dvp + lane_col();
#pragma unroll
    for (int n = 0; n < N_TILES; n++)
        store_acc(g_out + n * TILE_COLS, c->dvp, &x.o[n], coord.t >= 0 ? c->G - g : 0);
}

/* ---------------------------------------------------------------- launches */

template <int N_TILES> static nsa_status allow_shared(void) {
    TRY(nsa_allow_shared(attend_cmp_kernel<N_TILES>));
    TRY(nsa_allow_shared(attend_slc_win_kernel<N_TILES>));
    return nsa_allow_shared(attend_causal_kernel<N_TILES>);
}

/* Rows of a CUDA block: as many as registers and shared memory allow. */
nsa_status open_attend(stage *st) {
    st->warps = QUERY_TILE_OF(st->c.dvp / TILE_COLS);
    while (st->warps > 1 && smem_bytes(layout_of(&st->c, st->warps, 0, ring_size(&st->c)),
                                       st->warps) > st->max_shared)
        st->warps--;
    return BY_WIDTH(st->c.dvp, allow_shared);
}

template <int N_TILES> static nsa_status launch_cmp(stage *st, const attend_args *a) {
    const smem_layout layout = layout_of(&a->c, st->warps, 0, ring_size(&a->c));
    LAUNCH(attend_cmp_kernel<N_TILES>, (unsigned)(a->n_tiles * a->c.Hkv), st->warps * WARP_SIZE,
           smem_bytes(layout, st->warps), st, *a, layout);
    return NSA_OK;
}

template <int N_TILES> static nsa_status launch_slc_win(stage *st, const attend_args *a) {
    const smem_layout layout = layout_of(&a->c, st->warps, 0, 0);
    LAUNCH(attend_slc_win_kernel<N_TILES>, (unsigned)(a->n_tiles * a->c.Hkv * a->c.GT),
           st->warps * WARP_SIZE, smem_bytes(layout, st->warps), st, *a, layout);
    return NSA_OK;
}

template <int N_TILES> static nsa_status launch_causal(stage *st, const attend_args *a) {
    const smem_layout layout = layout_of(&a->c, st->warps, 0, 0);
    LAUNCH(attend_causal_kernel<N_TILES>, (unsigned)(a->n_tiles * a->c.Hkv * a->c.GT),
           st->warps * WARP_SIZE, smem_bytes(layout, st->warps), st, *a, layout);
    return NSA_OK;
}

nsa_status attend_cmp(stage *st, const attend_args *a) {
    return a->n_tiles ? BY_WIDTH(a->c.dvp, launch_cmp, st, a) : NSA_OK;
}

nsa_status attend_slc_win(stage *st, const attend_args *a) {
    return a->n_tiles ? BY_WIDTH(a->c.dvp, launch_slc_win, st, a) : NSA_OK;
}

nsa_status attend_causal(stage *st, const attend_args *a) {
    return a->n_tiles ? BY_WIDTH(a->c.dvp, launch_causal, st, a) : NSA_OK;
}
