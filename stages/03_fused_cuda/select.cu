/** @file
 *  @brief The choice of blocks (Eq. 9-11) as a kernel of its own: a decode step's. Forward chooses
 * inside attend_cmp, while the keys stream past; both by the functions of select.cuh. */
#include "decode.cuh"
#include "select.cuh"

/* Importance and choice of one row and kv head, out of the scores. Every warp ranks its share of
 * the blocks, then the first ranks the warps' best. Grid: rows * Hkv. Block: CHOOSERS warps.
 * Shared: statistics [GT*16], a ring and a list a warp. */
static __global__ void decode_choose_kernel(decode_args a, int ring) {
    __shared__ rank s_best[CHOOSERS][LIST_LANE * WARP];
    __shared__ int s_list[LIST_LANE * WARP];
    NSA_DYNAMIC_SHARED(float, s_rings);
    const dims *c = &a.c;
    float *s_ring = s_rings + this_warp() * ring;
    row_stats *s_stats = (row_stats *)(s_rings + CHOOSERS * ring);
    const int group = (int)blockIdx.x, t = a.t[group / c->Hkv];
    if (t < 0)
        return;
    const int own = t / c->lb, per_block = c->lb / c->d, n_visible = visible(c, t);
    const int share = (own + CHOOSERS) / CHOOSERS; /* selection blocks to a warp */
    const int from = min(this_warp() * share, own + 1), to = min(from + share, own + 1);
    for (int i = (int)threadIdx.x; i < c->GT * ROWS; i += CHOOSERS * WARP)
        s_stats[i] = stats_of(&a, (int64_t)group * c->GT + i / ROWS, CMP, i % ROWS);
    __syncthreads();
    picks best;
    int n0, local, done = from;
    const bool rank_them = own + 1 > c->n; /* else all are chosen */
    begin_picks(&best, c->n - forced_blocks(c, own, &n0, &local));
    const int first = max(per_block * from - c->l / c->d + 1, 0),
              last = min(per_block * to, n_visible);
    for (int b = first / BLOCK; rank_them && from < to && b * BLOCK < last; b++) {
        for (int g16 = 0; g16 < c->GT; g16++) {
            const int64_t unit = (int64_t)group * c->GT + g16;
            const real *g_s = a.scores + (unit * a.first[CMP] + b) * ROWS * BLOCK;
            piece s;
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++) {
                const float4 four = load4(g_s + (first_row() + i) * BLOCK + first_col());
                s.at[i][0] = four.x;
                s.at[i][1] = four.y;
                s.at[i][2] = four.z;
                s.at[i][3] = four.w;
            }
            add_to_ring(&s, s_stats + g16 * ROWS, c->scale2, c->G - g16 * ROWS, b * BLOCK, g16 > 0,
                        s_ring, ring);
        }
        const int end = max(done, min(to, (b + 1) * BLOCK / per_block));
        add_importance(c, s_ring, ring, n_visible, own, done, end, true, &best, NULL);
        done = end;
    }
    add_importance(c, s_ring, ring, rank_them ? n_visible : 0, own, done, to, true, &best, NULL);
#pragma unroll
    for (int i = 0; i < LIST_LANE; i++)
        s_best[this_warp()][i * WARP + this_lane()] = best.key[i] == ~(rank)0 ? 0 : best.key[i];
    __syncthreads();
    if (this_warp() > 0)
        return;
    for (int i = 1; i < CHOOSERS; i++) {
        for (int k = 0; k < LIST_LANE; k++)
            offer(&best, s_best[i][k * WARP + this_lane()]);
    }
    emit(&best, c, own, s_list, a.block_idx + (int64_t)group * c->n);
}

static size_t choose_bytes(const dims *c) {
    return (size_t)(CHOOSERS * ring_size(c) + c->GT * ROWS * 2) * sizeof(float);
}

nsa_status open_choose(void) {
    return nsa_allow_shared(decode_choose_kernel);
}

nsa_status decode_choose(stage *st, const decode_args *a) {
    NSA_LAUNCH(decode_choose_kernel, (unsigned)(a->units / a->c.GT), CHOOSERS * WARP,
               choose_bytes(&a->c), st->stream, *a, ring_size(&a->c));
    NSA_LAUNCHED("decode_choose");
    return NSA_OK;
}
