/** @file
 *  @brief Selection of blocks (Eq. 9-11) in a decode step, which has the scores already: importance
 *  from them, by many warps for each row, then the ranking that a forward does. */
#include "decode.cuh"
#include "select.cuh"

enum {
    SELECT_WARPS = 4,  /* of a CUDA block of decode_importance, */
    SELECT_BLOCKS = 32 /* and selection blocks of a warp */
};

/* Group sums of block b of the compressed keys, from decode's scores, to the ring buffer; a lane
 * has two keys. */
static __device__ __forceinline__ void sum_scores(const decode_args *a, int64_t group, int b,
                                                  const row_stats *s_stats, float *s_col) {
    const dims *c = &a->c;
    float2 sum = make_float2(0, 0);
#pragma unroll 8
    for (int g = 0; g < c->G; g++) {
        const int64_t unit = group * c->GT + g / TILE_ROWS;
        const float2 s = *(
            const float2 *)(a->scores +
                            ((unit * a->slot_blocks[CMP] + b) * TILE_ROWS + g % TILE_ROWS) * BLOCK +
                            2 * lane_id());
        sum.x = fmaf(exp_score(c->scale2, s.x, s_stats[g].row_max), s_stats[g].inv_sum, sum.x);
        sum.y = fmaf(exp_score(c->scale2, s.y, s_stats[g].row_max), s_stats[g].inv_sum, sum.y);
    }
    *(float2 *)(s_col + 2 * lane_id()) = sum;
    __syncwarp();
}

/* Importance of blocks from..to-1 of one row, from the ring buffer. */
static __device__ __forceinline__ void write_importance(const decode_args *a, float *g_imp, int t,
                                                        const float *s_ring, int ring, int from,
                                                        int to) {
    for (int j = from + lane_id(); j < to; j += WARP_SIZE) {
        float importance[1];
        importance_of(importance, &a->c, s_ring, ring, cmp_visible(&a->c, t), {j});
        g_imp[j] = importance[0];
    }
    __syncwarp(); /* the oldest columns may be overwritten */
}

/* Importance of one row and kv head, from the scores; each warp has SELECT_BLOCKS selection blocks.
 * Grid (rows * Hkv, parts of a slot's blocks). Shared: a ring buffer for each warp, statistics
 * [GT*16]. */
static __global__ void __launch_bounds__(SELECT_WARPS *WARP_SIZE)
    decode_importance_kernel(decode_args a, int ring) {
    NSA_DYNAMIC_SHARED(float, s_rings);
    const dims *c = &a.c;
    float *s_ring = s_rings + warp_id() * ring;
    row_stats *s_stats = (row_stats *)(s_rings + SELECT_WARPS * ring);
    const int group = (int)blockIdx.x, t = a.t[group / c->Hkv], per_block = c->per_block;
    const int from_all = (int)blockIdx.y * SELECT_WARPS * SELECT_BLOCKS, own_block = t / c->lb;
    if (t < 0 || from_all > own_block)
        return;
    for (int i = (int)threadIdx.x; i < c->GT * TILE_ROWS; i += SELECT_WARPS * WARP_SIZE)
        s_stats[i] = combine_stats(&a, (int64_t)group * c->GT + i / TILE_ROWS, CMP, i % TILE_ROWS);
    __syncthreads();
    const int from = from_all + warp_id() * SELECT_BLOCKS,
              to = min(from + (int)SELECT_BLOCKS, own_block + 1);
    const int first = max(per_block * from - c->overlap + 1, 0),
              last = min(per_block * to, cmp_visible(c, t));
    float *g_imp = a.importance + group * a.J;
    int next = from;
    for (int b = first / BLOCK; from < to && b * BLOCK < last; b++) {
        const int end = min(to, (b + 1) * BLOCK / per_block);
        sum_scores(&a, group, b, s_stats, s_ring + (b * BLOCK & (ring - 1)));
        write_importance(&a, g_imp, t, s_ring, ring, next, end);
        next = max(next, end);
    }
    write_importance(&a, g_imp, t, s_ring, ring, next, to);
}

/* ---------------------------------------------------------------- launches */

nsa_status open_decode_select(void) {
    return nsa_allow_shared(decode_importance_kernel);
}

nsa_status decode_select(stage *st, const decode_args *a) {
    const int ring = ring_size(&a->c), groups = a->units / a->c.GT;
    const int64_t part = SELECT_WARPS * SELECT_BLOCKS;
    const size_t bytes = (size_t)(SELECT_WARPS * ring + a->c.GT * TILE_ROWS * 2) * sizeof(float);
    const rank_args rank = {a->c, a->t, groups / a->c.Hkv, a->importance, a->J, a->block_idx};
    LAUNCH(decode_importance_kernel, dim3((unsigned)groups, (unsigned)((a->J + part - 1) / part)),
           SELECT_WARPS * WARP_SIZE, bytes, st, *a, ring);
    return rank_blocks(st, &rank);
}
