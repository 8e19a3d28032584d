/** @file
 *  @brief The three branches and their gate, two kernels: the compressed branch with importance and
 *  choice; then window, selected blocks and the gated sum. A warp is a query row of one group. */
#include "attend.cuh"
#include "select.cuh"

/* Queries of a CUDA block, at most: a warp each, and registers for one CUDA block a multiprocessor.
 * Wide outputs take more of them. STRIPS = dvp/64, a constant, so that outputs are registers. */
#define QUERIES_OF(STRIPS) ((STRIPS) <= 2 ? (int)QUERIES : (int)QUERIES * 2 / 3)

/* What a warp works on. */
typedef struct place {
    int head;                 /* kv head */
    int64_t row;              /* result row */
    int t;                    /* its position, -1 for a warp without a row */
    const tile_of_rows *rows; /* of the CUDA block */
    const sequence *sq;
} place;

static __device__ __forceinline__ place place_of(const rows_args *a, int64_t tile, int head) {
    place at;
    at.head = head;
    at.rows = &a->tiles[tile];
    at.sq = &a->seqs[at.rows->sequence];
    at.row = at.rows->first + this_warp();
    at.t = this_warp() < at.rows->count ? a->row_t[at.row] : -1;
    return at;
}

/* Position of the CUDA block's last row, the one that sees most. */
static __device__ __forceinline__ int last_position(const rows_args *a, const place *at) {
    return a->row_t[at->rows->first + at->rows->count - 1];
}

static __device__ __forceinline__ const real *keys_at(const kv_blocks *in, const dims *c,
                                                      const place *at, int branch, int block) {
    return in->kt + (at->head * in->stride + at->sq->first[branch] + block) * c->dk8 * BLOCK;
}

static __device__ __forceinline__ const real *values_at(const kv_blocks *in, const dims *c,
                                                        const place *at, int branch, int block) {
    return in->v + (at->head * in->stride + at->sq->first[branch] + block) * BLOCK * c->dvp;
}

/* Q^T of the warp's row, tile g16 of its heads, into s_q. */
static __device__ __forceinline__ void load_query(const rows_args *a, const place *at, int g16,
                                                  float *s_q) {
    const int64_t tile = (at->row * a->c.Hkv + at->head) * a->c.GT + g16;
    load_tile(s_q, a->q_t + tile * a->c.dk8 * ROWS, a->c.dk8 * ROWS);
}

/* Statistics of a finished tile of heads; a lane of each row group has them all. */
template <int STRIPS>
static __device__ __forceinline__ void keep_stats(const attention<STRIPS> *x, row_stats *to,
                                                  int apart, int heads) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        if (this_lane() < 2 && first_row() + i < heads) {
            to[(first_row() + i) * apart].most = x->most[i];
            to[(first_row() + i) * apart].over = x->sum[i];
        }
    }
}

/* Write branch outputs of a finished tile: out_x as they are, out (+)= gate times them. `before`,
 * if not negative, is a branch whose outputs have been written to out_x and join the sum here. */
template <int STRIPS>
static __device__ __forceinline__ void write_out(const rows_args *a, const attention<STRIPS> *x,
                                                 const place *at, int g16, int branch, int before,
                                                 bool add) {
    const dims *c = &a->c;
    const int heads = c->G - g16 * ROWS;
    const int64_t head = at->row * c->Hq + at->head * c->G + g16 * ROWS;
    if (a->stats)
        keep_stats(x, a->stats + head * BRANCHES + branch, BRANCHES, heads);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        if (first_row() + i >= heads)
            continue;
        const int64_t h = head + first_row() + i;
        const float *g = a->gate + h * BRANCHES;
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            const int64_t col = h * c->dvp + s * STRIP + first_col();
            const float *o = x->o[s].at[i];
            if (a->out_x[branch])
                store4(a->out_x[branch] + col, o[0], o[1], o[2], o[3]);
            if (branch == CMP)
                continue;
            float4 sum = add ? load4(a->out + col) : make_float4(0, 0, 0, 0);
            if (before >= 0) {
                const float4 b = load4(a->out_x[before] + col);
                sum =
                    make_float4(g[before] * b.x, g[before] * b.y, g[before] * b.z, g[before] * b.w);
            }
            store4(a->out + col, sum.x + g[branch] * o[0], sum.y + g[branch] * o[1],
                   sum.z + g[branch] * o[2], sum.w + g[branch] * o[3]);
        }
    }
}

/* -------------------------------------------------------- compressed branch */

/* Compressed attention of one tile of heads: all visible blocks, online softmax. n_visible: keys
 * that the warp's query sees, n_last: those that the CUDA block's last query does. s_stats [16] */
template <int STRIPS>
static __device__ __forceinline__ void attend_visible(const rows_args *a, const place *at, int g16,
                                                      int n_visible, int n_last, shared_plan plan,
                                                      float *s_chunk, float *s_q, float *s_p,
                                                      row_stats *s_stats) {
    const kv_blocks *in = &a->in[CMP];
    const int heads = at->t < 0 ? 0 : a->c.G - g16 * ROWS;
    const int64_t head = at->row * a->c.Hq + at->head * a->c.G + g16 * ROWS;
    real *g_o = a->out_x[CMP] + head * a->c.dvp;
    attention<STRIPS> x;
    begin(&x);
    for (int b = 0; b * BLOCK < n_last; b++) {
        if (b > 0 && b % ASIDE == 0) {
            if (b > ASIDE)
                take_back(&x, g_o, a->c.dvp, heads, a->c.scale2, s_stats);
            set_aside(&x, g_o, a->c.dvp, heads, s_stats);
        }
        shared_block<STRIPS>(&x, &a->c, keys_at(in, &a->c, at, CMP, b),
                             values_at(in, &a->c, at, CMP, b), s_chunk, plan.chunk, s_q, s_p,
                             bits(0, n_visible - b * BLOCK), bits(0, n_last - b * BLOCK));
    }
    if (n_last > ASIDE * BLOCK)
        take_back(&x, g_o, a->c.dvp, heads, a->c.scale2, s_stats);
    finish(&x);
    if (at->t < 0)
        return;
    keep_stats(&x, s_stats, 1, ROWS);
    write_out<STRIPS>(a, &x, at, g16, CMP, -1, false);
}

/* Compressed attention, importance and choice (Eq. 8-11), in two passes over the keys: the first
 * finds each row's largest score and sum, the second has the probabilities themselves. Grid: a CUDA
 * block for each kv head and tile of rows, the last rows first: they see most. Block: a warp for
 * each query row of the tile, which owns its G heads. Shared: shared_plan, 205 KiB at 128/128. */
template <int STRIPS>
static __global__ void __launch_bounds__(QUERIES_OF(STRIPS) * WARP, 1)
    attend_cmp_kernel(rows_args a, shared_plan plan) {
    NSA_DYNAMIC_SHARED(float, s_chunk);
    const dims *c = &a.c;
    float *s_q = s_chunk + plan.chunk + this_warp() * plan.warp;
    float *s_p = s_q + c->dk8 * ROWS, *s_ring = s_p + BLOCK * ROWS;
    row_stats *s_stats = (row_stats *)(s_ring + plan.ring);
    const place at = place_of(&a, a.n_tiles - 1 - blockIdx.x / c->Hkv, (int)(blockIdx.x % c->Hkv));
    const bool live = at.t >= 0;
    const int n_visible = live ? visible(c, at.t) : 0, last = last_position(&a, &at);
    const int n_last = visible(c, last), own = at.t / c->lb;
    for (int g16 = 0; g16 < c->GT; g16++) {
        if (live)
            load_query(&a, &at, g16, s_q);
        attend_visible<STRIPS>(&a, &at, g16, n_visible, n_last, plan, s_chunk, s_q, s_p,
                               s_stats + g16 * ROWS);
    }
    __syncwarp();
    if (!a.importance && a.forced)
        return;
    /* As many blocks as places: which is more important does not matter. */
    const bool rank_them = a.importance || last / c->lb + 1 > c->n;
    const int64_t group = at.row * c->Hkv + at.head;
    float *g_imp = a.importance && live ? a.importance + group * a.J : NULL;
    picks best;
    int n0, local, done = 0;
    begin_picks(&best, live ? c->n - forced_blocks(c, own, &n0, &local) : 0);
    for (int b = 0; rank_them && b * BLOCK < n_last; b += 2) {
        const int64_t apart = (b + 1) * BLOCK < n_last ? (int64_t)c->dk8 * BLOCK : 0;
        for (int g16 = 0; g16 < c->GT; g16++) {
            piece s[2]; /* two blocks at a time: no outputs need registers. The last may be alone */
            if (live && c->GT > 1)
                load_query(&a, &at, g16, s_q);
            shared_scores<2>(s, s_q, keys_at(&a.in[CMP], c, &at, CMP, b), apart, s_chunk,
                             plan.chunk, c->dk8, live);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (live)
                    add_to_ring(&s[i], s_stats + g16 * ROWS, c->scale2, c->G - g16 * ROWS,
                                (b + i) * BLOCK, g16 > 0, s_ring, plan.ring);
            }
        }
        const int end = live ? min(own + 1, (b + 2) * BLOCK / (c->lb / c->d)) : 0;
        add_importance(c, s_ring, plan.ring, n_visible, own, done, end, !a.forced, &best, g_imp);
        done = max(done, end);
    }
    if (!live)
        return;
    add_importance(c, s_ring, plan.ring, rank_them ? n_visible : 0, own, done, own + 1, !a.forced,
                   &best, g_imp);
    for (int64_t j = own + 1 + this_lane(); g_imp && j < a.J; j += WARP)
        g_imp[j] = 0; /* past the query's own block */
    if (!a.forced)
        emit(&best, c, own, (int *)s_p, a.block_idx + group * c->n);
}

/* ------------------------------------------- window, selected blocks, gate */

/* The next memory block from `block` on that some row of the CUDA block has in its window t-w < s
 * <= t; INT32_MAX when there is none. Rows may lie far apart, if the caller listed some. */
static __device__ __forceinline__ int next_window(const rows_args *a, const place *at, int window,
                                                  int block) {
    int next = INT32_MAX;
    for (int i = 0; i < at->rows->count; i++) {
        const int t = a->row_t[at->rows->first + i];
        const int first = max(t - window + 1, 0) / BLOCK;
        if (t / BLOCK >= block)
            next = min(next, max(first, block));
    }
    return next;
}

/* All tokens t - window < s <= t of one branch's pair. */
template <int STRIPS>
static __device__ __forceinline__ void attend_window(attention<STRIPS> *x, const rows_args *a,
                                                     const place *at, int branch, int window,
                                                     shared_plan plan, float *s_chunk, float *s_q,
                                                     float *s_p) {
    const kv_blocks *in = &a->in[branch];
    const int lo = max(at->t - window + 1, 0), last = last_position(a, at);
    begin(x);
    for (int b = 0; (b = next_window(a, at, window, b)) != INT32_MAX; b++)
        shared_block<STRIPS>(x, &a->c, keys_at(in, &a->c, at, branch, b),
                             values_at(in, &a->c, at, branch, b), s_chunk, plan.chunk, s_q, s_p,
                             at->t < 0 ? 0 : bits(lo - b * BLOCK, at->t + 1 - b * BLOCK),
                             bits(0, last + 1 - b * BLOCK));
    finish(x);
}

/* Window and selected attention and the gated sum (Eq. 5, 12) of one tile of heads. Window blocks
 * are shared by the CUDA block's rows; selected ones a warp reads for itself. Grid: a CUDA block
 * for each kv head, tile of rows and tile of heads, kv head outermost: one head's keys and values
 * stay in the second-level cache. Block: a warp for each query row, which owns 16 of its heads.
 * Shared: shared_plan without rings, 192 KiB at 128/128. */
template <int STRIPS>
static __global__ void __launch_bounds__(QUERIES_OF(STRIPS) * WARP, 1)
    attend_slc_win_kernel(rows_args a, shared_plan plan) {
    NSA_DYNAMIC_SHARED(float, s_chunk);
    const dims *c = &a.c;
    float *s_q = s_chunk + plan.chunk + this_warp() * plan.warp, *s_p = s_q + c->dk8 * ROWS;
    const int64_t unit = blockIdx.x / c->GT; /* stage 02's loop over units has become the grid */
    const int g16 = (int)(blockIdx.x % c->GT);
    const place at = place_of(&a, unit % a.n_tiles, (int)(unit / a.n_tiles));
    attention<STRIPS> x;
    if (at.t >= 0)
        load_query(&a, &at, g16, s_q);
    attend_window<STRIPS>(&x, &a, &at, WIN, c->w, plan, s_chunk, s_q, s_p);
    if (at.t < 0)
        return;
    write_out<STRIPS>(&a, &x, &at, g16, WIN, CMP, false);
    const int32_t *g_idx = a.block_idx + (at.row * c->Hkv + at.head) * c->n;
    walk w = {0, 0};
    uint64_t mask;
    int block;
    begin(&x);
    while (next_visit(&w, g_idx, c, at.t, &block, &mask))
        own_block<STRIPS>(&x, c, keys_at(&a.in[SLC], c, &at, SLC, block),
                          values_at(&a.in[SLC], c, &at, SLC, block), s_q, s_p, mask, NULL);
    finish(&x);
    write_out<STRIPS>(&a, &x, &at, g16, SLC, -1, true);
}

/* Plain causal attention: a window without an end. Grid as above, the last rows first; block and
 * shared memory as above. */
template <int STRIPS>
static __global__ void __launch_bounds__(QUERIES_OF(STRIPS) * WARP, 1)
    attend_causal_kernel(rows_args a, shared_plan plan, int branch, real *g_out) {
    NSA_DYNAMIC_SHARED(float, s_chunk);
    const dims *c = &a.c;
    float *s_q = s_chunk + plan.chunk + this_warp() * plan.warp, *s_p = s_q + c->dk8 * ROWS;
    const int64_t unit = blockIdx.x / c->GT;
    const int g16 = (int)(blockIdx.x % c->GT);
    const place at = place_of(&a, a.n_tiles - 1 - unit % a.n_tiles, (int)(unit / a.n_tiles));
    attention<STRIPS> x;
    if (at.t >= 0)
        load_query(&a, &at, g16, s_q);
    attend_window<STRIPS>(&x, &a, &at, branch, INT32_MAX, plan, s_chunk, s_q, s_p);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const int g = g16 * ROWS + first_row() + i;
        float *to = g_out + (at.row * c->Hq + at.head * c->G + g) * c->dvp + first_col();
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            const float *o = x.o[s].at[i];
            if (at.t >= 0 && g < c->G)
                store4(to + s * STRIP, o[0], o[1], o[2], o[3]);
        }
    }
}

/* ---------------------------------------------------------------- launches */

shared_plan plan_shared(const stage *st, int warps, int with_ring) {
    const dims *c = &st->c;
    shared_plan plan;
    /* 4 KiB a warp, so that each has four loads to make; at least four rows of values */
    plan.chunk = warps * 1024 > LANE_COLS * c->dvp ? warps * 1024 : LANE_COLS * c->dvp;
    plan.ring = with_ring ? ring_size(c) : 0;
    plan.warp = c->dk8 * ROWS + BLOCK * ROWS + plan.ring + (with_ring ? c->GT * ROWS * 2 : 0);
    return plan;
}

size_t plan_bytes(shared_plan plan, int warps) {
    return (size_t)(plan.chunk + warps * plan.warp) * sizeof(float);
}

template <int STRIPS> static nsa_status allow_strips(void) {
    TRY(nsa_allow_shared(attend_cmp_kernel<STRIPS>));
    TRY(nsa_allow_shared(attend_slc_win_kernel<STRIPS>));
    return nsa_allow_shared(attend_causal_kernel<STRIPS>);
}

/* As many rows to a CUDA block as its registers and shared memory have room for. */
nsa_status open_attend(stage *st) {
    int device, most;
    NSA_CUDA(cudaGetDevice(&device));
    NSA_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    st->warps = QUERIES_OF(st->c.dvp / STRIP);
    while (st->warps > 1 && plan_bytes(plan_shared(st, st->warps, 1), st->warps) > (size_t)most)
        st->warps--;
    switch (st->c.dvp / STRIP) {
    case 1:
        return allow_strips<1>();
    case 2:
        return allow_strips<2>();
    case 3:
        return allow_strips<3>();
    default:
        return allow_strips<4>();
    }
}

/* One CUDA block for each of `units`, of st->warps warps. */
template <int STRIPS>
static void launch(stage *st, const rows_args *a, int kernel, int branch, real *out) {
    const int64_t units = a->n_tiles * a->c.Hkv;
    const dim3 block((unsigned)(st->warps * WARP));
    const shared_plan cmp = plan_shared(st, st->warps, 1), rest = plan_shared(st, st->warps, 0);
    const dim3 grid((unsigned)(kernel == CMP ? units : units * a->c.GT));
    if (kernel == CMP)
        NSA_LAUNCH(attend_cmp_kernel<STRIPS>, grid, block, plan_bytes(cmp, st->warps), st->stream,
                   *a, cmp);
    else if (kernel == SLC)
        NSA_LAUNCH(attend_slc_win_kernel<STRIPS>, grid, block, plan_bytes(rest, st->warps),
                   st->stream, *a, rest);
    else
        NSA_LAUNCH(attend_causal_kernel<STRIPS>, grid, block, plan_bytes(rest, st->warps),
                   st->stream, *a, rest, branch, out);
}

static nsa_status launch_any(stage *st, const rows_args *a, int kernel, int branch, real *out) {
    if (a->n_tiles == 0)
        return NSA_OK;
    switch (a->c.dvp / STRIP) {
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

nsa_status attend_cmp(stage *st, const rows_args *args) {
    return launch_any(st, args, CMP, 0, NULL);
}

nsa_status attend_slc_win(stage *st, const rows_args *args) {
    return launch_any(st, args, SLC, 0, NULL);
}

nsa_status attend_causal(stage *st, const rows_args *args, int branch, real *out) {
    return launch_any(st, args, RAW, branch, out);
}
