/** @file
 *  @brief Attention of one row of each slot over its caches. Keys are read once: the scores of
 *  compressed keys are kept, because selection needs the probabilities, which need the sum over all
 *  splits. */
#include "decode.cuh"

/* The unit of a CUDA block. */
typedef struct decode_unit {
    int unit, row, head, g16; /* row of the step, kv head, tile of heads */
    int64_t slot;
    int t;
} decode_unit;

static __device__ __forceinline__ decode_unit decode_unit_of(const decode_args *a, int unit) {
    decode_unit u;
    u.unit = unit;
    u.g16 = unit % a->c.GT;
    u.head = unit / a->c.GT % a->c.Hkv;
    u.row = unit / a->c.GT / a->c.Hkv;
    u.t = a->t[u.row];
    u.slot = a->slot[u.row];
    return u;
}

/* ------------------------------------------------------------- attend parts */

/* This warp's share of a split: every block_step-th block of a branch, from the warp's own on. */
template <int N_TILES>
static __device__ __forceinline__ void attend_split(softmax_state<N_TILES> *x, const decode_args *a,
                                                    const decode_unit *u, const warp_smem *m,
                                                    int branch, int split) {
    const dims *c = &a->c;
    const kv_blocks *in = &a->in[branch];
    const int first_block = split * SPLIT_WARPS + warp_id();
    const int block_step = a->splits[branch] * SPLIT_WARPS;
    const int64_t first = u->head * in->stride + u->slot * a->first[branch];
    const int32_t *g_idx = a->block_idx + ((int64_t)u->row * c->Hkv + u->head) * c->n;
    const int end = branch == CMP ? visible_cmp(c, u->t) : u->t + 1;
    const int lo = branch == WIN ? first_win(c, u->t) : 0;
    float *g_scores =
        branch == CMP ? a->scores + u->unit * a->first[CMP] * TILE_ROWS * BLOCK : NULL;
    block_iter iter = {0, 0};
    uint64_t mask;
    int b = lo / BLOCK + first_block;
    for (; branch != SLC && b * BLOCK < end; b += block_step)
        attend_global_block(x, c, m, block_at(in, c, first + b),
                            range_mask(lo - b * BLOCK, end - b * BLOCK),
                            g_scores ? g_scores + (int64_t)b * TILE_ROWS * BLOCK : NULL);
    for (int i = 0; branch == SLC && next_block(&iter, g_idx, c, u->t, &b, &mask); i++) {
        if (i % block_step == first_block)
            attend_global_block(x, c, m, block_at(in, c, first + b), mask, (float *)NULL);
    }
}

/* Combine the warps' outputs and store them as one split. s_o [16][dvp], s_stats [warps][16]. */
template <int N_TILES>
static __device__ __forceinline__ void write_split(const softmax_state<N_TILES> *x, const dims *c,
                                                   float *s_o, partial_stats *s_stats, real *g_o,
                                                   partial_stats *g_stats) {
    const int warps = (int)blockDim.x / WARP_SIZE, dvp = c->dvp;
    float factor[LANE_ROWS];
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
        for (int w = 0; w < warps; w++)
            row_max = fmaxf(row_max, s_stats[w * TILE_ROWS + lane_row() + i].row_max);
        row_max = row_max == -INFINITY ? 0 : row_max;
        for (int w = 0; w < warps; w++) {
            const partial_stats r = s_stats[w * TILE_ROWS + lane_row() + i];
            row_sum += r.row_sum * exp2f(c->scale2 * (r.row_max - row_max));
        }
        factor[i] = exp2f(c->scale2 * (x->row_max[i] - row_max));
        if (threadIdx.x < 2)
            g_stats[lane_row() + i] = partial_stats{row_max, row_sum};
    }
    for (int w = 0; w < warps; w++) { /* one warp after the other: a fixed order of addition */
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
            for (int s = 0; s < N_TILES && w == warp_id(); s++) {
                float *at = s_o + (lane_row() + i) * dvp + s * TILE_COLS + lane_col();
                const float4 old = w ? load4(at) : make_float4(0, 0, 0, 0);
                const float *o = x->o[s].x[i], f = factor[i];
                store4(at, old.x + o[0] * f, old.y + o[1] * f, old.z + o[2] * f, old.w + o[3] * f);
            }
        }
        __syncthreads();
    }
    for (int i = 4 * (int)threadIdx.x; i < TILE_ROWS * dvp; i += 4 * (int)blockDim.x)
        *(float4 *)(g_o + i) = load4(s_o + i);
}

/* Grid: `count` splits of every unit, from split `from` on. Block: SPLIT_WARPS warps, each with
 * blocks of keys of its own. Shared: Q^T [dk8][16], P^T [64][16] of each warp, the statistics of
 * each warp, outputs [16][dvp]. */
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
    const int64_t slot = (int64_t)u.unit * all_splits(&a) + split;
    softmax_state<N_TILES> x;
    if (u.t < 0)
        return;
    for (int i = 4 * (int)threadIdx.x; i < c->dk8 * TILE_ROWS; i += 4 * SPLIT_WARPS * WARP_SIZE)
        *(float4 *)(s_q + i) = load4(a.q_t + (int64_t)u.unit * c->dk8 * TILE_ROWS + i);
    __syncthreads();
    softmax_init(&x);
    attend_split(&x, &a, &u, &m, branch, split - first_split(&a, branch));
    write_split<N_TILES>(&x, c, s_o, s_stats, a.split_o + slot * TILE_ROWS * c->dvp,
                         a.split_stats + slot * TILE_ROWS);
}

/* ------------------------------------------------------------------ combine */

/* Combine one unit's splits to branch outputs, and these by their gates to out (Eq. 5). Grid:
 * units. Block: 128 threads, each four columns of a head. */
static __global__ void decode_combine_kernel(decode_args a) {
    const dims *c = &a.c;
    const decode_unit u = decode_unit_of(&a, (int)blockIdx.x);
    const int heads = min(TILE_ROWS, c->G - u.g16 * TILE_ROWS), four = c->dvp / 4;
    if (u.t < 0)
        return;
    for (int i = (int)threadIdx.x; i < heads * four; i += (int)blockDim.x) {
        const int row = i / four, col = 4 * (i % four);
        const int64_t head = (int64_t)u.row * c->Hq + u.head * c->G + u.g16 * TILE_ROWS + row;
        float4 out = make_float4(0, 0, 0, 0);
        for (int x = 0; x < BRANCHES; x++) {
            const row_stats r = combine_stats(&a, u.unit, x, row);
            const float g = a.gate[head * BRANCHES + x];
            const int64_t first = (int64_t)u.unit * all_splits(&a) + first_split(&a, x);
            float4 o = make_float4(0, 0, 0, 0);
            for (int split = 0; split < a.splits[x]; split++) {
                const partial_stats split_r = a.split_stats[(first + split) * TILE_ROWS + row];
                if (split_r.row_sum == 0)
                    continue;
                const float f = exp2f(c->scale2 * (split_r.row_max - r.row_max)) * r.inv_sum;
                const float4 p =
                    load4(a.split_o + ((first + split) * TILE_ROWS + row) * c->dvp + col);
                o = make_float4(o.x + f * p.x, o.y + f * p.y, o.z + f * p.z, o.w + f * p.w);
            }
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
    TRY(open_select());
    return BY_WIDTH(a->c.dvp, allow_shared);
}

template <int N_TILES>
static nsa_status launch_splits(stage *st, const decode_args *a, int from, int to) {
    NSA_LAUNCH(decode_splits_kernel<N_TILES>, (unsigned)(a->units * (to - from)),
               SPLIT_WARPS * WARP_SIZE, splits_bytes(&a->c), st->stream, *a, from, to - from);
    NSA_LAUNCHED("decode_splits");
    return NSA_OK;
}

nsa_status decode_splits(stage *st, const decode_args *a, int from, int to) {
    return BY_WIDTH(a->c.dvp, launch_splits, st, a, from, to);
}

nsa_status decode_combine(stage *st, const decode_args *a) {
    NSA_LAUNCH(decode_combine_kernel, (unsigned)a->units, 128, 0, st->stream, *a);
    NSA_LAUNCHED("decode_combine");
    return NSA_OK;
}
