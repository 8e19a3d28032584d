/** @file
 *  @brief Which rows a CUDA block has, and which blocks and keys each row sees: what stage 02's
 * lists of spans have become. */
#ifndef VISIBLE_CUH
#define VISIBLE_CUH

#include "stage.cuh"

static const uint64_t ALL_KEYS = ~(uint64_t)0; /* the mask of all 64 keys of a block */

/* Bits lo..hi-1 of a block's mask; lo and hi may lie outside of 0..64. */
static __device__ __forceinline__ uint64_t range_mask(int lo, int hi) {
    lo = max(lo, 0);
    hi = min(hi, BLOCK);
    return hi <= lo ? 0 : (ALL_KEYS >> (BLOCK - (hi - lo))) << lo;
}

/* ------------------------------------------------- the rows of a CUDA block */

/* A CUDA block's kv head and rows. */
typedef struct tile_coord {
    int kvh;        /* kv head */
    row_range rows; /* the rows, of one sequence */
    int lane_t;     /* position of row lane_id(), -1 if there is none */
    int last_t;     /* of the last row, which sees the most keys */
    const sequence *sq;
} tile_coord;

static __device__ __forceinline__ tile_coord tile_coord_of(const attend_args *a,
                                                           const row_range *rows, int kvh) {
    tile_coord coord;
    coord.kvh = kvh;
    coord.rows = *rows;
    coord.sq = &a->seqs[rows->sequence];
    coord.lane_t = lane_id() < rows->count ? a->row_t[rows->first + lane_id()] : -1;
    coord.last_t = __shfl_sync(ALL_LANES, coord.lane_t, rows->count - 1);
    return coord;
}

/* Position of row i of the CUDA block, -1 if there is none; all lanes call. */
static __device__ __forceinline__ int position_of(const tile_coord *coord, int i) {
    return __shfl_sync(ALL_LANES, coord->lane_t, i);
}

/* Number of the tile of heads g16 of a row, among all of [R,Hkv,GT]. */
static __device__ __forceinline__ int64_t head_tile(const dims *c, int64_t row, int kvh, int g16) {
    return (row * c->Hkv + kvh) * c->GT + g16;
}

/* One block of keys and values. */
typedef struct block_ptrs {
    const bf16 *k, *v;
} block_ptrs;

/* Block `block` of all blocks. */
template <int DK, int DV>
static __device__ __forceinline__ block_ptrs block_at(const kv_blocks *in, int64_t block) {
    return {in->rows[KEYS] + block * BLOCK * DK, in->rows[VALUES] + block * BLOCK * DV};
}

/* The first block of a sequence and kv head. */
template <int DK, int DV>
static __device__ __forceinline__ block_ptrs first_block_of(const attend_args *a,
                                                            const sequence *sq, int kvh,
                                                            int branch) {
    const kv_blocks *in = &a->in[branch];
    return block_at<DK, DV>(in, kvh * in->stride + sq->first_block[branch]);
}

/* Block `block` after it. */
template <int DK, int DV>
static __device__ __forceinline__ block_ptrs block_after(const block_ptrs &first, int block) {
    return {first.k + (int64_t)block * (BLOCK * DK), first.v + (int64_t)block * (BLOCK * DV)};
}

/* Number of compressed tokens that position t sees: those with i d + l - 1 <= t (Eq. 8);
 * nsa_cmp_visible() on the device. */
static __device__ __forceinline__ int cmp_visible(const dims *c, int t) {
    return t + 1 < c->l ? 0 : (t + 1 - c->l) / c->d + 1;
}

/* The first token of position t's window: t - w < s <= t. */
static __device__ __forceinline__ int first_win(const dims *c, int t) {
    return max(t - c->w + 1, 0);
}

/* The keys from..end-1 of a sequence. */
typedef struct key_range {
    int from, end;
} key_range;

/* What position t sees in the compressed branch or in its window; nothing if t is -1. */
static __device__ __forceinline__ key_range visible_range(const dims *c, int branch, int t) {
    if (t < 0)
        return {0, 0};
    return branch == CMP ? key_range{0, cmp_visible(c, t)} : key_range{first_win(c, t), t + 1};
}

/* Those of memory block `block`, as bits. */
static __device__ __forceinline__ uint64_t mask_of(const key_range &x, int block) {
    return range_mask(x.from - block * BLOCK, x.end - block * BLOCK);
}

/* The number of a memory block among those that a row sees by its list: block `i` of entry `entry`,
 * the first entry that touches it. At most n * each, with gaps. */
static __device__ __forceinline__ int selected_place(const dims *c, int entry, int i) {
    return entry * c->each + i;
}

/* Position in one row's list of selected blocks. */
typedef struct block_iter {
    int entry;      /* index into the list */
    int next_token; /* tokens before this are done */
    int place;      /* of the block returned, see selected_place() */
} block_iter;

/* The next memory block that the list idx [n] (ascending, -1 last) touches, and the mask of its
 * tokens up to t. The selection block size l' may be any; memory blocks are always 64 keys. Several
 * selected blocks in one memory block are returned together. False when there is no more. */
static __device__ __forceinline__ bool next_block(block_iter *iter, const int32_t *idx,
                                                  const dims *c, int t, int *block,
                                                  uint64_t *mask) {
    if (iter->entry >= c->n || idx[iter->entry] < 0)
        return false;
    const int memory_block = max(idx[iter->entry] * c->lb, iter->next_token) / BLOCK;
    *block = memory_block;
    *mask = 0;
    iter->place = selected_place(c, iter->entry, memory_block - idx[iter->entry] * c->lb / BLOCK);
    iter->next_token = (memory_block + 1) * BLOCK;
    while (iter->entry < c->n && idx[iter->entry] >= 0) {
        const int first = idx[iter->entry] * c->lb, end = min(first + c->lb, t + 1);
        if (first >= iter->next_token)
            break;
        *mask |= range_mask(first - memory_block * BLOCK, end - memory_block * BLOCK);
        if (end > iter->next_token)
            break; /* it goes on in the next memory block */
        iter->entry++;
    }
    return true;
}

/* ---------------------------------------------- the rows of a block of keys */

/* The tokens of selected block j that position t sees, those of memory block `block` alone. */
static __device__ __forceinline__ uint64_t selected_mask(const dims *c, int j, int t, int block) {
    const int first = j * c->lb, end = min(first + c->lb, t + 1);
    return range_mask(first - block * BLOCK, end - block * BLOCK);
}

/* The keys that row r at position t sees in block b of its sequence, of kv head kvh. A row of the
 * selected branch's list has selected a block there: all of it, if l' is a multiple of 64. */
static __device__ __forceinline__ uint64_t visible_keys(const attend_args *a, int branch, int kvh,
                                                        int b, int r, int t) {
    const dims *c = &a->c;
    if (t < 0 || branch != SLC)
        return mask_of(visible_range(c, branch, t), b);
    if (c->lb % BLOCK == 0)
        return range_mask(0, t + 1 - b * BLOCK);
    const int32_t *idx = a->block_idx + ((int64_t)r * c->Hkv + kvh) * c->n;
    uint64_t mask = 0;
    for (int i = 0; i < c->n && idx[i] >= 0; i++)
        mask |= selected_mask(c, idx[i], t, b);
    return mask;
}

/* The positions from..to, both included. */
typedef struct full_range {
    int from, to;
} full_range;

/* The positions that see all keys of block b of a sequence. None for
 * selected blocks whose l' is no multiple of 64: there only a row's list can tell. */
static __device__ __forceinline__ full_range rows_that_see_all(const dims *c, int branch, int b) {
    const int last = (b + 1) * BLOCK - 1, never = INT32_MAX;
    if (branch == CMP)
        return {last * c->d + c->l - 1, never};
    if (branch == SLC)
        return {c->lb % BLOCK == 0 ? last : never, never};
    return {last, c->w < never - b * BLOCK ? b * BLOCK + c->w - 1 : never};
}

#endif
