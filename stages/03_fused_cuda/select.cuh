/** @file
 *  @brief Importance (Eq. 9, 10) and the choice of blocks (Eq. 11), by one warp as scores stream
 * past: the compressed keys come in blocks of 64, and nothing is kept but a ring of their group
 * sums and the best blocks so far. */
#ifndef SELECT_CUH
#define SELECT_CUH

#include "attend.cuh"

/* The ring holds two blocks' columns, and those before them that an unfinished selection block
 * wants. */
static inline int ring_size(const dims *c) {
    int size = BLOCK;
    while (size < 2 * BLOCK + (c->lb + c->l) / c->d)
        size *= 2;
    return size;
}

typedef unsigned long long rank; /* orders candidates: the greater is chosen first */

enum { LIST_LANE = 4 }; /* of n <= 128 places a lane has 4 */

/* The free places of one row: place p is key[p / 32] of lane p % 32. 0 is an empty place, and least
 * is the warp's smallest key, the next to go. */
typedef struct picks {
    rank key[LIST_LANE], least;
} picks;

/* Importance descending, index ascending; NaN below every number. Importance is at least +0, so its
 * bits are in its order; 0 is left for NaN. The index makes every rank different, and none 0. */
static __device__ __forceinline__ rank rank_of(float importance, int j) {
    const unsigned first = importance != importance ? 0 : __float_as_uint(importance) + 1;
    return (rank)first << 32 | (0xffffffffu - (unsigned)j);
}

/* `places` free ones; the others are taken by what nothing exceeds. */
static __device__ __forceinline__ void begin_picks(picks *best, int places) {
#pragma unroll
    for (int i = 0; i < LIST_LANE; i++)
        best->key[i] = i * WARP + this_lane() < places ? 0 : ~(rank)0;
    best->least = places > 0 ? 0 : ~(rank)0;
}

/* Each lane offers one candidate (0: none). One after the other takes the least one's place. */
static __device__ __forceinline__ void offer(picks *best, rank key) {
    unsigned better;
    while ((better = __ballot_sync(ALL_LANES, key > best->least)) != 0) {
        const int source = __ffs((int)better) - 1;
        const rank chosen = __shfl_sync(ALL_LANES, key, source);
        int place = -1;
#pragma unroll
        for (int i = LIST_LANE - 1; i >= 0; i--)
            place = best->key[i] == best->least ? i : place;
        const unsigned owners = __ballot_sync(ALL_LANES, place >= 0);
        const bool owner = this_lane() == __ffs((int)owners) - 1;
        rank least = ~(rank)0;
#pragma unroll
        for (int i = 0; i < LIST_LANE; i++) {
            best->key[i] = owner && i == place ? chosen : best->key[i];
            least = best->key[i] < least ? best->key[i] : least;
        }
#pragma unroll
        for (int lane = 1; lane < WARP; lane *= 2) {
            const rank other = __shfl_xor_sync(ALL_LANES, least, lane);
            least = other < least ? other : least;
        }
        best->least = least;
        key = this_lane() == source ? 0 : key;
    }
}

/* How many blocks are forced for a query in block `own`: the first slc_init (n0), and from `local`
 * on those that end with its own. */
static __device__ __forceinline__ int forced_blocks(const dims *c, int own, int *n0, int *local) {
    *n0 = min(c->init, own + 1);
    *local = max(*n0, own - c->local + 1);
    return *n0 + max(0, own - *local + 1);
}

/* idx [n] of a row: forced blocks and picks, ascending, padded with -1. s_list [n] is scratch. */
static __device__ __forceinline__ void emit(const picks *best, const dims *c, int own, int *s_list,
                                            int32_t *g_idx) {
    int n0, local, count = forced_blocks(c, own, &n0, &local);
    __syncwarp();
    for (int i = this_lane(); i < count; i += WARP)
        s_list[i] = i < n0 ? i : local + i - n0;
#pragma unroll
    for (int i = 0; i < LIST_LANE; i++) {
        const bool mine = best->key[i] != 0 && best->key[i] != ~(rank)0;
        const unsigned all = __ballot_sync(ALL_LANES, mine);
        if (mine)
            s_list[count + __popc(all & ((1u << this_lane()) - 1))] =
                (int)(0xffffffffu - (unsigned)best->key[i]);
        count += __popc(all);
    }
    __syncwarp();
    for (int i = this_lane(); i < c->n; i += WARP) {
        int before = 0;
        for (int k = 0; k < count && i < count; k++)
            before += s_list[k] < s_list[i];
        g_idx[i < count ? before : i] = i < count ? s_list[i] : -1;
    }
    __syncwarp();
}

/* The probabilities of 64 columns from compressed key `first` on, summed over a tile's heads, into
 * the ring. One expression for every column, and heads are added in one order, so that equal scores
 * give equal sums: 8 in a lane pairwise, the other 8, then the group's other tiles. */
static __device__ __forceinline__ void add_to_ring(const piece *s, const row_stats *s_stats,
                                                   float scale2, int heads, int first, bool again,
                                                   float *s_ring, int ring) {
    float sum[LANE_COLS];
#pragma unroll
    for (int j = 0; j < LANE_COLS; j++) {
        float p[LANE_ROWS];
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            const row_stats r = s_stats[first_row() + i];
            p[i] = exp2f(scale2 * (s->at[i][j] - r.most)) * r.over;
            p[i] = first_row() + i < heads ? p[i] : 0;
        }
        sum[j] = ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
        sum[j] += __shfl_xor_sync(ALL_LANES, sum[j], 1);
    }
    if (first_row() == 0) {
        float *at = s_ring + (first & (ring - 1)) + first_col();
        const float4 old = again ? load4(at) : make_float4(0, 0, 0, 0);
        store4(at, old.x + sum[0], old.y + sum[1], old.z + sum[2], old.w + sum[3]);
    }
    __syncwarp();
}

/* Importance of blocks next..end-1, a lane each, out of the ring; with `choose` they become
 * candidates. Eq. 9, p_slc[j] = sum_{m < l'/d} sum_{r < l/d} p[(l'/d) j + m - r], with equal terms
 * taken together: compressed key (l'/d) j + k counts min(l/d, l/d + k, l'/d - k) times. Keys that
 * are not visible count 0. g_imp [J] may be NULL. */
static __device__ __forceinline__ void add_importance(const dims *c, const float *s_ring, int ring,
                                                      int n_visible, int own, int next, int end,
                                                      bool choose, picks *best, float *g_imp) {
    const int per_block = c->lb / c->d, overlap = c->l / c->d;
    for (; next < end; next += WARP) {
        const int j = next + this_lane();
        rank key = 0;
        if (j < end) {
            float sum = 0;
            for (int k = 1 - overlap; k < per_block; k++) {
                const int i = per_block * j + k;
                const int times = min(overlap, min(overlap + k, per_block - k));
                if (i >= 0 && i < n_visible)
                    sum += (float)times * s_ring[i & (ring - 1)];
            }
            if (g_imp)
                g_imp[j] = sum;
            if (j >= c->init && j <= own - c->local)
                key = rank_of(sum, j);
        }
        if (choose)
            offer(best, key);
    }
    __syncwarp(); /* the ring's oldest may be overwritten */
}

#endif
