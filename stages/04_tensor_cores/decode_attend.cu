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
template <int DK, int DV>
static __device__ __forceinline__ void attend_split(softmax_state<DV> *x, const decode_args *a,
                                                    const decode_unit *u, int branch, int split) {
    const dims *c = &a->c;
    const kv_blocks *in = &a->in[branch];
    const int first_ordinal = split * SPLIT_WARPS + warp_id(); /* among the blocks it sees */
    const int step = a->splits[branch] * SPLIT_WARPS;
    const int64_t first = u->kvh * in->stride + u->slot * a->slot_blocks[branch];
    const int32_t *g_idx = a->block_idx + ((int64_t)u->row * c->Hkv + u->kvh) * c->n;
    frags_a<DK> q;
    const int end = branch == CMP ? cmp_visible(c, u->t) : u->t + 1;
    const int lo = branch == WIN ? first_win(c, u->t) : 0;
    float *g_scores =
        branch == CMP ? a->scores + u->unit * a->slot_blocks[CMP] * TILE_ROWS * BLOCK : NULL;
    block_iter iter = {};
    uint64_t mask;
    int b = lo / BLOCK + first_ordinal;
    load_global_a(&q, a->q + (int64_t)u->unit * TILE_ROWS * DK + mem_tile_lane());
    for (; branch != SLC && b * BLOCK < end; b += step)
        attend_global_block<DK, DV>(x, c, q, block_at<DK, DV>(in, first + b),
                                    range_mask(lo - b * BLOCK, end - b * BLOCK),
                                    g_scores ? g_scores + (int64_t)b * TILE_ROWS * BLOCK : NULL);
    for (int i = 0; branch == SLC && next_block(&iter, g_idx, c, u->t, &b, &mask); i++) {
        if (i % step != first_ordinal)
            continue;
        attend_global_block<DK, DV>(x, c, q, block_at<DK, DV>(in, first + b), mask, (float *)NULL);
    }
}

/* From each warp's row maxima and sums to the split's, g_stats [16]; to `rescale`, what this warp's
 * outputs are multiplied by before they are added. s_stats [SPLIT_WARPS][16] is scratch. */
template <int DV>
static __device__ __forceinline__ void combine_warps(const softmax_state<DV> *x,
                                                     partial_stats *s_stats, partial_stats *g_stats,
                                                     float (&rescale)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float total = row_reduce_sum(x->row_sum[i]);
        if (lane_col() == 0)
            s_stats[warp_id() * TILE_ROWS + lane_row() + 8 * i] =
                partial_stats{x->row_max[i], total};
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = lane_row() + 8 * i;
        float row_max = -INFINITY, row_sum = 0;
        for (int w = 0; w < SPLIT_WARPS; w++)
            row_max = fmaxf(row_max, s_stats[w * TILE_ROWS + row].row_max);
        row_max = row_max == -INFINITY ? 0 : row_max;
        for (int w = 0; w < SPLIT_WARPS; w++) {
            const partial_stats r = s_stats[w * TILE_ROWS + row];
            row_sum += r.row_sum * exp2f(r.row_max - row_max);
        }
        rescale[i] = exp2f(x->row_max[i] - row_max);
        if (warp_id() == 0 && lane_col() == 0)
            g_stats[row] = partial_stats{row_max, row_sum};
    }
}

/* Add up the warps' outputs in s_o [16][DV] and store them as the split's, g_o [16][DV]. */
template <int DV>
static __device__ __forceinline__ void write_split(const softmax_state<DV> *x,
                                                   const float (&rescale)[2], float *s_o,
                                                   real *g_o) {
    for (int w = 0; w < SPLIT_WARPS;
         w++) { /* one warp after the other: a fixed order of addition */
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int n = 0; n < DV / 16 && w == warp_id(); n++) {
                float4 *at =
                    (float4 *)(s_o + (lane_row() + 8 * i) * DV + quad_col() + quad_offset(n));
                const float4 old = w ? *at : make_float4(0, 0, 0, 0);
                const float4 o = quad_of(x->o, n, i);
                const float f = rescale[i];
                *at =
                    make_float4(old.x + o.x * f, old.y + o.y * f, old.z + o.z * f, old.w + o.w * f);
            }
        }
        __syncthreads();
    }
    for (int i = 4 * (int)threadIdx.x; i < TILE_ROWS * DV; i += 4 * SPLIT_WARPS * WARP_SIZE)
        *(float4 *)(g_o + i) = *(const float4 *)(s_o + i);
}

/* Grid: `count` splits of every unit, from split `from` on. Block: SPLIT_WARPS warps, each with
 * blocks of keys of its own. Shared: the statistics of each warp, outputs [16][DV]. */
template <int DK, int DV>
static __global__ void __launch_bounds__(SPLIT_WARPS *WARP_SIZE, SPLIT_CTAS)
    decode_splits_kernel(decode_args a, int from, int count) {
    __shared__ partial_stats s_stats[SPLIT_WARPS * TILE_ROWS];
    __shared__ __align__(16) float s_o[TILE_ROWS * DV];
    const decode_unit u = decode_unit_of(&a, (int)blockIdx.x / count);
    const int split = from + (int)blockIdx.x % count;
    const int branch = split >= first_split(&a, WIN)   ? WIN
                       : split >= first_split(&a, SLC) ? SLC
                                                       : CMP;
    const int64_t at = (int64_t)u.unit * all_splits(&a) + split; /* of all splits */
    float rescale[2];
    softmax_state<DV> x;
    if (u.t < 0)
        return;
    softmax_init(&x);
    attend_split<DK, DV>(&x, &a, &u, branch, split - first_split(&a, branch));
    combine_warps(&x, s_stats, a.split_stats + at * TILE_ROWS, rescale);
    write_split(&x, rescale, s_o, a.split_o + at * TILE_ROWS * DV);
}

/* ------------------------------------------------------------------ combine */

enum { COMBINE_THREADS = 512 }; /* of a CUDA block of decode_combine_kernel */

/* Four columns from `col` on of one branch of a head, its splits weighted by their sums. */
static __device__ __forceinline__ float4 combine_branch(const decode_args *a, int64_t unit,
                                                        int branch, int row, int col) {
    const row_stats r = combine_stats(a, unit, branch, row);
    const int64_t first =
        (unit * all_splits(a) + first_split(a, branch)) * TILE_ROWS + row; /* of all splits' rows */
    float4 o = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int split = 0; split < a->splits[branch]; split++) {
        const int64_t at = first + split * TILE_ROWS;
        const partial_stats part = a->split_stats[at];
        const float4 p = *(const float4 *)(a->split_o + at * a->c.dvp + col);
        const float f = exp2f(part.row_max - r.row_max) * r.inv_sum;
        if (part.row_sum != 0) /* else it had no keys */
            o = make_float4(o.x + f * p.x, o.y + f * p.y, o.z + f * p.z, o.w + f * p.w);
    }
    return o;
}

/* Combine one unit's splits to branch outputs, and these by their gates to out (Eq. 5). Then the
 * step's token counts as one of its slot. Grid: units. A thread has four columns of a head. */
static __global__ void __launch_bounds__(COMBINE_THREADS) decode_combine_kernel(decode_args a) {
    const dims *c = &a.c;
    const decode_unit u = decode_unit_of(&a, (int)blockIdx.x);
    const int heads = min(TILE_ROWS, c->G - u.g16 * TILE_ROWS), four = c->dvp / 4;
    if (u.t < 0)
        return;
    if (threadIdx.x == 0 && u.kvh == 0 && u.g16 == 0)
        a.len[u.slot] = u.t + 1;
    for (int i = (int)threadIdx.x; i < heads * four; i += COMBINE_THREADS) {
        const int row = i / four, col = 4 * (i % four);
        const int64_t head = (int64_t)u.row * c->Hq + u.kvh * c->G + u.g16 * TILE_ROWS + row;
        float4 out = make_float4(0, 0, 0, 0);
        for (int x = 0; x < BRANCHES; x++) {
            const float g = a.gate[head * BRANCHES + x];
            const float4 o = combine_branch(&a, u.unit, x, row, col);
            if (a.out_x[x])
                *(float4 *)(a.out_x[x] + head * c->dvp + col) = o;
            out = make_float4(out.x + g * o.x, out.y + g * o.y, out.z + g * o.z, out.w + g * o.w);
        }
        *(float4 *)(a.out + head * c->dvp + col) = out;
    }
}

/* ----------------------------------------------------------------- launches */

template <int DK, int DV>
static nsa_status launch_splits(stage *st, const decode_args *a, int from, int to) {
    LAUNCH((decode_splits_kernel<DK, DV>), (unsigned)(a->units * (to - from)),
           SPLIT_WARPS * WARP_SIZE, 0, st, *a, from, to - from);
    return NSA_OK;
}

nsa_status decode_splits(stage *st, const decode_args *a, int from, int to) {
    return BY_WIDTH(&a->c, launch_splits, st, a, from, to);
}

nsa_status decode_combine(stage *st, const decode_args *a) {
    LAUNCH(decode_combine_kernel, (unsigned)a->units, COMBINE_THREADS, 0, st, *a);
    return NSA_OK;
}
