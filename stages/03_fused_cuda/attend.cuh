/** @file
 *  @brief Attention of one warp: the 16 heads of its row against one block after another, with the
 *  online softmax and the outputs in registers. For the kernels of attend.cu and
 *  decode_attend.cu. */
#ifndef ATTEND_CUH
#define ATTEND_CUH

#include "visible.cuh"

/* Sizes of a CUDA block's dynamic shared memory, in floats. First the part that all warps share: a
 * chunk of a block of keys or values. Then the warps' own parts, one after another: Q^T [dk8][16],
 * in backward dO^T [dv8][16], P^T or dS^T [64][16], and for the compressed branch a ring buffer of
 * group sums and the statistics of its GT tiles. */
typedef struct smem_layout {
    int chunk, q, dout, ring, warp; /* warp: all floats of one warp */
} smem_layout;

/* `dout`: rows of dO^T, 0 in forward; `ring`: floats of the ring buffer, 0 where nothing is
 * selected. The chunk has 4 KiB a warp, eight loads of 16 bytes for each lane, and at least four
 * rows of values.
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
typedef struct warp_smem {
    float *chunk, *q, *dout, *p, *ring;
    row_stats *stats;
    int chunk_floats, ring_floats;
} warp_smem;

static __device__ __forceinline__ warp_smem smem_of(smem_layout layout, float *base) {
    warp_smem m;
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
static __device__ __forceinline__ void softmax_init(softmax_state<N_TILES> *x) {
#pragma unroll
    for (int n = 0; n < N_TILES; n++)
        zero_acc_16x64(&x->o[n]);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        x->row_max[i] = -INFINITY;
        x->row_sum[i] = 0;
    }
}

/* Scores of keys outside of `mask` become -inf. */
static __device__ __forceinline__ void mask_keys(acc_16x64 *s, uint64_t mask) {
    const unsigned lane_mask = (unsigned)(mask >> lane_col());
    if (mask == ALL_KEYS)
        return;
#pragma unroll
    for (int j = 0; j < LANE_COLS; j++) {
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++)
            s->x[i][j] = lane_mask >> j & 1 ? s->x[i][j] : -INFINITY;
    }
}

/* Online softmax (Milakov and Gimelshein 2018), one block. If m and m' are the row maximum before
 * and after the block, o = o 2^(m-m') + sum_j 2^(s_j-m') v_j, and the same for the sum. Here the
 * scores become 2^(s-m'), stored as P^T; matmul_masked() does the rest. The maximum is subtracted
 * first, and the difference is scaled by scale2: one rounding, so large scores lose no digits, and
 * no multiply-add that a compiler may contract or not. */
template <int N_TILES>
static __device__ __forceinline__ void online_softmax_update(softmax_state<N_TILES> *x,
                                                             acc_16x64 *s, uint64_t mask,
                                                             float scale2, float *s_p) {
    float rescale[LANE_ROWS];
    bool max_grew = false;
    mask_keys(s, mask);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        float *row = s->x[i];
        const float block_max = row_reduce_max(fmaxf(fmaxf(row[0], row[1]), fmaxf(row[2], row[3])));
        const float new_max = fmaxf(x->row_max[i], block_max);
        const float base = new_max == -INFINITY ? 0 : new_max; /* avoids -inf - -inf */
        rescale[i] = exp2f(scale2 * (x->row_max[i] - base));
        max_grew |= new_max != x->row_max[i];
        x->row_max[i] = new_max;
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            row[j] = exp2f(scale2 * (row[j] - base));
        x->row_sum[i] = x->row_sum[i] * rescale[i] + ((row[0] + row[1]) + (row[2] + row[3]));
    }
    if (__any_sync(ALL_LANES, max_grew)) { /* rare after the first few blocks */
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
                for (int j = 0; j < LANE_COLS; j++)
                    x->o[n].x[i][j] *= rescale[i];
            }
        }
    }
    __syncwarp(); /* all lanes have read the last block's P^T */
    store_transposed(s_p, s);
    __syncwarp();
}

/* Divide by the sums, which stage 02 leaves to accumulate_gated(): here o is in registers. row_sum
 * becomes 1 / sum: p = 2^(scale2 (s - row_max)) row_sum. */
template <int N_TILES>
static __device__ __forceinline__ void softmax_finalize(softmax_state<N_TILES> *x) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float total = row_reduce_sum(x->row_sum[i]);
        x->row_sum[i] = total != 0 ? 1 / total : 0; /* no visible key: o = 0 */
        x->row_max[i] = x->row_max[i] == -INFINITY ? 0 : x->row_max[i];
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
#pragma unroll
            for (int j = 0; j < LANE_COLS; j++)
                x->o[n].x[i][j] *= x->row_sum[i];
        }
    }
}

/* Two-level summation. A float32 sum over all compressed keys of a long text rounds once a key, at
 * the size of the whole sum. So every PARTIAL_BLOCKS blocks the outputs are stored in g_o (the rows
 * of the tile's `heads` heads, dvp floats apart) and the registers restart from zero: far fewer
 * roundings at full size. Gradients need these digits: the dS of a row add up to zero only if o is
 * exact, and the rest does not shrink as the number of keys grows, but the gradients do. */
enum { PARTIAL_BLOCKS = 2048 / BLOCK };

/* Add the stored partial outputs, rescaled from their row maximum (s_stats [16]) to the current
 * one. */
template <int N_TILES>
static __device__ __forceinline__ void add_partial(softmax_state<N_TILES> *x, const dims *c,
                                                   const float *g_o, int heads,
                                                   const row_stats *s_stats) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float base = x->row_max[i] == -INFINITY ? 0 : x->row_max[i];
        const float rescale = exp2f(c->scale2 * (s_stats[lane_row() + i].row_max - base));
#pragma unroll
        for (int n = 0; n < N_TILES && lane_row() + i < heads; n++) {
            const float4 o = load4(g_o + (lane_row() + i) * c->dvp + n * TILE_COLS + lane_col());
            x->o[n].x[i][0] += rescale * o.x;
            x->o[n].x[i][1] += rescale * o.y;
            x->o[n].x[i][2] += rescale * o.z;
            x->o[n].x[i][3] += rescale * o.w;
        }
    }
    __syncwarp();
}

/* Store the outputs and their row maxima, and begin again from zero. */
template <int N_TILES>
static __device__ __forceinline__ void flush_partial(softmax_state<N_TILES> *x, const dims *c,
                                                     float *g_o, int heads, row_stats *s_stats) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        if (lane_id() < 2)
            s_stats[lane_row() + i].row_max = x->row_max[i];
    }
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
        store_acc(g_o + lane_row() * c->dvp + n * TILE_COLS + lane_col(), c->dvp, &x->o[n],
                  heads - lane_row());
        zero_acc_16x64(&x->o[n]);
    }
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
static __device__ __forceinline__ void shared_scores(acc_16x64 *s, const warp_smem *m,
                                                     const float *s_a, const float *g_b, int K,
                                                     bool compute) {
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
typedef struct key_masks {
    uint64_t row, any; /* to this warp's row; to some row of the CUDA block, equal in all warps */
} key_masks;

/* C [16, 64 N_TILES] += P B, P^T as stored in m->p, B = g_b [64][ldb] in global memory: values, or
 * in backward keys. It goes through the chunk too. */
template <int N_TILES>
static __device__ __forceinline__ void shared_matmul(acc_16x64 *acc, const warp_smem *m,
                                                     const float *g_b, int ldb, key_masks mask) {
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
                                                           const warp_smem *m, block_ptrs at,
                                                           key_masks mask) {
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
                                                           const warp_smem *m, block_ptrs at,
                                                           uint64_t mask, float *g_scores) {
    {
        acc_16x64 s;
        zero_acc_16x64(&s);
        warp_matmul<1>(&s, m->q + lane_row(), TILE_ROWS, at.kt + lane_col(), BLOCK, c->dk8);
        if (g_scores)
            store_acc(g_scores + lane_row() * BLOCK + lane_col(), BLOCK, &s, LANE_ROWS);
        online_softmax_update(x, &s, mask, c->scale2, m->p);
    }
    matmul_masked<N_TILES>(x->o, m->p, at.v + lane_col(), c->dvp, key_run{0, BLOCK, mask});
}

#endif
