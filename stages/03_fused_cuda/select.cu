/** @file
 *  @brief Selection of blocks (Eq. 9-11) as a kernel of its own, for decode. Forward selects inside
 *  attend_cmp, as scores are computed; both use select.cuh. */
#include "decode.cuh"
#include "select.cuh"

/* Importance and selection for one row and kv head, from the scores. Each warp finds the top k of
 * its share of the blocks, then the first warp merges them. Grid: rows * Hkv. Block: SELECT_WARPS
 * warps. Shared: statistics [GT*16], a ring buffer and a list for each warp. */
static __global__ void decode_select_kernel(decode_args a, int ring) {
    __shared__ sort_key s_best[SELECT_WARPS][TOPK_PER_LANE * WARP_SIZE];
    __shared__ int s_list[TOPK_PER_LANE * WARP_SIZE];
    NSA_DYNAMIC_SHARED(float, s_rings);
    const dims *c = &a.c;
    float *s_ring = s_rings + warp_id() * ring;
    row_stats *s_stats = (row_stats *)(s_rings + SELECT_WARPS * ring);
    const int group = (int)blockIdx.x, t = a.t[group / c->Hkv];
    if (t < 0)
        return;
    const int own_block = t / c->lb;
    const int share = (own_block + SELECT_WARPS) / SELECT_WARPS; /* selection blocks of a warp */
    const int from = min(warp_id() * share, own_block + 1), to = min(from + share, own_block + 1);
    for (int i = (int)threadIdx.x; i < c->GT * TILE_ROWS; i += SELECT_WARPS * WARP_SIZE)
        s_stats[i] = combine_stats(&a, (int64_t)group * c->GT + i / TILE_ROWS, CMP, i % TILE_ROWS);
    __syncthreads();
    selection sel;
    selection_init(&sel, c, t, s_ring, ring);
    sel.next = from;
    const int first = max(c->per_block * from - c->overlap + 1, 0),
              last = min(c->per_block * to, sel.n_visible);
    for (int b = first / BLOCK; from < to && b * BLOCK < last; b++) {
        for (int g16 = 0; g16 < c->GT; g16++) {
            const int64_t unit = (int64_t)group * c->GT + g16;
            const real *g_s = a.scores + (unit * a.slot_blocks[CMP] + b) * TILE_ROWS * BLOCK;
            acc_16x64 s;
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++) {
                const float4 four = load4(g_s + (lane_row() + i) * BLOCK + lane_col());
                s.x[i][0] = four.x;
                s.x[i][1] = four.y;
                s.x[i][2] = four.z;
                s.x[i][3] = four.w;
            }
            add_to_ring(&sel, &s, s_stats, g16, b * BLOCK);
        }
        add_importance(&sel, min(to, (b + 1) * BLOCK / c->per_block));
    }
    add_importance(&sel, to);
#pragma unroll
    for (int i = 0; i < TOPK_PER_LANE; i++)
        s_best[warp_id()][i * WARP_SIZE + lane_id()] =
            sel.best.key[i] == ~(sort_key)0 ? 0 : sel.best.key[i];
    __syncthreads();
    if (warp_id() > 0)
        return;
    for (int i = 1; i < SELECT_WARPS; i++) {
        for (int k = 0; k < TOPK_PER_LANE; k++)
            topk_insert(&sel.best, s_best[i][k * WARP_SIZE + lane_id()]);
    }
    topk_emit(&sel.best, c, own_block, s_list, a.block_idx + (int64_t)group * c->n);
}

static size_t select_bytes(const dims *c) {
    return (size_t)(SELECT_WARPS * ring_size(c) + c->GT * TILE_ROWS * 2) * sizeof(float);
}

nsa_status open_decode_select(void) {
    return nsa_allow_shared(decode_select_kernel);
}

nsa_status decode_select(stage *st, const decode_args *a) {
    LAUNCH(decode_select_kernel, (unsigned)(a->units / a->c.GT), SELECT_WARPS * WARP_SIZE,
           select_bytes(&a->c), st, *a, ring_size(&a->c));
    return NSA_OK;
}
