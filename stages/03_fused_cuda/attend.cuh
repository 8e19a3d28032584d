/** @file
 *  @brief Attention of one warp: the 16 heads of its row against one block after another, with the
 *  online softmax and the outputs in registers. For the kernels of attend.cu and
 *  decode_attend.cu. */
#ifndef ATTEND_CUH
#define ATTEND_CUH

#include "stage.cuh"

static const uint64_t ALL_KEYS = ~(uint64_t)0; /* the mask of all 64 keys of a block */
#define ALL_LANES 0xffffffffu

/* Dynamic shared memory of a CUDA block, in floats. First the part that all warps share: a chunk of
 * a block of keys or values. Then for each warp Q^T [dk8][16], P^T [64][16], and for the compressed
 * branch a ring buffer of group sums and the statistics of its GT tiles. */
typedef struct smem_layout {
    int chunk, ring, warp; /* warp: all floats of one warp */
} smem_layout;

static __device__ __forceinline__ int lane_id(void) {
    return (int)threadIdx.x % WARP_SIZE;
}

static __device__ __forceinline__ int warp_id(void) {
    return (int)threadIdx.x / WARP_SIZE;
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
static __device__ __forceinline__ void add_partial(softmax_state<N_TILES> *a, const float *g_o,
                                                   int dvp, int heads, float scale2,
                                                   const row_stats *s_stats) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float base = a->row_max[i] == -INFINITY ? 0 : a->row_max[i];
        const float rescale = exp2f(scale2 * (s_stats[lane_row() + i].row_max - base));
#pragma unroll
        for (int s = 0; s < N_TILES && lane_row() + i < heads; s++) {
            const float4 o = load4(g_o + (lane_row() + i) * dvp + s * TILE_COLS + lane_col());
            a->o[s].x[i][0] += rescale * o.x;
            a->o[s].x[i][1] += rescale * o.y;
            a->o[s].x[i][2] += rescale * o.z;
            a->o[s].x[i][3] += rescale * o.w;
        }
    }
    __syncwarp();
}

template <int N_TILES>
static __device__ __forceinline__ void flush_partial(softmax_state<N_TILES> *a, float *g_o, int dvp,
                                                     int heads, row_stats *s_stats) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        if (lane_id() < 2)
            s_stats[lane_row() + i].row_max = a->row_max[i];
#pragma unroll
        for (int s = 0; s < N_TILES; s++) {
            const float *o = a->o[s].x[i];
            if (lane_row() + i < heads)
                store4(g_o + (lane_row() + i) * dvp + s * TILE_COLS + lane_col(), o[0], o[1], o[2],
                       o[3]);
        }
    }
#pragma unroll
    for (int s = 0; s < N_TILES; s++)
        zero_acc_16x64(&a->o[s]);
}

/* ------------------------------------------------ a block that all warps share */

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

/* S [16, 64 BLOCKS] = Q K^T of one block or two, `block_stride` floats apart, each K^T [dk8][64].
 * The blocks go through shared memory chunk by chunk, rows of both side by side. Every warp loads;
 * warps with `compute` multiply. */
template <int BLOCKS>
static __device__ __forceinline__ void shared_scores(acc_16x64 *s, const float *s_q,
                                                     const float *g_kt, int64_t block_stride,
                                                     float *s_chunk, int chunk, int dk8,
                                                     bool compute) {
    const int width = BLOCKS * BLOCK, rows = chunk / width;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
        zero_acc_16x64(&s[i]);
    for (int k = 0; k < dk8; k += rows) {
        const int count = min(rows, dk8 - k);
        __syncthreads(); /* all warps have used the last chunk */
#pragma unroll 4
        for (int i = 4 * (int)threadIdx.x; i < count * width; i += 4 * (int)blockDim.x) {
            const int64_t offset = BLOCKS == 1 ? k * BLOCK + i
                                               : (int64_t)(i % width / BLOCK) * block_stride +
                                                     (k + i / width) * BLOCK + i % BLOCK;
            *(float4 *)(s_chunk + i) = load4(g_kt + offset);
        }
        __syncthreads();
        if (compute)
            warp_matmul<BLOCKS>(s, s_q + k * TILE_ROWS + lane_row(), TILE_ROWS,
                                s_chunk + lane_col(), width, count);
    }
}

/* Attention over one block that all warps share. `mask`: the keys that this warp's row sees.
 * `any_mask`: those that any row sees, the same in every warp. */
template <int N_TILES>
static __device__ __forceinline__ void attend_shared_block(softmax_state<N_TILES> *a, const dims *c,
                                                           const float *g_kt, const float *g_v,
                                                           float *s_chunk, int chunk, float *s_q,
                                                           float *s_p, uint64_t mask,
                                                           uint64_t any_mask) {
    const int rows = chunk / c->dvp & ~(LANE_COLS - 1);
    {
        acc_16x64 s;
        shared_scores<1>(&s, s_q, g_kt, 0, s_chunk, chunk, c->dk8, mask != 0);
        if (mask)
            online_softmax_update(a, &s, mask, c->scale2, s_p);
    }
    for (int k = 0; k < BLOCK; k += rows) {
        const int count = min(rows, BLOCK - k);
        if (!(any_mask & range_mask(k, k + count)))
            continue;
        load_shared(s_chunk, g_v + (int64_t)k * c->dvp, count * c->dvp);
        if (mask)
            matmul_masked<N_TILES>(a->o, s_p, s_chunk + lane_col(), c->dvp, mask, k / LANE_COLS,
                                   (k + count) / LANE_COLS);
    }
}

/* ---------------------------------------------- a block that one warp needs */

/* Attention over one block of one warp, read straight from global memory: no other warp is expected
 * to need it. g_scores [16,64], if not NULL, gets the scores. */
template <int N_TILES>
static __device__ __forceinline__ void attend_global_block(softmax_state<N_TILES> *a, const dims *c,
                                                           const float *g_kt, const float *g_v,
                                                           const float *s_q, float *s_p,
                                                           uint64_t mask, float *g_scores) {
    {
        acc_16x64 s;
        zero_acc_16x64(&s);
        warp_matmul<1, PREFETCH_DEPTH_GLOBAL>(&s, s_q + lane_row(), TILE_ROWS, g_kt + lane_col(),
                                              BLOCK, c->dk8);
        if (g_scores) {
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++)
                store4(g_scores + (lane_row() + i) * BLOCK + lane_col(), s.x[i][0], s.x[i][1],
                       s.x[i][2], s.x[i][3]);
        }
        online_softmax_update(a, &s, mask, c->scale2, s_p);
    }
    matmul_masked<N_TILES>(a->o, s_p, g_v + lane_col(), c->dvp, mask, 0, BLOCK / LANE_COLS);
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

/* Number of compressed tokens that position t sees: those with i d + l - 1 <= t (Eq. 8). */
static __device__ __forceinline__ int visible_cmp(const dims *c, int t) {
    return t + 1 < c->l ? 0 : (t + 1 - c->l) / c->d + 1;
}

#endif
