/** @file
 *  @brief Backward by keys: dk and dv of a block, from all rows that see it. Nobody else adds to
 *  them: no atomics, and the same bits in every run. */
#include "backward.cuh"

/* The keys of `block` that row r sees. The warp's lanes search its list together. */
static __device__ uint64_t visible_keys(const grad_args *a, const inverse_list *inv, int64_t block,
                                        int64_t r) {
    const dims *c = &a->f.c;
    const int t = a->f.row_t[r];
    const int64_t first = a->f.seqs[a->f.row_seq[r]].first_block[inv->branch];
    const int b = (int)(block % inv->stride - first), key = b * BLOCK;
    const int32_t *idx = a->f.block_idx + (r * c->Hkv + block / inv->stride) * c->n;
    uint64_t mask = 0;
    if (inv->branch == CMP)
        return range_mask(0, cmp_visible(c, t) - key);
    if (inv->branch == WIN)
        return range_mask(first_win(c, t) - key, t + 1 - key);
    for (int i = lane_id(); i < c->n && idx[i] >= 0; i += WARP_SIZE)
        mask |= selected_mask(c, idx[i], t, b);
    __syncwarp();
    for (int lane = 1; lane < WARP_SIZE; lane *= 2)
        mask |= __shfl_xor_sync(ALL_LANES, (unsigned long long)mask, lane);
    return mask;
}

/* One warp, one row tile: gate P and dS [16][64] against the block, to s_p and s_ds. s_q is scratch
 * of the warp, for Q^T and dO^T. */
static __device__ __forceinline__ void recompute_p(const grad_args *a, const inverse_list *inv,
                                                   score_tile x, float *s_q, float *s_p,
                                                   float *s_ds) {
    const dims *c = &a->f.c;
    const block_ptrs at = block_at(&a->f.in[inv->branch], c, x.block);
    const row_terms *terms = a->terms + (inv->branch * a->row_tiles + x.tile) * TILE_ROWS;
    const uint64_t mask = visible_keys(a, inv, x.block, x.row);
    float *s_dout = s_q + c->dk8 * TILE_ROWS;
    acc_16x64 s, dp;
    zero_acc_16x64(&s);
    zero_acc_16x64(&dp);
    load_tile(s_q, a->f.q_t + x.tile * c->dk8 * TILE_ROWS, c->dk8 * TILE_ROWS);
    load_tile(s_dout, a->dout_t + x.tile * c->dv8 * TILE_ROWS, c->dv8 * TILE_ROWS);
    warp_matmul<1>(&s, s_q + lane_row(), TILE_ROWS, at.kt + lane_col(), BLOCK, c->dk8);
    warp_matmul<1>(&dp, s_dout + lane_row(), TILE_ROWS, at.vt + lane_col(), BLOCK, c->dv8);
    softmax_backward(c, &s, &dp, terms, mask);
    store_acc(s_p + lane_row() * BLOCK + lane_col(), BLOCK, &s, LANE_ROWS);
    store_acc(s_ds + lane_row() * BLOCK + lane_col(), BLOCK, &dp, LANE_ROWS);
}

/* One work unit: up to unit_rows rows that see one block of keys, `step` row tiles at a time. First
 * each warp makes P and dS of a row tile of its own, in shared memory; then all warps add them up:
 *
 *     warp w < step   S = Q K^T,  dP = dO V^T of row tile w  ->  P, dS [16][64]
 *     barrier
 *     warp 0..3       dV [16 keys each, dv] += P^T dO    over the rows of all tiles
 *     warp 4..7       dK [16 keys each, dk] += dS^T Q    the same
 *     barrier
 *
 * dK and dV stay in registers to the end. Grid (blocks of keys, units of one block at most).
 * Shared: of each row tile Q^T, dO^T, P and dS; 192 KiB at 128/128. N_TILES: of the wider of dk and
 * dv. */
template <int N_TILES>
static __global__ void __launch_bounds__(DKV_WARPS *WARP_SIZE, 1)
    dkv_kernel(grad_args a, inverse_list inv, int step) {
    NSA_DYNAMIC_SHARED(float, s_p);
    __shared__ int64_t s_tile[DKV_WARPS];
    const dims *c = &a.f.c;
    const int64_t block = blockIdx.x, h = block / inv.stride, first = blockIdx.y * inv.unit_rows;
    const int64_t rows = min(inv.unit_rows, inv.count[block] - first), tiles = rows * c->GT;
    const int size = TILE_ROWS * BLOCK, warp = warp_id();
    float *s_ds = s_p + step * size,
          *s_q = s_ds + step * size + warp * (c->dk8 + c->dv8) * TILE_ROWS;
    const bool values = warp < DKV_WARPS / 2; /* dv; the others dk */
    const int key = warp % (DKV_WARPS / 2) * TILE_ROWS;
    acc_16x64 acc[N_TILES];
    if (rows <= 0)
        return;
#pragma unroll
    for (int n = 0; n < N_TILES; n++)
        zero_acc_16x64(&acc[n]);
#pragma unroll 1
    for (int64_t i = 0; i < tiles; i += step) {
        if (warp < step && i + warp < tiles) {
            const int64_t at = inv.start[block] + first + (i + warp) / c->GT;
            const int64_t r = inv.list ? inv.list[at] : at;
            const int64_t tile = (r * c->Hkv + h) * c->GT + (i + warp) % c->GT;
            recompute_p(&a, &inv, score_tile{block, r, tile}, s_q, s_p + warp * size,
                        s_ds + warp * size);
            s_tile[warp] = tile;
        }
        __syncthreads();
        for (int k = 0; k < step && i + k < tiles; k++) {
            const float *s_x = (values ? s_p : s_ds) + k * size + key + lane_row();
            const real *g_y =
                (values ? a.dout_n : a.q_n) + s_tile[k] * TILE_ROWS * c->wp + lane_col();
            warp_matmul<N_TILES>(acc, s_x, BLOCK, g_y, c->wp, TILE_ROWS);
        }
        __syncthreads();
    }
    const int64_t unit = inv.first_unit[block] + blockIdx.y;
    real *to = inv.partial + ((unit * 2 + !values) * BLOCK + key + lane_row()) * c->wp + lane_col();
#pragma unroll
    for (int n = 0; n < N_TILES; n++)
        store_acc(to + n * TILE_COLS, c->wp, &acc[n], LANE_ROWS);
}

enum { REDUCE_THREADS = 256 }; /* of a CUDA block of reduce_partials */

/* dv and dk of a block: the sum over its units, in their order. Grid: blocks of keys. */
static __global__ void __launch_bounds__(REDUCE_THREADS)
    reduce_partials(grad_args a, inverse_list inv) {
    const dims *c = &a.f.c;
    const int64_t block = blockIdx.x, size = 2 * BLOCK * c->wp;
    const int64_t first = inv.first_unit[block], units = units_of(&inv, inv.count[block]);
    const kv_blocks *in = &a.f.in[inv.branch];
    for (int i = (int)threadIdx.x; i < size; i += REDUCE_THREADS) {
        const int row = i / c->wp, col = i % c->wp;
        float total = 0;
        for (int64_t unit = first; unit < first + units; unit++)
            total += inv.partial[unit * size + i];
        if (row < BLOCK && col < c->dvp)
            in->gradient[VALUES][(block * BLOCK + row) * c->dvp + col] = total;
        if (row >= BLOCK && col < c->dkp)
            in->gradient[KEYS][(block * BLOCK + row - BLOCK) * c->dkp + col] = total;
    }
}

/* ---------------------------------------------------------------- launches */

static size_t dkv_bytes(const dims *c, int step) {
    return (size_t)(step * TILE_ROWS * (2 * BLOCK + c->dk8 + c->dv8)) * sizeof(float);
}

template <int N_TILES> static nsa_status allow_shared(void) {
    return nsa_allow_shared(dkv_kernel<N_TILES>);
}

template <int N_TILES>
static nsa_status launch_dkv(stage *st, const grad_args *args, const inverse_list *inv) {
    const int step = ((const scratch *)st->scratch)->dkv_tiles;
    LAUNCH(dkv_kernel<N_TILES>, dim3((unsigned)inv->blocks, (unsigned)inv->max_units),
           DKV_WARPS * WARP_SIZE, dkv_bytes(&args->f.c, step), st, *args, *inv, step);
    LAUNCH(reduce_partials, (unsigned)inv->blocks, REDUCE_THREADS, 0, st, *args, *inv);
    return NSA_OK;
}

/* Row tiles in a step: as many as shared memory holds beside s_tile, one for each warp at most. */
nsa_status open_keys(stage *st, scratch *s) {
    s->dkv_tiles = DKV_WARPS;
    while (s->dkv_tiles > 1 &&
           dkv_bytes(&st->c, s->dkv_tiles) + DKV_WARPS * sizeof(int64_t) > st->max_shared)
        s->dkv_tiles--;
    return BY_WIDTH(st->c.wp, allow_shared);
}

/* dk and dv of one branch, by its inverse list. */
nsa_status backward_keys(stage *st, const grad_args *args, const inverse_list *inv) {
    return BY_WIDTH(args->f.c.wp, launch_dkv, st, args, inv);
}
