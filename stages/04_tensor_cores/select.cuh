/** @file
 *  @brief Importance (Eq. 9, 10) and selection of blocks (Eq. 11) by one warp: compressed keys come
 *  in blocks of 64, of which a ring buffer keeps the group sums; blocks are ranked by a list of the
 *  best. */
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

/* Arguments of a ranking: importance [rows,Hkv,J] of rows at positions t [rows], -1 for no row. */
typedef struct rank_args {
    dims c;
    const int32_t *t;
    int64_t rows;
    const float *importance;
    int64_t J;
    int32_t *block_idx; /* [rows,Hkv,n] */
} rank_args;

/* select.cu: block_idx from importance. */
nsa_status rank_blocks(stage *st, const rank_args *a);

typedef unsigned long long sort_key; /* orders candidates: greater is better */

enum { MAX_PER_LANE = 4 }; /* n <= 128 entries, up to 4 in each lane */

/* Top-k list of one row's blocks that are not forced, N entries a lane: entry p is key[p / 32] of
 * lane p % 32. A key of 0 is an empty entry; min_key is the smallest key of the whole warp, the
 * next to be replaced. */
template <int N> struct topk { sort_key key[N], min_key; };

/* The smallest key of all lanes, its halves one after the other. */
static __device__ __forceinline__ sort_key warp_min_key(sort_key key) {
    const unsigned high = (unsigned)(key >> 32), min_high = __reduce_min_sync(ALL_LANES, high);
    const unsigned low = high == min_high ? (unsigned)key : ~0u;
    return (sort_key)min_high << 32 | __reduce_min_sync(ALL_LANES, low);
}

/* Insert one candidate of each lane (0: none). Each one better than min_key replaces that entry:
 * its first, where several are empty. */
template <int N> static __device__ __forceinline__ void topk_insert(topk<N> *best, sort_key key) {
    unsigned candidates;
    while ((candidates = __ballot_sync(ALL_LANES, key > best->min_key)) != 0) {
        const int source = __ffs((int)candidates) - 1;
        const sort_key incoming = __shfl_sync(ALL_LANES, key, source);
        int slot = -1;
        for (int i = N - 1; i >= 0; i--)
            slot = best->key[i] == best->min_key ? i : slot;
        const unsigned owners = __ballot_sync(ALL_LANES, slot >= 0);
        const bool owner = lane_id() == __ffs((int)owners) - 1;
        sort_key min_key = ~(sort_key)0;
        for (int i = 0; i < N; i++) {
            best->key[i] = owner && i == slot ? incoming : best->key[i];
            min_key = best->key[i] < min_key ? best->key[i] : min_key;
        }
        best->min_key = warp_min_key(min_key);
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

/* The key at place `place`, from 0, of the lanes' keys in descending order, which differ unless
 * they are 0; 0 if there are not so many. */
static __device__ __forceinline__ sort_key key_at_place(sort_key key, int place) {
    int before = 0;
    for (int lane = 0; lane < WARP_SIZE; lane++)
        before += __shfl_sync(ALL_LANES, key, lane) > key;
    const unsigned there = __ballot_sync(ALL_LANES, before == place);
    return there ? __shfl_sync(ALL_LANES, key, __ffs((int)there) - 1) : 0;
}

/* An empty top-k list for a query in block `own_block`, with a place for each block that is not
 * forced; the rest are filled with the largest key, which nothing replaces. Returns its places. */
template <int N>
static __device__ __forceinline__ int topk_of_row(topk<N> *best, const dims *c, int own_block) {
    int n0, first_local;
    const int capacity = c->n - forced_blocks(c, own_block, &n0, &first_local);
    for (int i = 0; i < N; i++)
        best->key[i] = i * WARP_SIZE + lane_id() < capacity ? 0 : ~(sort_key)0;
    best->min_key = capacity > 0 ? 0 : ~(sort_key)0;
    return capacity;
}

/* idx [n] of a row: forced blocks and top-k, ascending, padded with -1. s_list [n] is scratch. */
template <int N>
static __device__ __forceinline__ void topk_emit(const topk<N> *best, const dims *c, int own_block,
                                                 int *s_list, int32_t *g_idx) {
    int n0, first_local, count = forced_blocks(c, own_block, &n0, &first_local);
    __syncwarp();
    for (int i = lane_id(); i < count; i += WARP_SIZE)
        s_list[i] = i < n0 ? i : first_local + i - n0;
    for (int i = 0; i < N; i++) {
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

/* Importance of the blocks j, from a ring buffer of group sums, where compressed key i lies at i %
 * ring. Eq. 9, p_slc[j] = sum_{m < l'/d} sum_{r < l/d} p[(l'/d) j + m - r], with equal terms taken
 * together: compressed key (l'/d) j + k has weight min(l/d, l/d + k, l'/d - k). Summed in float64,
 * where weight and p, 8 and 24 bits, have an exact product: in float32 3p + 2p + p and p + 2p + 3p
 * differ, which a block at the text's begin and one at the last visible key may have. Keys that are
 * not visible count 0. */
template <int N>
static __device__ __forceinline__ void importance_of(float (&importance)[N], const dims *c,
                                                     const float *s_ring, int ring, int n_visible,
                                                     const int (&j)[N]) {
    double sum[N];
#pragma unroll
    for (int n = 0; n < N; n++)
        sum[n] = 0;
    for (int k = 1 - c->overlap; k < c->per_block; k++) {
        const double weight = min(c->overlap, min(c->overlap + k, c->per_block - k));
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int i = c->per_block * j[n] + k;
            if ((unsigned)i < (unsigned)n_visible)
                sum[n] += weight * (double)s_ring[i & (ring - 1)];
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++)
        importance[n] = (float)sum[n];
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

/* Its importance; 0 for the key 0 and for NaN. */
static __device__ __forceinline__ float importance_of_key(sort_key key) {
    const unsigned first = (unsigned)(key >> 32);
    return first ? __uint_as_float(first - 1) : 0;
}

#endif
