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

/* The row and kv head of a warp. */
typedef struct tile_coord {
    int kvh;               /* kv head */
    int64_t row;           /* result row */
    int t;                 /* its position, -1 if the warp has no row */
    const row_range *rows; /* the CUDA block's rows */
    const sequence *sq;
} tile_coord;

static __device__ __forceinline__ tile_coord tile_coord_of(const attend_args *a, int64_t tile,
                                                           int kvh) {
    tile_coord coord;
    coord.kvh = kvh;
    coord.rows = &a->tiles[tile];
    coord.sq = &a->seqs[coord.rows->sequence];
    coord.row = coord.rows->first + warp_id();
    coord.t = warp_id() < coord.rows->count ? a->row_t[coord.row] : -1;
    return coord;
}

/* Position of the CUDA block's last row, which sees the most keys. */
static __device__ __forceinline__ int last_position(const attend_args *a, const tile_coord *coord) {
    return a->row_t[coord->rows->first + coord->rows->count - 1];
}

/* Number of the tile of heads g16 of a row, among all of [R,Hkv,GT]. */
static __device__ __forceinline__ int64_t head_tile(const dims *c, int64_t row, int kvh, int g16) {
    return (row * c->Hkv + kvh) * c->GT + g16;
}

/* One block of keys and values in each layout: K^T, V, and for backward K and V^T, else NULL. */
typedef struct block_ptrs {
    const real *kt, *v, *k, *vt;
} block_ptrs;

static __device__ __forceinline__ block_ptrs block_at(const kv_blocks *in, const dims *c,
                                                      int64_t block) {
    block_ptrs at;
    at.kt = in->transposed[KEYS] + block * c->dk8 * BLOCK;
    at.v = in->natural[VALUES] + block * BLOCK * c->dvp;
    at.k = in->natural[KEYS] ? in->natural[KEYS] + block * BLOCK * c->dkp : NULL;
    at.vt = in->transposed[VALUES] ? in->transposed[VALUES] + block * c->dv8 * BLOCK : NULL;
    return at;
}

/* Block `block` of the warp's sequence and head. */
static __device__ __forceinline__ block_ptrs block_ptrs_of(const attend_args *a,
                                                           const tile_coord *coord, int branch,
                                                           int block) {
    const kv_blocks *in = &a->in[branch];
    return block_at(in, &a->c, coord->kvh * in->stride + coord->sq->first_block[branch] + block);
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

/* The next memory block from `block` on that some row of the CUDA block has in its window;
 * INT32_MAX when there is none. Rows may lie far apart if the caller listed them. */
static __device__ __forceinline__ int next_win_block(const attend_args *a, const tile_coord *coord,
                                                     int block) {
    int next = INT32_MAX;
    for (int i = 0; i < coord->rows->count; i++) {
        const int t = a->row_t[coord->rows->first + i];
        if (t / BLOCK >= block)
            next = min(next, max(first_win(&a->c, t) / BLOCK, block));
    }
    return next;
}

/* Position in one row's list of selected blocks. */
typedef struct block_iter {
    int entry;      /* index into the list */
    int next_token; /* tokens before this are done */
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

#endif
