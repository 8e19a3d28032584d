/** @file
 *  @brief Selection of blocks (Eq. 9-11) in a decode step, which has the scores already. */
#include "decode.cuh"
#include "select.cuh"

/* Group sums of block b of the compressed keys, from decode's scores, to the ring buffer; a lane
 * has two keys. */
static __device__ __forceinline__ void sum_scores(const decode_args *a, int64_t group, int b,
                                                  const row_stats *s_stats, float *s_col) {
    const dims *c = &a->c;
    float2 sum = make_float2(0, 0);
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

/* Candidates from..to-1 of one row, from the ring buffer. */
static __device__ __forceinline__ void add_candidates(topk<MAX_PER_LANE> *best, const dims *c,
                                                      int t, const float *s_ring, int ring,
                                                      int from, int to) {
    for (int j0 = from; j0 < to; j0 += WARP_SIZE) {
        const int j = j0 + lane_id();
        float importance[1];
        importance_of(importance, c, s_ring, ring, cmp_visible(c, t), {j});
        topk_insert(best, j < to ? candidate(c, t / c->lb, j, importance[0]) : 0);
    }
    __syncwarp(); /* the oldest columns may be overwritten */
}

/* Importance and selection for one row and kv head, from the scores. Each warp finds the top k of
 * its share of the blocks, then the first warp merges them. Grid: rows * Hkv. Block: SELECT_WARPS
 * warps. Shared: statistics [GT*16], a ring buffer and a list for each warp. */
static __global__ void decode_select_kernel(decode_args a, int ring) {
    __shared__ sort_key s_best[SELECT_WARPS][MAX_PER_LANE * WARP_SIZE];
    __shared__ int s_list[MAX_PER_LANE * WARP_SIZE];
    NSA_DYNAMIC_SHARED(float, s_rings);
    const dims *c = &a.c;
    float *s_ring = s_rings + warp_id() * ring;
    row_stats *s_stats = (row_stats *)(s_rings + SELECT_WARPS * ring);
    const int group = (int)blockIdx.x, t = a.t[group / c->Hkv];
    if (t < 0)
        return;
    const int own_block = t / c->lb, per_block = c->per_block;
    const int share = (own_block + SELECT_WARPS) / SELECT_WARPS; /* selection blocks of a warp */
    const int from = min(warp_id() * share, own_block + 1), to = min(from + share, own_block + 1);
    for (int i = (int)threadIdx.x; i < c->GT * TILE_ROWS; i += SELECT_WARPS * WARP_SIZE)
        s_stats[i] = combine_stats(&a, (int64_t)group * c->GT + i / TILE_ROWS, CMP, i % TILE_ROWS);
    __syncthreads();
    topk<MAX_PER_LANE> best;
    topk_of_row(&best, c, own_block);
    int next = from;
    const int first = max(per_block * from - c->overlap + 1, 0),
              last = min(per_block * to, cmp_visible(c, t));
    for (int b = first / BLOCK; from < to && b * BLOCK < last; b++) {
        const int end = min(to, (b + 1) * BLOCK / per_block);
        sum_scores(&a, group, b, s_stats, s_ring + (b * BLOCK & (ring - 1)));
        add_candidates(&best, c, t, s_ring, ring, next, end);
        next = max(next, end);
    }
    add_candidates(&best, c, t, s_ring, ring, next, to);
#pragma unroll
    for (int i = 0; i < MAX_PER_LANE; i++)
        s_best[warp_id()][i * WARP_SIZE + lane_id()] =
            best.key[i] == ~(sort_key)0 ? 0 : best.key[i];
    __syncthreads();
    if (warp_id() > 0)
        return;
    for (int i = 1; i < SELECT_WARPS; i++) {
        for (int k = 0; k < MAX_PER_LANE; k++)
            topk_insert(&best, s_best[i][k * WARP_SIZE + lane_id()]);
    }
    topk_emit(&best, c, own_block, s_list, a.block_idx + (int64_t)group * c->n);
}

/* ---------------------------------------------------------------- launches */

static size_t decode_select_bytes(const dims *c) {
    return (size_t)(SELECT_WARPS * ring_size(c) + c->GT * TILE_ROWS * 2) * sizeof(float);
}

nsa_status open_decode_select(void) {
    return nsa_allow_shared(decode_select_kernel);
}

nsa_status decode_select(stage *st, const decode_args *a) {
    NSA_LAUNCH(decode_select_kernel, (unsigned)(a->units / a->c.GT), SELECT_WARPS * WARP_SIZE,
               decode_select_bytes(&a->c), st->stream, *a, ring_size(&a->c));
    NSA_LAUNCHED("decode_select");
    return NSA_OK;
}
