/** @file
 *  @brief Attention of one warp: the 16 heads of its row against one block after another, with the
 *  online softmax and the outputs in registers. For the kernels of attend.cu and
 *  decode_attend.cu. */
#ifndef ATTEND_CUH
#define ATTEND_CUH

#include "stage.cuh"

static const uint64_t ALL_KEYS = ~(uint64_t)0; /* the mask of all 64 keys of a block */
#define ALL_LANES 0xffffffffu

/* Sizes of a CUDA block's dynamic shared memory, in floats. First the part that all warps share: a
 * chunk of a block of keys or values. Then the warps' own parts, one after another: Q^T [dk8][16],
 * in backward dO^T [dv8][16], P^T or dS^T [64][16], and for the compressed branch a ring buffer of
 * group sums and the statistics of its GT tiles. */
typedef struct smem_layout {
    int chunk, q, dout, ring, warp; /* warp: all floats of one warp */
} smem_layout;

/* `dout`: rows of dO^T, 0 in forward; `ring`: floats of the ring buffer, 0 where nothing is
 * selected. The chunk has 4 KiB a warp, so each makes four loads, and at least four rows of values.
 */
static inline smem_layout layout_of(const dims *c, int warps, int dout, int ring) {
    smem_layout layout;
    layout.chunk = warps * 1024 > LANE_COLS * c->wp ? warps * 1024 : LANE_COLS * c->wp;
    layout.q = c->dk8 * TILE_ROWS;
    layout.dout = dout * TILE_ROWS;
    layout.ring = ring;
    layout.warp =
        layout.q + layout.dout + BLOCK * TILE_ROWS + ring + (ring ? c->GT * TILE_ROWS * 2 : 0);
    return layout;
}

static inline size_t smem_bytes(smem_layout layout, int warps) {
    return (size_t)(layout.chunk + warps * layout.warp) * sizeof(float);
}

/* The same as one warp sees it. */
typedef struct smem {
    float *chunk, *q, *dout, *p, *ring;
    row_stats *stats;
    int chunk_floats, ring_floats;
} smem;

static __device__ __forceinline__ int lane_id(void) {
    return (int)threadIdx.x % WARP_SIZE;
}

static __device__ __forceinline__ int warp_id(void) {
    return (int)threadIdx.x / WARP_SIZE;
}

static __device__ __forceinline__ smem smem_of(smem_layout layout, float *base) {
    smem m;
    m.chunk = base;
    m.q = base + layout.chunk + warp_id() * layout.warp;
    m.dout = m.q + layout.q;
    m.p = m.dout + layout.dout;
    m.ring = m.p + BLOCK * TILE_ROWS;
    m.stats = (row_stats *)(m.ring + layout.ring);
    m.chunk_floats = layout.chunk;
    m.ring_floats = layout.ring;
    return m;
}

/* Bits lo..hi-1 of a block's mask; lo and hi may lie outside of 0..64. */
static __device__ __forceinline__ uint64_t range_mask(int lo, int hi) {
    lo = max(lo, 0);
    hi = min(hi, BLOCK);
    return hi <= lo ? 0 : (ALL_KEYS >> (BLOCK - (hi - lo))) << lo;
}

/* The warp's own copy of a row tile Q^T [dk8][16], the A of its first products. */
static __device__ __forceinline__ void load_tile(float *s_q, const float *g_q, int floats) {
    __syncwarp();
    for (int i = 4 * lane_id(); i < floats; i += 4 * WARP_SIZE)
        *(float4 *)(s_q + i) = load4(g_q + i);
    __syncwarp();
}

/* ------------------------------------------------- the rows of a CUDA block */

/* The row and kv head of a warp. */
typedef struct tile_coord {
    int head;                 /* kv head */
    int64_t row;              /* result row */
    int t;                    /* its position, -1 if the warp has no row */
    const tile_of_rows *rows; /* the CUDA block's rows */
    const sequence *sq;
} tile_coord;

static __device__ __forceinline__ tile_coord tile_coord_of(const attend_args *a, int64_t tile,
                                                           int head) {
    tile_coord coord;
    coord.head = head;
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

/* Number of the warp's tile of heads g16, among all of [R,Hkv,GT]. */
static __device__ __forceinline__ int64_t head_tile(const dims *c, const tile_coord *coord,
                                                    int g16) {
    return (coord->row * c->Hkv + coord->head) * c->GT + g16;
}

/* One block of keys and values in each layout; k and vt are NULL without backward. */
typedef struct block_ptrs {
    const real *kt, *v, *k, *vt;
} block_ptrs;

static __device__ __forceinline__ block_ptrs block_at(const kv_blocks *in, const dims *c,
                                                      int64_t block) {
    block_ptrs at;
    at.kt = in->kt + block * c->dk8 * BLOCK;
    at.v = in->v + block * BLOCK * c->dvp;
    at.k = in->k ? in->k + block * BLOCK * c->dkp : NULL;
    at.vt = in->vt ? in->vt + block * c->dv8 * BLOCK : NULL;
    return at;
}

/* Block `block` of the warp's sequence and head. */
static __device__ __forceinline__ block_ptrs block_of(const attend_args *a, const tile_coord *coord,
                                                      int branch, int block) {
    const kv_blocks *in = &a->in[branch];
    return block_at(in, &a->c, coord->head * in->stride + coord->sq->first[branch] + block);
}

/* Number of compressed tokens that position t sees: those with i d + l - 1 <= t (Eq. 8). */
static __device__ __forceinline__ int visible_cmp(const dims *c, int t) {
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

/* ------------------------------------------------------------ online softmax */

/* State of the online softmax of one row tile. o: outputs [16, 64 N_TILES], not yet divided by the
 * row sums. row_max: largest score q.k so far, before scaling. row_sum: over this lane's columns
 * only, until softmax_finalize() makes it 1 / sum. */
template <int N_TILES> struct softmax_state {
    acc_16x64 o[N_TILES];
    float row_max[LANE_ROWS], row_sum[LANE_ROWS];
};

template <int N_TILES>
static __device__ __forceinline__ void softmax_init(softmax_state<N_TILES> *a) {
#pragma unroll
    for (int s = 0; s < N_TILES; s++)
        zero_acc_16x64(&a->o[s]);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        a->row_max[i] = -INFINITY;
        a->row_sum[i] = 0;
    }
}

/* Online softmax (Milakov and Gimelshein 2018), one block. If m and m' are the row maximum before
 * and after the block, o = o 2^(m-m') + sum_j 2^(s_j-m') v_j, and the same for the sum. Here the
 * scores become 2^(s-m'), stored as P^T; matmul_masked() does the rest. Keys outside of `mask` get
 * -inf. The maximum is subtracted first, and the difference is scaled by scale2: one rounding, so
 * large scores lose no digits, and no multiply-add that a compiler may contract or not. */
template <int N_TILES>
static __device__ __forceinline__ void online_softmax_update(softmax_state<N_TILES> *a,
                                                             acc_16x64 *s, uint64_t mask,
                                                             float scale2, float *s_p) {
    float rescale[LANE_ROWS];
    bool max_grew = false;
    if (mask != ALL_KEYS) {
        const unsigned lane_mask = (unsigned)(mask >> lane_col());
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++) {
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++)
                s->x[i][j] = lane_mask >> j & 1 ? s->x[i][j] : -INFINITY;
        }
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        float *row = s->x[i];
        const float block_max = row_reduce_max(fmaxf(fmaxf(row[0], row[1]), fmaxf(row[2], row[3])));
        const float new_max = fmaxf(a->row_max[i], block_max);
        const float base = new_max == -INFINITY ? 0 : new_max; /* avoids -inf - -inf */
        rescale[i] = exp2f(scale2 * (a->row_max[i] - base));
        max_grew |= new_max != a->row_max[i];
        a->row_max[i] = new_max;
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            row[j] = exp2f(scale2 * (row[j] - base));
        a->row_sum[i] = a->row_sum[i] * rescale[i] + ((row[0] + row[1]) + (row[2] + row[3]));
    }
    if (__any_sync(ALL_LANES, max_grew)) { /* rare after the first few blocks */
#pragma unroll
        for (int n_tile = 0; n_tile < N_TILES; n_tile++) {
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
                for (int j = 0; j < LANE_COLS; j++)
                    a->o[n_tile].x[i][j] *= rescale[i];
            }
        }
    }
    __syncwarp(); /* all lanes have read the last block's P^T */
    store_transposed(s_p, s);
    __syncwarp();
}

/* Divide by the sums. row_sum becomes 1 / sum: p = 2^(scale2 (s - row_max)) row_sum. */
template <int N_TILES>
static __device__ __forceinline__ void softmax_finalize(softmax_state<N_TILES> *a) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float total = row_reduce_sum(a->row_sum[i]);
        a->row_sum[i] = total != 0 ? 1 / total : 0; /* no visible key: o = 0 */
        a->row_max[i] = a->row_max[i] == -INFINITY ? 0 : a->row_max[i];
#pragma unroll
        for (int n_tile = 0; n_tile < N_TILES; n_tile++) {
#pragma unroll
            for (int j = 0; j < LANE_COLS; j++)
                a->o[n_tile].x[i][j] *= a->row_sum[i];
        }
    }
}

/* Two-level summation. A float32 sum over all compressed keys of a long text rounds once a key, at
 * the size of the whole sum. So every FLUSH_EVERY blocks the outputs are stored in g_o (the rows of
 * the tile's `heads` heads, dvp floats apart) and the registers restart from zero: far fewer
 * roundings at full size. Gradients need these digits: the dS of a row add up to zero only if o is
 * exact, and the rest does not shrink as the number of keys grows, but the gradients do. */
enum { FLUSH_EVERY = 32 };

/* Add the stored partial outputs, rescaled from their row maximum (s_stats [16]) to the current
 * one. */
template <int N_TILES>
static __device__ __forceinline__ void add_partial(softmax_state<N_TILES> *a, const dims *c,
                                                   const float *g_o, int heads,
                                                   const row_stats *s_stats) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float base = a->row_max[i] == -INFINITY ? 0 : a->row_max[i];
        const float rescale = exp2f(c->scale2 * (s_stats[lane_row() + i].row_max - base));
#pragma unroll
        for (int s = 0; s < N_TILES && lane_row() + i < heads; s++) {
            const float4 o = load4(g_o + (lane_row() + i) * c->dvp + s * TILE_COLS + lane_col());
            a->o[s].x[i][0] += rescale * o.x;
            a->o[s].x[i][1] += rescale * o.y;
            a->o[s].x[i][2] += rescale * o.z;
            a->o[s].x[i][3] += rescale * o.w;
        }
    }
    __syncwarp();
}

template <int N_TILES>
static __device__ __forceinline__ void flush_partial(softmax_state<N_TILES> *a, const dims *c,
                                                     float *g_o, int heads, row_stats *s_stats) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        if (lane_id() < 2)
            s_stats[lane_row() + i].row_max = a->row_max[i];
#pragma unroll
        for (int s = 0; s < N_TILES; s++) {
            const float *o = a->o[s].x[i];
            if (lane_row() + i < heads)
                store4(g_o + (lane_row() + i) * c->dvp + s * TILE_COLS + lane_col(), o[0], o[1],
                       o[2], o[3]);
        }
    }
#pragma unroll
    for (int s = 0; s < N_TILES; s++)
        zero_acc_16x64(&a->o[s]);
}

/* ------------------------------------------------------- one block of keys */

/* Copy `floats` floats (a multiple of 4) from global memory to the chunk, by all threads of the
 * CUDA block. */
static __device__ __forceinline__ void load_shared(float *s_chunk, const float *g_from,
                                                   int floats) {
    __syncthreads(); /* all warps have used the last chunk */
#pragma unroll 4
    for (int i = 4 * (int)threadIdx.x; i < floats; i += 4 * (int)blockDim.x)
        *(float4 *)(s_chunk + i) = load4(g_from + i);
    __syncthreads();
}

/* S [16,64] += A B, both in shared memory or on their way there: A^T = s_a [K][16] of this warp
 * (Q^T or dO^T), B = g_b [K][64] in global memory (K^T or V^T of a block), which goes through the
 * chunk. Every warp loads; warps with `compute` multiply. */
static __device__ __forceinline__ void shared_scores(acc_16x64 *s, const smem *m, const float *s_a,
                                                     const float *g_b, int K, bool compute) {
    const int rows = m->chunk_floats / BLOCK;
    for (int k = 0; k < K; k += rows) {
        const int count = min(rows, K - k);
        load_shared(m->chunk, g_b + k * BLOCK, count * BLOCK);
        if (compute)
            warp_matmul<1>(s, s_a + k * TILE_ROWS + lane_row(), TILE_ROWS, m->chunk + lane_col(),
                           BLOCK, count);
    }
}

/* The keys of a block that are visible. */
typedef struct visible_mask {
    uint64_t row, any; /* to this warp's row; to some row of the CUDA block, equal in all warps */
} visible_mask;

/* C [16, 64 N_TILES] += P B, P^T as stored in m->p, B = g_b [64][ldb] in global memory: values, or
 * in backward keys. It goes through the chunk too. */
template <int N_TILES>
static __device__ __forceinline__ void shared_matmul(acc_16x64 *acc, const smem *m,
                                                     const float *g_b, int ldb, visible_mask mask) {
    const int rows = m->chunk_floats / ldb & ~(LANE_COLS - 1);
    for (int k = 0; k < BLOCK; k += rows) {
        const int count = min(rows, BLOCK - k);
        if (!(mask.any & range_mask(k, k + count)))
            continue;
        load_shared(m->chunk, g_b + (int64_t)k * ldb, count * ldb);
        matmul_masked<N_TILES>(acc, m->p, m->chunk + lane_col(), ldb, key_run{k, count, mask.row});
    }
}

/* Attention over one block that all warps share. */
template <int N_TILES>
static __device__ __forceinline__ void attend_shared_block(softmax_state<N_TILES> *x, const dims *c,
                                                           const smem *m, block_ptrs at,
                                                           visible_mask mask) {
    {
        acc_16x64 s;
        zero_acc_16x64(&s);
        shared_scores(&s, m, m->q, at.kt, c->dk8, mask.row != 0);
        if (mask.row)
            online_softmax_update(x, &s, mask.row, c->scale2, m->p);
    }
    shared_matmul<N_TILES>(x->o, m, at.v, c->dvp, mask);
}

/* Attention over one block of one warp, read straight from global memory: no other warp is expected
 * to need it. g_scores [16,64], if not NULL, gets the scores. */
template <int N_TILES>
static __device__ __forceinline__ void attend_global_block(softmax_state<N_TILES> *x, const dims *c,
                                                           const smem *m, block_ptrs at,
                                                           uint64_t mask, float *g_scores) {
    {
        acc_16x64 s;
        zero_acc_16x64(&s);
        warp_matmul<1>(&s, m->q + lane_row(), TILE_ROWS, at.kt + lane_col(), BLOCK, c->dk8);
        if (g_scores) {
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++)
                store4(g_scores + (lane_row() + i) * BLOCK + lane_col(), s.x[i][0], s.x[i][1],
                       s.x[i][2], s.x[i][3]);
        }
        online_softmax_update(x, &s, mask, c->scale2, m->p);
    }
    matmul_masked<N_TILES>(x->o, m->p, at.v + lane_col(), c->dvp, key_run{0, BLOCK, mask});
}

#endif
