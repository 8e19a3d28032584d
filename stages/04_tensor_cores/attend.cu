/** @file
 *  @brief The three branches and their gate in two kernels: the compressed branch, whose keys
 *  neighbouring queries share; then window and selected blocks, which each query reads itself. */
#include "attend.cuh"

enum {
    ATTEND_WARPS = 4, /* of a CUDA block; two such blocks fill a multiprocessor's registers */
    SLC_WARPS = 4,    /* the same for window and selected blocks */
    SLC_CTAS = 2
};

/* Row tiles of a warp: two, so that every fragment of B is multiplied twice; wide outputs leave
 * registers for one. */
#define WARP_TILES(DV) ((DV) <= 128 ? 2 : 1)

/* 16 bytes each, that a lane loads or stores at a time. */
#define QUADS(DV) ((DV) < 64 ? 2 : 4)

/* N quads of one head's row, from column `col` + offset[n] on: out = or += gate o; the first branch
 * writes, the others add (Eq. 5). For backward and for those who want them, o itself is stored too.
 * All loads come before the stores: each would wait for the one before, which may have the same
 * address for all that the compiler knows. */
template <int N>
static __device__ __forceinline__ void add_gated(const attend_args *a, int64_t head, int branch,
                                                 int col, const float4 (&o)[N],
                                                 const int (&offset)[N]) {
    const float gate = a->gate[head * BRANCHES + branch];
    real *out = a->out + head * a->c.dvp + col;
    float4 sum[N];
    for (int n = 0; n < N; n++)
        sum[n] = branch == CMP ? make_float4(0, 0, 0, 0) : *(const float4 *)(out + offset[n]);
    for (int n = 0; n < N; n++)
        *(float4 *)(out + offset[n]) =
            make_float4(sum[n].x + gate * o[n].x, sum[n].y + gate * o[n].y,
                        sum[n].z + gate * o[n].z, sum[n].w + gate * o[n].w);
    if (!a->out_x[branch])
        return;
    out = a->out_x[branch] + head * a->c.dvp + col;
    for (int n = 0; n < N; n++)
        *(float4 *)(out + offset[n]) = o[n];
}

/* Store the statistics of a finished row tile; one lane of each row writes. */
template <int DV>
static __device__ __forceinline__ void store_stats(const attend_args *a, int64_t head, int heads,
                                                   int branch, const softmax_state<DV> *x) {
    for (int i = 0; i < 2; i++) {
        if (lane_col() == 0 && lane_row() + 8 * i < heads)
            a->stats[(head + lane_row() + 8 * i) * BRANCHES + branch] = {x->row_max[i],
                                                                         x->row_sum[i]};
    }
}

/* -------------------------------------------------------- shared blocks */

/* The shared memory of a CUDA block. */
template <int DK, int DV> struct attend_smem {
    bf16 q[ATTEND_WARPS * WARP_TILES(DV) * TILE_ROWS * DK]; /* the CUDA block's rows */
    bf16 k[BLOCK * DK], v[BLOCK * DV];                      /* a block of keys and its values */
};

/* Attention of the warp's M row tiles over the blocks of one branch, which all warps share. While
 * the scores are computed the values are on their way, and while these are multiplied the next
 * block's keys. */
template <int DK, int DV, int M>
static __device__ __forceinline__ void attend_shared(softmax_state<DV> (&x)[M],
                                                     const attend_args *a, const tile_coord *coord,
                                                     attend_smem<DK, DV> *m, int branch) {
    const dims *c = &a->c;
    const int first = warp_id() * M, threads = ATTEND_WARPS * WARP_SIZE;
    const block_ptrs start = first_block_of<DK, DV>(a, coord->sq, coord->kvh, branch);
    const int end = visible_range(c, branch, coord->last_t).end; /* all begin at key 0 */
    acc_tiles<DV / TILE_N> *o[M];
    key_range range[M];
#pragma unroll
    for (int i = 0; i < M; i++) {
        softmax_init(&x[i]);
        o[i] = &x[i].o;
        range[i] = visible_range(c, branch, position_of(coord, first + i));
    }
    if (end > 0)
        copy_rows_async<DK, BLOCK>(m->k, start.k, (int)threadIdx.x, threads);
    nsa_cp_async_commit();
    for (int block = 0; block * BLOCK < end; block++) {
        frag_a p[M][KEY_STEPS];
        uint64_t mask[M], any = 0;
        nsa_cp_async_wait<0>();
        __syncthreads(); /* the keys have arrived, and the last block's values are used */
        copy_rows_async<DV, BLOCK>(m->v, block_after<DK, DV>(start, block).v, (int)threadIdx.x,
                                   threads);
        nsa_cp_async_commit();
        for (int i = 0; i < M; i++) {
            mask[i] = mask_of(range[i], block);
            any |= mask[i];
        }
        if (any) {
            acc_tiles<KEY_TILES> s[M] = {};
            add_scores<DK>(s, m->q + first * TILE_ROWS * DK, m->k);
#pragma unroll
            for (int i = 0; i < M; i++) {
                online_softmax_update(&x[i], &s[i], mask[i], c->scale2);
                pack_tiles(p[i], s[i]);
            }
        }
        nsa_cp_async_wait<0>();
        __syncthreads(); /* the values have arrived, and the keys are used */
        if ((block + 1) * BLOCK < end)
            copy_rows_async<DK, BLOCK>(m->k, block_after<DK, DV>(start, block + 1).k,
                                       (int)threadIdx.x, threads);
        nsa_cp_async_commit();
        if (any)
            matmul_masked<DV>(o, p, m->v, mask);
    }
    nsa_cp_async_wait<0>(); /* of Q, if there was no key */
#pragma unroll
    for (int i = 0; i < M; i++)
        softmax_finalize(&x[i]);
}

/* Compressed attention (Eq. 8) of one tile of heads; or, CAUSAL, plain causal attention, over a
 * window without a beginning (a.c.w is INT32_MAX). Grid: a CUDA block for each kv head, tile of
 * heads and tile of rows, the last rows first, because they see the most. Block: 4 warps with M
 * neighbouring rows each. Shared: Q of all rows, one block of keys and one of values, 64 KiB at
 * 128/128. */
template <int DK, int DV, bool CAUSAL>
static __global__ void __launch_bounds__(ATTEND_WARPS *WARP_SIZE, 2)
    attend_cmp_kernel(attend_args a) {
    NSA_DYNAMIC_SHARED(void, s_base);
    enum { M = WARP_TILES(DV) };
    const dims *c = &a.c;
    attend_smem<DK, DV> *m = (attend_smem<DK, DV> *)s_base;
    const int64_t unit = blockIdx.x / c->GT;
    const int g16 = (int)(blockIdx.x % c->GT), heads = min((int)TILE_ROWS, c->G - g16 * TILE_ROWS);
    const int pair_row = lane_row() + lane_id() % 2 * 8; /* of pair_quad() */
    const tile_coord coord =
        tile_coord_of(&a, &a.tiles[a.n_tiles - 1 - unit / c->Hkv], (int)(unit % c->Hkv));
    softmax_state<DV> x[M];
    load_row_tiles<DK, ATTEND_WARPS>(m->q, a.q, c, &coord, g16);
    attend_shared<DK, DV, M>(x, &a, &coord, m, CAUSAL ? WIN : CMP);
#pragma unroll
    for (int k = 0; k < M; k++) {
        const int row = warp_id() * M + k;
        const int64_t head = (coord.rows.first + row) * c->Hq + coord.kvh * c->G + g16 * TILE_ROWS;
        if (row >= coord.rows.count)
            break;
        if (CAUSAL)
            store_acc(a.out + head * c->dvp, c->dvp, &x[k].o, heads);
        else
            store_stats(&a, head, heads, CMP, &x[k]);
#pragma unroll
        for (int n = 0; !CAUSAL && n < DV / TILE_N; n += QUADS(DV)) {
            float4 o[QUADS(DV)];
            int offset[QUADS(DV)];
            for (int i = 0; i < QUADS(DV); i++) {
                o[i] = pair_quad(x[k].o.x[n + i]);
                offset[i] = (n + i) * TILE_N;
            }
            if (pair_row < heads)
                add_gated(&a, head + pair_row, CMP, lane_col() / 4 * 4, o, offset);
        }
    }
}

/* ------------------------------------------- window, selected blocks, gate */

/* The end of a branch of one warp: its statistics, and its part of the gated sum. */
template <int DV>
static __device__ __forceinline__ void add_branch(const attend_args *a, softmax_state<DV> *x,
                                                  int64_t head, int heads, int branch) {
    softmax_finalize(x);
    store_stats(a, head, heads, branch, x);
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int n = 0; n < DV / 16; n += QUADS(DV)) {
            float4 o[QUADS(DV)];
            int offset[QUADS(DV)];
#pragma unroll
            for (int k = 0; k < QUADS(DV); k++) {
                o[k] = quad_of(x->o, n + k, i);
                offset[k] = quad_offset(n + k);
            }
            if (lane_row() + 8 * i < heads)
                add_gated(a, head + lane_row() + 8 * i, branch, quad_col(), o, offset);
        }
    }
}

/* Window and selected attention and the gated sum (Eq. 5, 12). Neighbours select differently, so
 * each warp reads its blocks alone, and straight into registers; those of the window, which its
 * neighbours want at about the same time, come from the first-level cache. Grid: a warp for each kv
 * head, row and tile of heads, kv head outermost, so that one head's keys and values stay in the
 * second-level cache. Shared: none, which leaves all of it to the first-level cache. */
template <int DK, int DV>
static __global__ void __launch_bounds__(SLC_WARPS *WARP_SIZE, SLC_CTAS)
    attend_slc_win_kernel(attend_args a) {
    const dims *c = &a.c;
    const int64_t unit = (int64_t)blockIdx.x * SLC_WARPS + warp_id();
    const int64_t row = unit / c->GT % a.R;
    const int g16 = (int)(unit % c->GT), kvh = (int)(unit / c->GT / a.R);
    if (kvh >= c->Hkv)
        return;
    const sequence *sq = &a.seqs[a.row_seq[row]];
    const int64_t head = row * c->Hq + kvh * c->G + g16 * TILE_ROWS;
    const int t = a.row_t[row], heads = min((int)TILE_ROWS, c->G - g16 * TILE_ROWS);
    const int32_t *g_idx = a.block_idx + (row * c->Hkv + kvh) * c->n;
    const key_range window = visible_range(c, WIN, t);
    block_ptrs start = first_block_of<DK, DV>(&a, sq, kvh, WIN);
    block_iter iter = {};
    uint64_t mask;
    softmax_state<DV> x;
    frags_a<DK> q;
    load_global_a(&q, a.q + head_tile(c, row, kvh, g16) * TILE_ROWS * DK + mem_tile_lane());
    softmax_init(&x);
    for (int b = window.from / BLOCK; b * BLOCK < window.end; b++)
        attend_global_block<DK, DV>(&x, c, q, block_after<DK, DV>(start, b), mask_of(window, b),
                                    (float *)NULL);
    add_branch(&a, &x, head, heads, WIN);
    start = first_block_of<DK, DV>(&a, sq, kvh, SLC);
    softmax_init(&x);
    for (int b; next_block(&iter, g_idx, c, t, &b, &mask);)
        attend_global_block<DK, DV>(&x, c, q, block_after<DK, DV>(start, b), mask, (float *)NULL);
    add_branch(&a, &x, head, heads, SLC);
}

/* ---------------------------------------------------------------- launches */

template <int DK, int DV> static nsa_status allow_shared(void) {
    TRY(nsa_allow_shared(attend_cmp_kernel<DK, DV, false>));
    return nsa_allow_shared(attend_cmp_kernel<DK, DV, true>);
}

nsa_status open_attend(stage *st) {
    return BY_WIDTH(&st->c, allow_shared);
}

int query_tile(const dims *c) {
    return ATTEND_WARPS * WARP_TILES(c->dvp);
}

template <int DK, int DV>
static nsa_status launch_cmp(stage *st, const attend_args *a, bool is_causal) {
    const unsigned grid = (unsigned)(a->n_tiles * a->c.Hkv * a->c.GT);
    if (is_causal)
        LAUNCH((attend_cmp_kernel<DK, DV, true>), grid, ATTEND_WARPS * WARP_SIZE,
               sizeof(attend_smem<DK, DV>), st, *a);
    else
        LAUNCH((attend_cmp_kernel<DK, DV, false>), grid, ATTEND_WARPS * WARP_SIZE,
               sizeof(attend_smem<DK, DV>), st, *a);
    return NSA_OK;
}

template <int DK, int DV> static nsa_status launch_slc_win(stage *st, const attend_args *a) {
    const int64_t units = a->R * a->c.Hkv * a->c.GT;
    LAUNCH((attend_slc_win_kernel<DK, DV>), (unsigned)((units + SLC_WARPS - 1) / SLC_WARPS),
           SLC_WARPS * WARP_SIZE, 0, st, *a);
    return NSA_OK;
}

nsa_status attend_cmp(stage *st, const attend_args *a, bool is_causal) {
    return a->n_tiles ? BY_WIDTH(&a->c, launch_cmp, st, a, is_causal) : NSA_OK;
}

nsa_status attend_slc_win(stage *st, const attend_args *a) {
    return a->n_tiles ? BY_WIDTH(&a->c, launch_slc_win, st, a) : NSA_OK;
}
