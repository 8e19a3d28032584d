/** @file
 *  @brief The three branches and their gate in two kernels: the compressed branch with importance
 *  and selection; then window, selected blocks and the gated sum. Each warp has one query row of a
 *  group. */
#include "attend.cuh"
#include "select.cuh"

/* Maximum of queries of a CUDA block, one warp each: one CUDA block fills a multiprocessor's
 * registers. Wide outputs need more of them. N_TILES = dvp/64 is a constant, so that outputs stay
 * in registers. */
#define QUERY_TILE_OF(N_TILES) ((N_TILES) <= 2 ? (int)QUERY_TILE : (int)QUERY_TILE * 2 / 3)

/* The row and kv head of a warp. */
typedef struct tile_coord {
    int head;                 /* kv head */
    int64_t row;              /* result row */
    int t;                    /* its position, -1 if the warp has no row */
    const tile_of_rows *rows; /* the CUDA block's rows */
    const sequence *sq;
} tile_coord;

static __device__ __forceinline__ tile_coord tile_coord_of(const attend_args *a, int64_t tile,
                                                           int head) {
    tile_coord coord;
    coord.head = head;
    coord.rows = &a->tiles[tile];
    coord.sq = &a->seqs[coord.rows->sequence];
    coord.row = coord.rows->first + warp_id();
    coord.t = warp_id() < coord.rows->count ? a->row_t[coord.row] : -1;
    return coord;
}

/* Position of the CUDA block's last row, which sees the most keys. */
static __device__ __forceinline__ int last_position(const attend_args *a, const tile_coord *coord) {
    return a->row_t[coord->rows->first + coord->rows->count - 1];
}

static __device__ __forceinline__ const real *keys_of(const kv_blocks *in, const dims *c,
                                                      const tile_coord *coord, int branch,
                                                      int block) {
    return in->kt + (coord->head * in->stride + coord->sq->first[branch] + block) * c->dk8 * BLOCK;
}

static __device__ __forceinline__ const real *values_of(const kv_blocks *in, const dims *c,
                                                        const tile_coord *coord, int branch,
                                                        int block) {
    return in->v + (coord->head * in->stride + coord->sq->first[branch] + block) * BLOCK * c->dvp;
}

/* Q^T of the warp's row, tile g16 of its heads, into s_q. */
static __device__ __forceinline__ void load_query(const attend_args *a, const tile_coord *coord,
                                                  int g16, float *s_q) {
    const int64_t tile = (coord->row * a->c.Hkv + coord->head) * a->c.GT + g16;
    load_tile(s_q, a->q_t + tile * a->c.dk8 * TILE_ROWS, a->c.dk8 * TILE_ROWS);
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

/* Store a finished tile: its outputs to out_x, and out (+)= gate times them. If `earlier` is not
 * negative, that branch's outputs are in out_x already, and join the sum here. */
template <int N_TILES>
static __device__ __forceinline__ void accumulate_gated(const attend_args *a,
                                                        const softmax_state<N_TILES> *x,
                                                        const tile_coord *coord, int g16,
                                                        int branch, int earlier, bool add) {
    const dims *c = &a->c;
    const int heads = c->G - g16 * TILE_ROWS;
    const int64_t head = coord->row * c->Hq + coord->head * c->G + g16 * TILE_ROWS;
    if (a->stats)
        store_stats(x, a->stats + head * BRANCHES + branch, BRANCHES, heads);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        if (lane_row() + i >= heads)
            continue;
        const int64_t h = head + lane_row() + i;
        const float *g = a->gate + h * BRANCHES;
#pragma unroll
        for (int s = 0; s < N_TILES; s++) {
            const int64_t col = h * c->dvp + s * TILE_COLS + lane_col();
            const float *o = x->o[s].x[i];
            if (a->out_x[branch])
                store4(a->out_x[branch] + col, o[0], o[1], o[2], o[3]);
            if (branch == CMP)
                continue;
            float4 sum = add ? load4(a->out + col) : make_float4(0, 0, 0, 0);
            if (earlier >= 0) {
                const float4 b = load4(a->out_x[earlier] + col);
                sum = make_float4(g[earlier] * b.x, g[earlier] * b.y, g[earlier] * b.z,
                                  g[earlier] * b.w);
            }
            store4(a->out + col, sum.x + g[branch] * o[0], sum.y + g[branch] * o[1],
                   sum.z + g[branch] * o[2], sum.w + g[branch] * o[3]);
        }
    }
}

/* -------------------------------------------------------- compressed branch */

/* Compressed attention of one tile of heads over all visible blocks. n_visible: keys that the
 * warp's query sees. n_last: keys that the CUDA block's last query sees. s_stats [16]. */
template <int N_TILES>
static __device__ __forceinline__ void attend_visible(const attend_args *a, const tile_coord *coord,
                                                      int g16, int n_visible, int n_last,
                                                      smem_layout smem, float *s_chunk, float *s_q,
                                                      float *s_p, row_stats *s_stats) {
    const kv_blocks *in = &a->in[CMP];
    const int heads = coord->t < 0 ? 0 : a->c.G - g16 * TILE_ROWS;
    const int64_t head = coord->row * a->c.Hq + coord->head * a->c.G + g16 * TILE_ROWS;
    real *g_o = a->out_x[CMP] + head * a->c.dvp;
    softmax_state<N_TILES> x;
    softmax_init(&x);
    for (int b = 0; b * BLOCK < n_last; b++) {
        if (b > 0 && b % FLUSH_EVERY == 0) {
            if (b > FLUSH_EVERY)
                add_partial(&x, g_o, a->c.dvp, heads, a->c.scale2, s_stats);
            flush_partial(&x, g_o, a->c.dvp, heads, s_stats);
        }
        attend_shared_block<N_TILES>(&x, &a->c, keys_of(in, &a->c, coord, CMP, b),
                                     values_of(in, &a->c, coord, CMP, b), s_chunk, smem.chunk, s_q,
                                     s_p, range_mask(0, n_visible - b * BLOCK),
                                     range_mask(0, n_last - b * BLOCK));
    }
    if (n_last > FLUSH_EVERY * BLOCK)
        add_partial(&x, g_o, a->c.dvp, heads, a->c.scale2, s_stats);
    softmax_finalize(&x);
    if (coord->t < 0)
        return;
    store_stats(&x, s_stats, 1, TILE_ROWS);
    accumulate_gated<N_TILES>(a, &x, coord, g16, CMP, -1, false);
}

/* Compressed attention, importance and selection (Eq. 8-11), in two passes over the keys: the first
 * finds each row's maximum and sum, the second computes the probabilities themselves. Grid: a CUDA
 * block for each kv head and tile of rows, the last rows first, because they see the most. Block: a
 * warp for each query row of the tile, with all G heads. Shared: smem_layout, 205 KiB at
 * 128/128. */
template <int N_TILES>
static __global__ void __launch_bounds__(QUERY_TILE_OF(N_TILES) * WARP_SIZE, 1)
    attend_cmp_kernel(attend_args a, smem_layout smem) {
    NSA_DYNAMIC_SHARED(float, s_chunk);
    const dims *c = &a.c;
    float *s_q = s_chunk + smem.chunk + warp_id() * smem.warp;
    float *s_p = s_q + c->dk8 * TILE_ROWS, *s_ring = s_p + BLOCK * TILE_ROWS;
    row_stats *s_stats = (row_stats *)(s_ring + smem.ring);
    const tile_coord coord =
        tile_coord_of(&a, a.n_tiles - 1 - blockIdx.x / c->Hkv, (int)(blockIdx.x % c->Hkv));
    const bool live = coord.t >= 0;
    const int n_visible = live ? visible_cmp(c, coord.t) : 0, last = last_position(&a, &coord);
    const int n_last = visible_cmp(c, last), own_block = coord.t / c->lb;
    for (int g16 = 0; g16 < c->GT; g16++) {
        if (live)
            load_query(&a, &coord, g16, s_q);
        attend_visible<N_TILES>(&a, &coord, g16, n_visible, n_last, smem, s_chunk, s_q, s_p,
                                s_stats + g16 * TILE_ROWS);
    }
    __syncwarp();
    if (!a.importance && a.forced)
        return;
    /* If all blocks fit into the list, their order does not matter. */
    const bool need_ranking = a.importance || last / c->lb + 1 > c->n;
    const int64_t group = coord.row * c->Hkv + coord.head;
    float *g_imp = a.importance && live ? a.importance + group * a.J : NULL;
    topk best;
    int n0, local, done = 0;
    topk_init(&best, live ? c->n - forced_blocks(c, own_block, &n0, &local) : 0);
    for (int b = 0; need_ranking && b * BLOCK < n_last; b += 2) {
        const int64_t block_stride = (b + 1) * BLOCK < n_last ? (int64_t)c->dk8 * BLOCK : 0;
        for (int g16 = 0; g16 < c->GT; g16++) {
            acc_16x64 s[2]; /* two blocks; no outputs need registers */
            if (live && c->GT > 1)
                load_query(&a, &coord, g16, s_q);
            shared_scores<2>(s, s_q, keys_of(&a.in[CMP], c, &coord, CMP, b), block_stride, s_chunk,
                             smem.chunk, c->dk8, live);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (live)
                    add_to_ring(&s[i], s_stats + g16 * TILE_ROWS, c->scale2, c->G - g16 * TILE_ROWS,
                                (b + i) * BLOCK, g16 > 0, s_ring, smem.ring);
            }
        }
        const int end = live ? min(own_block + 1, (b + 2) * BLOCK / (c->lb / c->d)) : 0;
        add_importance(c, s_ring, smem.ring, n_visible, own_block, done, end, !a.forced, &best,
                       g_imp);
        done = max(done, end);
    }
    if (!live)
        return;
    add_importance(c, s_ring, smem.ring, need_ranking ? n_visible : 0, own_block, done,
                   own_block + 1, !a.forced, &best, g_imp);
    for (int64_t j = own_block + 1 + lane_id(); g_imp && j < a.J; j += WARP_SIZE)
        g_imp[j] = 0; /* blocks after the query's own */
    if (!a.forced)
        topk_emit(&best, c, own_block, (int *)s_p, a.block_idx + group * c->n);
}

/* ------------------------------------------- window, selected blocks, gate */

/* The next memory block from `block` on that some row of the CUDA block has in its window t-w < s
 * <= t; INT32_MAX when there is none. Rows may lie far apart if the caller listed them. */
static __device__ __forceinline__ int next_window_block(const attend_args *a,
                                                        const tile_coord *coord, int window,
                                                        int block) {
    int next = INT32_MAX;
    for (int i = 0; i < coord->rows->count; i++) {
        const int t = a->row_t[coord->rows->first + i];
        const int first = max(t - window + 1, 0) / BLOCK;
        if (t / BLOCK >= block)
            next = min(next, max(first, block));
    }
    return next;
}

/* Attention over all tokens t - window < s <= t, with one branch's keys and values. */
template <int N_TILES>
static __device__ __forceinline__ void attend_window(softmax_state<N_TILES> *x,
                                                     const attend_args *a, const tile_coord *coord,
                                                     int branch, int window, smem_layout smem,
                                                     float *s_chunk, float *s_q, float *s_p) {
    const kv_blocks *in = &a->in[branch];
    const int lo = max(coord->t - window + 1, 0), last = last_position(a, coord);
    softmax_init(x);
    for (int b = 0; (b = next_window_block(a, coord, window, b)) != INT32_MAX; b++)
        attend_shared_block<N_TILES>(
            x, &a->c, keys_of(in, &a->c, coord, branch, b), values_of(in, &a->c, coord, branch, b),
            s_chunk, smem.chunk, s_q, s_p,
            coord->t < 0 ? 0 : range_mask(lo - b * BLOCK, coord->t + 1 - b * BLOCK),
            range_mask(0, last + 1 - b * BLOCK));
    softmax_finalize(x);
}

/* Window and selected attention and the gated sum (Eq. 5, 12) of one tile of heads. The CUDA
 * block's rows share window blocks; each warp reads its selected blocks alone. Grid: a CUDA block
 * for each kv head, tile of rows and tile of heads, kv head outermost, so that one head's keys and
 * values stay in the second-level cache. Block: a warp for each query row, with 16 of its heads.
 * Shared: smem_layout without ring buffers, 192 KiB at 128/128. */
template <int N_TILES>
static __global__ void __launch_bounds__(QUERY_TILE_OF(N_TILES) * WARP_SIZE, 1)
    attend_slc_win_kernel(attend_args a, smem_layout smem) {
    NSA_DYNAMIC_SHARED(float, s_chunk);
    const dims *c = &a.c;
    float *s_q = s_chunk + smem.chunk + warp_id() * smem.warp, *s_p = s_q + c->dk8 * TILE_ROWS;
    const int64_t unit = blockIdx.x / c->GT; /* the grid replaces stage 02's loop over units */
    const int g16 = (int)(blockIdx.x % c->GT);
    const tile_coord coord = tile_coord_of(&a, unit % a.n_tiles, (int)(unit / a.n_tiles));
    softmax_state<N_TILES> x;
    if (coord.t >= 0)
        load_query(&a, &coord, g16, s_q);
    attend_window<N_TILES>(&x, &a, &coord, WIN, c->w, smem, s_chunk, s_q, s_p);
    if (coord.t < 0)
        return;
    accumulate_gated<N_TILES>(&a, &x, &coord, g16, WIN, CMP, false);
    const int32_t *g_idx = a.block_idx + (coord.row * c->Hkv + coord.head) * c->n;
    block_iter iter = {0, 0};
    uint64_t mask;
    int block;
    softmax_init(&x);
    while (next_block(&iter, g_idx, c, coord.t, &block, &mask))
        attend_global_block<N_TILES>(&x, c, keys_of(&a.in[SLC], c, &coord, SLC, block),
                                     values_of(&a.in[SLC], c, &coord, SLC, block), s_q, s_p, mask,
                                     NULL);
    softmax_finalize(&x);
    accumulate_gated<N_TILES>(&a, &x, &coord, g16, SLC, -1, true);
}

/* Plain causal attention: an unlimited window. Grid as above, the last rows first; block and shared
 * memory as above. */
template <int N_TILES>
static __global__ void __launch_bounds__(QUERY_TILE_OF(N_TILES) * WARP_SIZE, 1)
    attend_causal_kernel(attend_args a, smem_layout smem, int branch, real *g_out) {
    NSA_DYNAMIC_SHARED(float, s_chunk);
    const dims *c = &a.c;
    float *s_q = s_chunk + smem.chunk + warp_id() * smem.warp, *s_p = s_q + c->dk8 * TILE_ROWS;
    const int64_t unit = blockIdx.x / c->GT;
    const int g16 = (int)(blockIdx.x % c->GT);
    const tile_coord coord =
        tile_coord_of(&a, a.n_tiles - 1 - unit % a.n_tiles, (int)(unit / a.n_tiles));
    softmax_state<N_TILES> x;
    if (coord.t >= 0)
        load_query(&a, &coord, g16, s_q);
    attend_window<N_TILES>(&x, &a, &coord, branch, INT32_MAX, smem, s_chunk, s_q, s_p);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const int g = g16 * TILE_ROWS + lane_row() + i;
        float *to = g_out + (coord.row * c->Hq + coord.head * c->G + g) * c->dvp + lane_col();
#pragma unroll
        for (int s = 0; s < N_TILES; s++) {
            const float *o = x.o[s].x[i];
            if (coord.t >= 0 && g < c->G)
                store4(to + s * TILE_COLS, o[0], o[1], o[2], o[3]);
        }
    }
}

/* ---------------------------------------------------------------- launches */

smem_layout make_smem_layout(const stage *st, int warps, int with_ring) {
    const dims *c = &st->c;
    smem_layout smem;
    /* 4 KiB a warp: each makes four loads; at least four rows of values */
    smem.chunk = warps * 1024 > LANE_COLS * c->dvp ? warps * 1024 : LANE_COLS * c->dvp;
    smem.ring = with_ring ? ring_size(c) : 0;
    smem.warp = c->dk8 * TILE_ROWS + BLOCK * TILE_ROWS + smem.ring +
                (with_ring ? c->GT * TILE_ROWS * 2 : 0);
    return smem;
}

size_t smem_bytes(smem_layout smem, int warps) {
    return (size_t)(smem.chunk + warps * smem.warp) * sizeof(float);
}

template <int N_TILES> static nsa_status allow_shared(void) {
    TRY(nsa_allow_shared(attend_cmp_kernel<N_TILES>));
    TRY(nsa_allow_shared(attend_slc_win_kernel<N_TILES>));
    return nsa_allow_shared(attend_causal_kernel<N_TILES>);
}

/* Rows of a CUDA block: as many as registers and shared memory allow. */
nsa_status open_attend(stage *st) {
    int device, max_shared;
    NSA_CUDA(cudaGetDevice(&device));
    NSA_CUDA(cudaDeviceGetAttribute(&max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    st->warps = QUERY_TILE_OF(st->c.dvp / TILE_COLS);
    while (st->warps > 1 &&
           smem_bytes(make_smem_layout(st, st->warps, 1), st->warps) > (size_t)max_shared)
        st->warps--;
    switch (st->c.dvp / TILE_COLS) {
    case 1:
        return allow_shared<1>();
    case 2:
        return allow_shared<2>();
    case 3:
        return allow_shared<3>();
    default:
        return allow_shared<4>();
    }
}

/* One CUDA block of st->warps warps for each unit. */
template <int N_TILES>
static void launch(stage *st, const attend_args *a, int kernel, int branch, real *out) {
    const int64_t units = a->n_tiles * a->c.Hkv;
    const dim3 block((unsigned)(st->warps * WARP_SIZE));
    const smem_layout cmp = make_smem_layout(st, st->warps, 1),
                      rest = make_smem_layout(st, st->warps, 0);
    const dim3 grid((unsigned)(kernel == CMP ? units : units * a->c.GT));
    if (kernel == CMP)
        NSA_LAUNCH(attend_cmp_kernel<N_TILES>, grid, block, smem_bytes(cmp, st->warps), st->stream,
                   *a, cmp);
    else if (kernel == SLC)
        NSA_LAUNCH(attend_slc_win_kernel<N_TILES>, grid, block, smem_bytes(rest, st->warps),
                   st->stream, *a, rest);
    else
        NSA_LAUNCH(attend_causal_kernel<N_TILES>, grid, block, smem_bytes(rest, st->warps),
                   st->stream, *a, rest, branch, out);
}

static nsa_status launch_any(stage *st, const attend_args *a, int kernel, int branch, real *out) {
    if (a->n_tiles == 0)
        return NSA_OK;
    switch (a->c.dvp / TILE_COLS) {
    case 1:
        launch<1>(st, a, kernel, branch, out);
        break;
    case 2:
        launch<2>(st, a, kernel, branch, out);
        break;
    case 3:
        launch<3>(st, a, kernel, branch, out);
        break;
    default:
        launch<4>(st, a, kernel, branch, out);
    }
    NSA_LAUNCHED(kernel == CMP ? "attend_cmp" : kernel == SLC ? "attend_slc_win" : "attend_causal");
    return NSA_OK;
}

nsa_status attend_cmp(stage *st, const attend_args *args) {
    return launch_any(st, args, CMP, 0, NULL);
}

nsa_status attend_slc_win(stage *st, const attend_args *args) {
    return launch_any(st, args, SLC, 0, NULL);
}

nsa_status attend_causal(stage *st, const attend_args *args, int branch, real *out) {
    return launch_any(st, args, RAW, branch, out);
}
