/** @file
 *  @brief What a warp does to attend: its row's 16 heads against block after block, softmax and
 * outputs in registers. Kernels of attend.cu and
 *  decode_attend.cu walk with these. */
#ifndef ATTEND_CUH
#define ATTEND_CUH

#include "stage.cuh"

static const uint64_t WHOLE = ~(uint64_t)0; /* the mask of all 64 keys of a block */
#define ALL_LANES 0xffffffffu

/* Dynamic shared memory of a CUDA block, in floats: first what all warps share, a chunk of a block
 * of keys or values; then for each warp Q^T [dk8][16], P^T [64][16], and for the compressed branch
 * a ring of group sums and the statistics of its GT tiles. */
typedef struct shared_plan {
    int chunk, ring, warp; /* warp: of one warp altogether */
} shared_plan;

static __device__ __forceinline__ int this_lane(void) {
    return (int)threadIdx.x % WARP;
}

static __device__ __forceinline__ int this_warp(void) {
    return (int)threadIdx.x / WARP;
}

/* Bits lo..hi-1 of a block's mask; both may lie outside of it. */
static __device__ __forceinline__ uint64_t bits(int lo, int hi) {
    lo = max(lo, 0);
    hi = min(hi, BLOCK);
    return hi <= lo ? 0 : (WHOLE >> (BLOCK - (hi - lo))) << lo;
}

/* The warp's own copy of a row tile Q^T [dk8][16]: what every product of the row reads. */
static __device__ __forceinline__ void load_tile(float *s_q, const float *g_q, int floats) {
    __syncwarp();
    for (int i = 4 * this_lane(); i < floats; i += 4 * WARP)
        *(float4 *)(s_q + i) = load4(g_q + i);
    __syncwarp();
}

/* ------------------------------------------------------------ online softmax */

/* One row tile's attention as it grows: outputs [16, 64 STRIPS] up to a factor 1 / sum.
 * most: largest score q.k so far, not scaled; sum: of this lane's columns only. */
template <int STRIPS> struct attention {
    piece o[STRIPS];
    float most[LANE_ROWS], sum[LANE_ROWS];
};

template <int STRIPS> static __device__ __forceinline__ void begin(attention<STRIPS> *a) {
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
        zero_piece(&a->o[s]);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        a->most[i] = -INFINITY;
        a->sum[i] = 0;
    }
}

/* Online softmax (Milakov and Gimelshein 2018), one block: with the largest score so far m and m'
 * after the block, o = o 2^(m-m') + sum_j 2^(s_j-m') v_j, and the same for the sum. Here the scores
 * become 2^(s-m'), stored as P^T; add_keys() does the rest. Keys outside of `mask` get -inf.
 * Differences are taken of the scores as they are, and then scaled by scale2: one rounding, so
 * large scores lose no digits, and the compiler has no multiply-add to make of it or not. */
template <int STRIPS>
static __device__ __forceinline__ void soften(attention<STRIPS> *a, piece *s, uint64_t mask,
                                              float scale2, float *s_p) {
    float shrink[LANE_ROWS];
    bool grew = false;
    if (mask != WHOLE) {
        const unsigned mine = (unsigned)(mask >> first_col());
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++) {
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++)
                s->at[i][j] = mine >> j & 1 ? s->at[i][j] : -INFINITY;
        }
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        float *row = s->at[i];
        const float top = row_max(fmaxf(fmaxf(row[0], row[1]), fmaxf(row[2], row[3])));
        const float now = fmaxf(a->most[i], top);
        const float base = now == -INFINITY ? 0 : now; /* scores may be -inf: no inf - inf */
        shrink[i] = exp2f(scale2 * (a->most[i] - base));
        grew |= now != a->most[i];
        a->most[i] = now;
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            row[j] = exp2f(scale2 * (row[j] - base));
        a->sum[i] = a->sum[i] * shrink[i] + ((row[0] + row[1]) + (row[2] + row[3]));
    }
    if (__any_sync(ALL_LANES, grew)) { /* seldom, after the first few blocks */
#pragma unroll
        for (int strip = 0; strip < STRIPS; strip++) {
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
                for (int j = 0; j < LANE_COLS; j++)
                    a->o[strip].at[i][j] *= shrink[i];
            }
        }
    }
    __syncwarp(); /* the last block's P^T has been read */
    store_transposed(s_p, s);
    __syncwarp();
}

/* Divide by the sums. most and sum become the row's statistics: p = 2^(scale2 (s - most)) sum. */
template <int STRIPS> static __device__ __forceinline__ void finish(attention<STRIPS> *a) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float sum = row_sum(a->sum[i]);
        a->sum[i] = sum != 0 ? 1 / sum : 0; /* nothing kept: o = 0 */
        a->most[i] = a->most[i] == -INFINITY ? 0 : a->most[i];
#pragma unroll
        for (int strip = 0; strip < STRIPS; strip++) {
#pragma unroll
            for (int j = 0; j < LANE_COLS; j++)
                a->o[strip].at[i][j] *= a->sum[i];
        }
    }
}

/* Sums in two levels: a float32 sum over all compressed keys of a long text rounds once a key, at
 * the size of the whole sum. So every ASIDE blocks the outputs so far are set aside in g_o, the
 * rows of the tile's `heads` heads, dvp apart, and the registers begin again from zero: far fewer
 * roundings at full size. Gradients hang on these digits: the dS of a row add up to zero only as
 * far as o is exact, and what is left over stands against sums that shrink as keys grow in number.
 */
enum { ASIDE = 32 };

/* What was set aside, at the largest score of then (s_stats [16]), joins the outputs at that of
 * now. */
template <int STRIPS>
static __device__ __forceinline__ void take_back(attention<STRIPS> *a, const float *g_o, int dvp,
                                                 int heads, float scale2,
                                                 const row_stats *s_stats) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const float base = a->most[i] == -INFINITY ? 0 : a->most[i];
        const float shrink = exp2f(scale2 * (s_stats[first_row() + i].most - base));
#pragma unroll
        for (int s = 0; s < STRIPS && first_row() + i < heads; s++) {
            const float4 o = load4(g_o + (first_row() + i) * dvp + s * STRIP + first_col());
            a->o[s].at[i][0] += shrink * o.x;
            a->o[s].at[i][1] += shrink * o.y;
            a->o[s].at[i][2] += shrink * o.z;
            a->o[s].at[i][3] += shrink * o.w;
        }
    }
    __syncwarp();
}

template <int STRIPS>
static __device__ __forceinline__ void set_aside(attention<STRIPS> *a, float *g_o, int dvp,
                                                 int heads, row_stats *s_stats) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        if (this_lane() < 2)
            s_stats[first_row() + i].most = a->most[i];
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            const float *o = a->o[s].at[i];
            if (first_row() + i < heads)
                store4(g_o + (first_row() + i) * dvp + s * STRIP + first_col(), o[0], o[1], o[2],
                       o[3]);
        }
    }
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
        zero_piece(&a->o[s]);
}

/* ------------------------------------------- a block that all warps walk over */

/* `floats` (a multiple of 4) from global to the chunk, by all threads of the CUDA block. */
static __device__ __forceinline__ void fetch(float *s_chunk, const float *g_from, int floats) {
    __syncthreads(); /* the last chunk has been used */
#pragma unroll 4
    for (int i = 4 * (int)threadIdx.x; i < floats; i += 4 * (int)blockDim.x)
        *(float4 *)(s_chunk + i) = load4(g_from + i);
    __syncthreads();
}

/* S [16, 64 BLOCKS] = Q K^T of one block or two, `apart` floats from each other, K^T [dk8][64]
 * each, through shared memory chunk by chunk: rows of both side by side. Every warp fetches, those
 * with `mine` compute. */
template <int BLOCKS>
static __device__ __forceinline__ void shared_scores(piece *s, const float *s_q, const float *g_kt,
                                                     int64_t apart, float *s_chunk, int chunk,
                                                     int dk8, bool mine) {
    const int width = BLOCKS * BLOCK, rows = chunk / width;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
        zero_piece(&s[i]);
    for (int k = 0; k < dk8; k += rows) {
        const int count = min(rows, dk8 - k);
        __syncthreads(); /* the last chunk has been used */
#pragma unroll 4
        for (int i = 4 * (int)threadIdx.x; i < count * width; i += 4 * (int)blockDim.x) {
            const int64_t at = BLOCKS == 1 ? k * BLOCK + i
                                           : (int64_t)(i % width / BLOCK) * apart +
                                                 (k + i / width) * BLOCK + i % BLOCK;
            *(float4 *)(s_chunk + i) = load4(g_kt + at);
        }
        __syncthreads();
        if (mine)
            product<BLOCKS>(s, s_q + k * ROWS + first_row(), ROWS, s_chunk + first_col(), width,
                            count);
    }
}

/* One block of the attention: `mask` says which keys are the warp's, `any` (the same in every warp)
 * which are anybody's. */
template <int STRIPS>
static __device__ __forceinline__ void shared_block(attention<STRIPS> *a, const dims *c,
                                                    const float *g_kt, const float *g_v,
                                                    float *s_chunk, int chunk, float *s_q,
                                                    float *s_p, uint64_t mask, uint64_t any) {
    const int rows = chunk / c->dvp & ~(LANE_COLS - 1);
    {
        piece s;
        shared_scores<1>(&s, s_q, g_kt, 0, s_chunk, chunk, c->dk8, mask != 0);
        if (mask)
            soften(a, &s, mask, c->scale2, s_p);
    }
    for (int k = 0; k < BLOCK; k += rows) {
        const int count = min(rows, BLOCK - k);
        if (!(any & bits(k, k + count)))
            continue;
        fetch(s_chunk, g_v + (int64_t)k * c->dvp, count * c->dvp);
        if (mask)
            add_keys<STRIPS>(a->o, s_p, s_chunk + first_col(), c->dvp, mask, k / LANE_COLS,
                             (k + count) / LANE_COLS);
    }
}

/* ---------------------------------------------- a block that one warp wants */

/* One block of the attention, straight from global memory: nobody else is expected to want it.
 * g_scores [16,64], if not NULL, gets the scores themselves. */
template <int STRIPS>
static __device__ __forceinline__ void own_block(attention<STRIPS> *a, const dims *c,
                                                 const float *g_kt, const float *g_v,
                                                 const float *s_q, float *s_p, uint64_t mask,
                                                 float *g_scores) {
    {
        piece s;
        zero_piece(&s);
        product<1, AFAR>(&s, s_q + first_row(), ROWS, g_kt + first_col(), BLOCK, c->dk8);
        if (g_scores) {
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++)
                store4(g_scores + (first_row() + i) * BLOCK + first_col(), s.at[i][0], s.at[i][1],
                       s.at[i][2], s.at[i][3]);
        }
        soften(a, &s, mask, c->scale2, s_p);
    }
    add_keys<STRIPS>(a->o, s_p, g_v + first_col(), c->dvp, mask, 0, BLOCK / LANE_COLS);
}

/* Where one list of selected blocks is being read. */
typedef struct walk {
    int i;    /* the list's entry */
    int from; /* tokens before this have been visited */
} walk;

/* The next memory block that the list idx [n] (ascending, -1 last) touches, and the mask of its
 * tokens up to t: selected blocks are l' long, whatever that is, and meet memory blocks anyhow; two
 * of them in one memory block are one visit. False when there is no more. */
static __device__ __forceinline__ bool next_visit(walk *w, const int32_t *idx, const dims *c, int t,
                                                  int *block, uint64_t *mask) {
    if (w->i >= c->n || idx[w->i] < 0)
        return false;
    const int at = max(idx[w->i] * c->lb, w->from) / BLOCK;
    *block = at;
    *mask = 0;
    w->from = (at + 1) * BLOCK;
    while (w->i < c->n && idx[w->i] >= 0) {
        const int first = idx[w->i] * c->lb, end = min(first + c->lb, t + 1);
        if (first >= w->from)
            break;
        *mask |= bits(first - at * BLOCK, end - at * BLOCK);
        if (end > w->from)
            break; /* the rest of it lies in the next memory block */
        w->i++;
    }
    return true;
}

/* Compressed tokens that position t sees: those with i d + l - 1 <= t (Eq. 8). */
static __device__ __forceinline__ int visible(const dims *c, int t) {
    return t + 1 < c->l ? 0 : (t + 1 - c->l) / c->d + 1;
}

#endif
