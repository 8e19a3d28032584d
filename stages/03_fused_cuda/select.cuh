/** @file
 *  @brief Importance (Eq. 9, 10) and selection of blocks (Eq. 11) by one warp, as scores are
 *  computed: compressed keys come in blocks of 64, and only a ring buffer of their group sums and
 *  the best blocks so far are kept. */
#ifndef SELECT_CUH
#define SELECT_CUH

#include "attend.cuh"

/* The ring buffer holds the columns of one block, and those before them that an unfinished
 * selection block still needs: its own l'/d and l/d that reach into it. A power of two, so that a
 * column's place is its low bits. */
static inline int ring_size(const dims *c) {
    int size = BLOCK;
    while (size < BLOCK + (c->lb + c->l) / c->d)
        size *= 2;
    return size;
}

typedef unsigned long long sort_key; /* orders candidates: greater is better */

enum { TOPK_PER_LANE = 4 }; /* n <= 128 entries, 4 in each lane */

/* Top-k list of one row's blocks that are not forced: entry p is key[p / 32] of lane p % 32. A key
 * of 0 is an empty entry; min_key is the smallest key of the whole warp, the next to be
 * replaced. */
typedef struct topk {
    sort_key key[TOPK_PER_LANE], min_key;
} topk;

/* Insert one candidate of each lane (0: none). Each one better than min_key replaces that entry. */
static __device__ __forceinline__ void topk_insert(topk *best, sort_key key) {
    unsigned candidates;
    while ((candidates = __ballot_sync(ALL_LANES, key > best->min_key)) != 0) {
        const int source = __ffs((int)candidates) - 1;
        const sort_key incoming = __shfl_sync(ALL_LANES, key, source);
        int slot = -1;
#pragma unroll
        for (int i = TOPK_PER_LANE - 1; i >= 0; i--)
            slot = best->key[i] == best->min_key ? i : slot;
        const unsigned owners = __ballot_sync(ALL_LANES, slot >= 0);
        const bool owner = lane_id() == __ffs((int)owners) - 1;
        sort_key min_key = ~(sort_key)0;
#pragma unroll
        for (int i = 0; i < TOPK_PER_LANE; i++) {
            best->key[i] = owner && i == slot ? incoming : best->key[i];
            min_key = best->key[i] < min_key ? best->key[i] : min_key;
        }
#pragma unroll
        for (int lane = 1; lane < WARP_SIZE; lane *= 2) {
            const sort_key other = __shfl_xor_sync(ALL_LANES, min_key, lane);
            min_key = other < min_key ? other : min_key;
        }
        best->min_key = min_key;
        key = lane_id() == source ? 0 : key;
    }
}

/* Number of blocks that are forced for a query in block `own_block`: the first slc_init (their
 * number in n0), and those from `first_local` to its own. */
static __device__ __forceinline__ int forced_blocks(const dims *c, int own_block, int *n0,
                                                    int *first_local) {
    *n0 = min(c->init, own_block + 1);
    *first_local = max(*n0, own_block - c->local + 1);
    return *n0 + max(0, own_block - *first_local + 1);
}

/* An empty top-k list for a query in block `own_block`, with a place for each block that is not
 * forced; the rest are filled with the largest key, which nothing replaces. */
static __device__ __forceinline__ void topk_of_row(topk *best, const dims *c, int own_block) {
    int n0, first_local;
    const int capacity = c->n - forced_blocks(c, own_block, &n0, &first_local);
#pragma unroll
    for (int i = 0; i < TOPK_PER_LANE; i++)
        best->key[i] = i * WARP_SIZE + lane_id() < capacity ? 0 : ~(sort_key)0;
    best->min_key = capacity > 0 ? 0 : ~(sort_key)0;
}

/* idx [n] of a row: forced blocks and top-k, ascending, padded with -1. s_list [n] is scratch. */
static __device__ __forceinline__ void topk_emit(const topk *best, const dims *c, int own_block,
                                                 int *s_list, int32_t *g_idx) {
    int n0, first_local, count = forced_blocks(c, own_block, &n0, &first_local);
    __syncwarp();
    for (int i = lane_id(); i < count; i += WARP_SIZE)
        s_list[i] = i < n0 ? i : first_local + i - n0;
#pragma unroll
    for (int i = 0; i < TOPK_PER_LANE; i++) {
        const bool mine = best->key[i] != 0 && best->key[i] != ~(sort_key)0;
        const unsigned all = __ballot_sync(ALL_LANES, mine);
        if (mine)
            s_list[count + __popc(all & ((1u << lane_id()) - 1))] =
                (int)(0xffffffffu - (unsigned)best->key[i]);
        count += __popc(all);
    }
    __syncwarp();
    for (int i = lane_id(); i < c->n; i += WARP_SIZE) {
        int before = 0;
        for (int k = 0; k < count && i < count; k++)
            before += s_list[k] < s_list[i];
        g_idx[i < count ? before : i] = i < count ? s_list[i] : -1;
    }
    __syncwarp();
}

/* Importance of block j, from a ring buffer of group sums, where compressed key i lies at i % ring.
 * Eq. 9, p_slc[j] = sum_{m < l'/d} sum_{r < l/d} p[(l'/d) j + m - r], with equal terms taken
 * together: compressed key (l'/d) j + k has weight min(l/d, l/d + k, l'/d - k). Summed in float64,
 * where weight and p, 8 and 24 bits, have an exact product: in float32 3p + 2p + p and p + 2p + 3p
 * differ, which a block at the text's begin and one at the last visible key may have. Keys that are
 * not visible count 0. */
static __device__ __forceinline__ float importance_of(const dims *c, const float *s_ring, int ring,
                                                      int n_visible, int j) {
    double sum = 0;
    for (int k = 1 - c->overlap; k < c->per_block; k++) {
        const int i = c->per_block * j + k;
        const double weight = min(c->overlap, min(c->overlap + k, c->per_block - k));
        if (i >= 0 && i < n_visible)
            sum += weight * (double)s_ring[i & (ring - 1)];
    }
    return (float)sum;
}

/* Block j as a candidate of a query in block `own_block`; 0 if it is forced or lies after that.
 * Order: importance descending, index ascending; NaN below every number. Importance is at least +0,
 * so its bits have its order; 0 is left for NaN. The index makes every key different, and none
 * 0. */
static __device__ __forceinline__ sort_key candidate(const dims *c, int own_block, int j,
                                                     float importance) {
    const unsigned first = importance != importance ? 0 : __float_as_uint(importance) + 1;
    const sort_key key = (sort_key)first << 32 | (0xffffffffu - (unsigned)j);
    return j >= c->init && j <= own_block - c->local ? key : 0;
}

/* The selection of one row and kv head, while compressed keys stream past. */
typedef struct selection {
    const dims *c;
    topk best;
    float *s_ring; /* [ring] group sums of the last keys; a power of two */
    int ring;
    int n_visible, own_block; /* compressed keys that the query sees; its own block */
    int next;                 /* blocks before this have their importance */
    float *g_imp;             /* [J]; NULL if not wanted */
} selection;

static __device__ __forceinline__ void selection_init(selection *sel, const dims *c, int t,
                                                      float *s_ring, int ring) {
    sel->c = c;
    sel->s_ring = s_ring;
    sel->ring = ring;
    sel->n_visible = t < 0 ? 0 : cmp_visible(c, t);
    sel->own_block = t < 0 ? -1 : t / c->lb;
    sel->next = 0;
    sel->g_imp = NULL;
    topk_of_row(&sel->best, c, sel->own_block);
}

/* Add the probabilities of 64 compressed keys, from key `first` on, summed over the heads of tile
 * g16, to the ring buffer. s_stats: of all GT tiles. Every column has the same expression and heads
 * are added in a fixed order, so that equal scores give equal sums: 8 rows of a lane pairwise, then
 * the other 8, then the group's other tiles. */
static __device__ __forceinline__ void add_to_ring(const selection *sel, const acc_16x64 *s,
                                                   const row_stats *s_stats, int g16, int first) {
    float sum[LANE_COLS];
#pragma unroll
    for (int j = 0; j < LANE_COLS; j++) {
        float p[LANE_ROWS];
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            const int g = g16 * TILE_ROWS + lane_row() + i;
            const row_stats r = s_stats[g];
            p[i] = exp2f(sel->c->scale2 * (s->x[i][j] - r.row_max)) * r.inv_sum;
            p[i] = g < sel->c->G ? p[i] : 0;
        }
        sum[j] = ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
        sum[j] += __shfl_xor_sync(ALL_LANES, sum[j], 1);
    }
    if (lane_row() == 0) {
        float *s_col = sel->s_ring + (first & (sel->ring - 1)) + lane_col();
        const float4 old = g16 > 0 ? load4(s_col) : make_float4(0, 0, 0, 0);
        store4(s_col, old.x + sum[0], old.y + sum[1], old.z + sum[2], old.w + sum[3]);
    }
    __syncwarp();
}

/* Importance of the blocks before `end` that have none yet, one in each lane; they become
 * candidates. */
static __device__ __forceinline__ void add_importance(selection *sel, int end) {
    const dims *c = sel->c;
    for (; sel->next < end; sel->next += min(WARP_SIZE, end - sel->next)) {
        const int j = sel->next + lane_id();
        sort_key key = 0;
        if (j < end) {
            const float importance = importance_of(c, sel->s_ring, sel->ring, sel->n_visible, j);
            if (sel->g_imp)
                sel->g_imp[j] = importance;
            key = candidate(c, sel->own_block, j, importance);
        }
        topk_insert(&sel->best, key);
    }
    __syncwarp(); /* the oldest columns may be overwritten */
}

#endif
