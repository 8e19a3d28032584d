/** @file
 *  @brief Attention of one row of each slot over its caches. Keys are read once: the scores of
 *  compressed keys are kept, because selection needs the probabilities, which need the sum over all
 *  splits. */
#include "decode.cuh"

/* The unit of a CUDA block. */
typedef struct decode_unit {
    int unit, row, kvh, g16; /* row of the step, kv head, tile of heads */
    int64_t slot;
    int t;
} decode_unit;

static __device__ __forceinline__ decode_unit decode_unit_of(const decode_args *a, int unit) {
    decode_unit u;
    u.unit = unit;
    u.g16 = unit % a->c.GT;
    u.kvh = unit / a->c.GT % a->c.Hkv;
    u.row = unit / a->c.GT / a->c.Hkv;
    u.t = a->t[u.row];
    u.slot = a->slot[u.row];
    return u;
}

/* ------------------------------------------------------------- attend parts */

/* This warp's share of a split: of the blocks that the query sees in a branch, numbered in their
 * order, every step-th from its own on. */
template <int N_TILES>
static __device__ __forceinline__ void attend_split(softmax_state<N_TILES> *x, const decode_args *a,
                                                    const decode_unit *u, const warp_smem *m,
                                                    int branch, int split) {
    const dims *c = &a->c;
    const kv_blocks *in = &a->in[branch];
    const int first_ordinal = split * SPLIT_WARPS + warp_id(); /* among the blocks it sees */
    const int step = a->splits[branch] * SPLIT_WARPS;
    const int64_t first = u->kvh * in->stride + u->slot * a->slot_blocks[branch];
    const int32_t *g_idx = a->block_idx + ((int64_t)u->row * c->Hkv + u->kvh) * c->n;
    const int end = branch == CMP ? cmp_visible(c, u->t) : u->t + 1;
    const int lo = branch == WIN ? first_win(c, u->t) : 0;
    float *g_scores =
        branch == CMP ? a->scores + u->unit * a->slot_blocks[CMP] * TILE_ROWS * BLOCK : NULL;
    block_iter iter = {};
    uint64_t mask;
    int b = lo / BLOCK + first_ordinal;
    for (; branch != SLC && b * BLOCK < end; b += step)
        attend_global_block(x, c, m, block_at(in, c, first + b),
                            range_mask(lo - b * BLOCK, end - b * BLOCK),
                            g_scores ? g_scores + (int64_t)b * TILE_ROWS * BLOCK : NULL);
    for (int i = 0; branch == SLC && next_block(&iter, g_idx, c, u->t, &b, &mask); i++) {
        if (i % step == first_ordinal)
            attend_global_block(x, c, m, block_at(in, c, first + b), mask, (float *)NULL);
    }
}

/* From each warp's row maxima and sums to the split's, g_stats [16]; to `rescale`, what this warp's
 * outputs are multiplied by before they are added. s_stats [SPLIT_WARPS][16] is scratch. */
template <int N_TILES>
static __device__ __forceinline__ void combine_warps(const softmax_state<N_TILES> *x, float scale2,
                                                     partial_stats *s_stats, partial_stats *g_stats,
                                                     float *rescale) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float total = row_reduce_sum(x->row_sum[i]);
        if (lane_id() < 2)
            s_stats[warp_id() * TILE_ROWS + lane_row() + i] = partial_stats{x->row_max[i], total};
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        float row_max = -INFINITY, row_sum = 0;
        for (int w = 0; w < SPLIT_WARPS; w++)
            row_max = fmaxf(row_max, s_stats[w * TILE_ROWS + lane_row() + i].row_max);
        row_max = row_max == -INFINITY ? 0 : row_max;
        for (int w = 0; w < SPLIT_WARPS; w++) {
            const partial_stats r = s_stats[w * TILE_ROWS + lane_row() + i];
            row_sum += r.row_sum * exp2f(scale2 * (r.row_max - row_max));
        }
        rescale[i] = exp2f(scale2 * (x->row_max[i] - row_max));
        if (threadIdx.x < 2)
            g_stats[lane_row() + i] = partial_stats{row_max, row_sum};
    }
}

/* Add up the warps' outputs in s_o [16][dvp] and store them as the split's, g_o [16][dvp]. */
template <int N_TILES>
static __device__ __forceinline__ void write_split(const softmax_state<N_TILES> *x, int dvp,
                                                   const float *rescale, float *s_o, real *g_o) {
    for (int w = 0; w < SPLIT_WARPS;
         w++) { /* one warp after the other: a fixed order of addition */
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
            for (int n = 0; n < N_TILES && w == warp_id(); n++) {
                float *at = s_o + (lane_row() + i) * dvp + n * TILE_COLS + lane_col();
                const float4 old = w ? load4(at) : make_float4(0, 0, 0, 0);
                const float *o = x->o[n].x[i], f = rescale[i];
                store4(at, old.x + o[0] * f, old.y + o[1] * f, old.z + o[2] * f, old.w + o[3] * f);
            }
        }
        __syncthreads();
    }
    for (int i = 4 * (int)threadIdx.x; i < TILE_ROWS * dvp; i += 4 * SPLIT_WARPS * WARP_SIZE)
        *(float4 *)(g_o + i) = load4(s_o + i);
}

/* Grid: `count` splits of every unit, from split `from` on. Block: SPLIT_WARPS warps, each with
 * blocks of keys of its own. Shared: Q^T [dk8][16], P^T [64][16] of each warp, the statistics of
 * each warp, outputs [16][dvp]: three such blocks to a multiprocessor, two where outputs are wide.
 */
template <int N_TILES>
static __global__ void __launch_bounds__(SPLIT_WARPS *WARP_SIZE, N_TILES < 3 ? 3 : 2)
    decode_splits_kernel(decode_args a, int from, int count) {
    NSA_DYNAMIC_SHARED(float, s_q);
    const dims *c = &a.c;
    warp_smem m;
    m.q = s_q;
    m.p = s_q + c->dk8 * TILE_ROWS + warp_id() * BLOCK * TILE_ROWS;
    partial_stats *s_stats =
        (partial_stats *)(s_q + c->dk8 * TILE_ROWS + SPLIT_WARPS * BLOCK * TILE_ROWS);
    float *s_o = (float *)(s_stats + SPLIT_WARPS * TILE_ROWS);
    const decode_unit u = decode_unit_of(&a, (int)blockIdx.x / count);
    const int split = from + (int)blockIdx.x % count;
    const int branch = split >= first_split(&a, SLC)   ? SLC
                       : split >= first_split(&a, WIN) ? WIN
                                                       : CMP;
    const int64_t at = (int64_t)u.unit * all_splits(&a) + split; /* of all splits */
    float rescale[LANE_ROWS];
    softmax_state<N_TILES> x;
    if (u.t < 0)
        return;
    for (int i = 4 * (int)threadIdx.x; i < c->dk8 * TILE_ROWS; i += 4 * SPLIT_WARPS * WARP_SIZE)
        *(float4 *)(s_q + i) = load4(a.q_t + (int64_t)u.unit * c->dk8 * TILE_ROWS + i);
    __syncthreads();
    softmax_init(&x);
    attend_split(&x, &a, &u, &m, branch, split - first_split(&a, branch));
    combine_warps(&x, c->scale2, s_stats, a.split_stats + at * TILE_ROWS, rescale);
    write_split(&x, c->dvp, rescale, s_o, a.split_o + at * TILE_ROWS * c->dvp);
}

/* ------------------------------------------------------------------ combine */

enum { COMBINE_THREADS = 128 }; /* of a CUDA block of decode_combine_kernel */

/* Four columns from `col` on of one branch of a head, its splits weighted by their sums. */
static __device__ __forceinline__ float4 combine_branch(const decode_args *a, int64_t unit,
                                                        int branch, int row, int col) {
    const row_stats r = combine_stats(a, unit, branch, row);
    const int64_t first =
        (unit * all_splits(a) + first_split(a, branch)) * TILE_ROWS + row; /* of all splits' rows */
    float4 o = make_float4(0, 0, 0, 0);
    for (int split = 0; split < a->splits[branch]; split++) {
        const int64_t at = first + split * TILE_ROWS;
        const partial_stats part = a->split_stats[at];
        if (part.row_sum == 0) /* it had no keys */
            continue;
        const float4 p = load4(a->split_o + at * a->c.dvp + col);
        const float f = exp2f(a->c.scale2 * (part.row_max - r.row_max)) * r.inv_sum;
        o = make_float4(o.x + f * p.x, o.y + f * p.y, o.z + f * p.z, o.w + f * p.w);
    }
    return o;
}

/* Combine one unit's splits to branch outputs, and these by their gates to out (Eq. 5). Grid:
 * units. A thread has four columns of a head. */
static __global__ void decode_combine_kernel(decode_args a) {
    const dims *c = &a.c;
    const decode_unit u = decode_unit_of(&a, (int)blockIdx.x);
    const int heads = min(TILE_ROWS, c->G - u.g16 * TILE_ROWS), four = c->dvp / 4;
    if (u.t < 0)
        return;
    for (int i = (int)threadIdx.x; i < heads * four; i += COMBINE_THREADS) {
        const int row = i / four, col = 4 * (i % four);
        const int64_t head = (int64_t)u.row * c->Hq + u.kvh * c->G + u.g16 * TILE_ROWS + row;
        float4 out = make_float4(0, 0, 0, 0);
        for (int x = 0; x < BRANCHES; x++) {
            const float g = a.gate[head * BRANCHES + x];
            const float4 o = combine_branch(&a, u.unit, x, row, col);
            if (a.out_x[x])
                store4(a.out_x[x] + head * c->dvp + col, o.x, o.y, o.z, o.w);
            out = make_float4(out.x + g * o.x, out.y + g * o.y, out.z + g * o.z, out.w + g * o.w);
        }
        store4(a.out + head * c->dvp + col, out.x, out.y, out.z, out.w);
    }
}

/* ----------------------------------------------------------------- launches */

static size_t splits_bytes(const dims *c) {
    return (size_t)(c->dk8 * TILE_ROWS + SPLIT_WARPS * (BLOCK * TILE_ROWS + 2 * TILE_ROWS) +
                    TILE_ROWS * c->dvp) *
           sizeof(float);
}

template <int N_TILES> static nsa_status allow_shared(void) {
    return nsa_allow_shared(decode_splits_kernel<N_TILES>);
}

nsa_status open_decode_attend(const decode_args *a) {
    return BY_WIDTH(a->c.dvp, allow_shared);
}

template <int N_TILES>
static nsa_status launch_splits(stage *st, const decode_args *a, int from, int to) {
    LAUNCH(decode_splits_kernel<N_TILES>, (unsigned)(a->units * (to - from)),
           SPLIT_WARPS * WARP_SIZE, splits_bytes(&a->c), st, *a, from, to - from);
    return NSA_OK;
}

nsa_status decode_splits(stage *st, const decode_args *a, int from, int to) {
    return BY_WIDTH(a->c.dvp, launch_splits, st, a, from, to);
}

nsa_status decode_combine(stage *st, const decode_args *a) {
    LAUNCH(decode_combine_kernel, (unsigned)a->units, COMBINE_THREADS, 0, st, *a);
    return NSA_OK;
}
