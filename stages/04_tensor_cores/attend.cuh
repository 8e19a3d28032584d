/** @file
 *  @brief Attention of one warp: its row tiles against one block of keys after another, with the
 *  online softmax and the outputs in registers. For the kernels of attend.cu and
 *  decode_attend.cu. */
#ifndef ATTEND_CUH
#define ATTEND_CUH

#include "visible.cuh"

enum { KEY_TILES = BLOCK / TILE_N, KEY_STEPS = BLOCK / TILE_K }; /* of a block of keys */

/* The bits of 16 keys of a block, from key 16 `step` on. */
static __device__ __forceinline__ unsigned keys_of(uint64_t mask, int step) {
    return (unsigned)(mask >> step * TILE_K) & 0xffffu;
}

/* ------------------------------------------------------------ online softmax */

/* State of the online softmax of one row tile. o: outputs [16, DV], not yet divided by the row
 * sums. row_max: largest scaled score so far, or nearly. row_sum: over this lane's columns only,
 * until softmax_finalize() makes it 1 / sum. Element i is row lane_row() + 8 i. */
template <int DV> struct softmax_state {
    acc_tiles<DV / TILE_N> o;
    float row_max[2], row_sum[2];
};

template <int DV> static __device__ __forceinline__ void softmax_init(softmax_state<DV> *x) {
    zero_acc(&x->o);
    x->row_max[0] = x->row_max[1] = -INFINITY;
    x->row_sum[0] = x->row_sum[1] = 0;
}

/* Scores of keys outside of `mask` become -inf. */
static __device__ __forceinline__ void mask_keys(acc_tiles<KEY_TILES> *s, uint64_t mask) {
    const uint64_t lane_mask = mask >> lane_col();
    if (mask == ALL_KEYS)
        return;
    for (int i = 0; i < 4 * KEY_TILES; i++)
        s->x[i / 4][i % 4] =
            lane_mask >> (i / 4 * TILE_N + i % 2) & 1 ? s->x[i / 4][i % 4] : -INFINITY;
}

/* The probability of a score, before division by the row sum: one rounding of the difference, so
 * large scores lose no digits, and the same expression wherever it is computed again. */
static __device__ __forceinline__ float exp_score(float scale2, float s, float row_max) {
    return exp2f(fmaf(scale2, s, -row_max));
}

/* Online softmax (Milakov and Gimelshein 2018), one block. If m and m' are the row maximum before
 * and after the block, o = o 2^(m-m') + sum_j 2^(s_j-m') v_j, and the same for the sum. Here the
 * scores become 2^(s-m'); the product with the values follows. The maximum may lag behind: any m
 * gives the same o, as long as no power of two gets large, so only a score that exceeds it by more
 * than RESCALE_THRESHOLD raises it, and rescaling is rare. (Of 16 rows nearly always one has a new
 * maximum.) */
enum { RESCALE_THRESHOLD = 8 };

template <int DV>
static __device__ __forceinline__ void rescale_rows(softmax_state<DV> *x,
                                                    const float (&block_max)[2]) {
    float rescale[2];
    for (int i = 0; i < 2; i++) {
        const float new_max = fmaxf(x->row_max[i], block_max[i]);
        const float base = new_max == -INFINITY ? 0 : new_max; /* avoids -inf - -inf */
        rescale[i] = exp2f(x->row_max[i] - base);
        x->row_max[i] = new_max;
        x->row_sum[i] *= rescale[i];
    }
    scale_rows(&x->o, rescale);
}

template <int DV>
static __device__ __forceinline__ void online_softmax_update(softmax_state<DV> *x,
                                                             acc_tiles<KEY_TILES> *s, uint64_t mask,
                                                             float scale2) {
    float block_max[2];
    mask_keys(s, mask);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        block_max[i] = -INFINITY;
        for (int n = 0; n < KEY_TILES; n++)
            block_max[i] = fmaxf(block_max[i], fmaxf(s->x[n][2 * i], s->x[n][2 * i + 1]));
        block_max[i] = scale2 * row_reduce_max(block_max[i]);
    }
    if (__any_sync(ALL_LANES, block_max[0] > x->row_max[0] + RESCALE_THRESHOLD ||
                                  block_max[1] > x->row_max[1] + RESCALE_THRESHOLD))
        rescale_rows(x, block_max);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float base = x->row_max[i] == -INFINITY ? 0 : x->row_max[i];
        float sum = 0;
        for (int n = 0; n < KEY_TILES; n++) {
            s->x[n][2 * i] = exp_score(scale2, s->x[n][2 * i], base);
            s->x[n][2 * i + 1] = exp_score(scale2, s->x[n][2 * i + 1], base);
            sum += s->x[n][2 * i] + s->x[n][2 * i + 1];
        }
        x->row_sum[i] += sum;
    }
}

/* Divide by the sums. row_sum becomes 1 / sum: p = 2^(scale2 s - row_max) row_sum. */
template <int DV> static __device__ __forceinline__ void softmax_finalize(softmax_state<DV> *x) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float total = row_reduce_sum(x->row_sum[i]);
        x->row_sum[i] = total != 0 ? 1 / total : 0; /* no visible key: o = 0 */
        x->row_max[i] = x->row_max[i] == -INFINITY ? 0 : x->row_max[i];
    }
    scale_rows(&x->o, x->row_sum);
}

/* ------------------------------------------- a block that all warps share */

/* Start copying tile of heads g16 of each of the CUDA block's rows, by all of its WARPS. */
template <int D, int WARPS>
static __device__ __forceinline__ void load_row_tiles(bf16 *s_rows, const bf16 *g_rows,
                                                      const dims *c, const tile_coord *coord,
                                                      int g16) {
    for (int i = 0; i < coord->rows.count; i++) {
        const int64_t tile = head_tile(c, coord->rows.first + i, coord->kvh, g16);
        copy_rows_async<D, TILE_ROWS>(s_rows + i * TILE_ROWS * D, g_rows + tile * TILE_ROWS * D,
                                      (int)threadIdx.x, WARPS * WARP_SIZE);
    }
}

/* s [M][16, 8 N] += A B^T: s_a [M][16][D] are row tiles of the warp and s_b [8 N][D] keys or
 * values; for importance the other way around. */
template <int D, int M, int N>
static __device__ __forceinline__ void add_scores(acc_tiles<N> (&s)[M], const bf16 *s_a,
                                                  const bf16 *s_b) {
#pragma unroll
    for (int k = 0; k < D; k += TILE_K) {
        frag_a a[M];
        for (int m = 0; m < M; m++)
            a[m] = load_a<D>(s_a + m * TILE_ROWS * D, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            frag_b b[2];
            load_b<D>(b, s_b + n * TILE_N * D, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(s[m].x[n], a[m], b[0]);
                mma(s[m].x[n + 1], a[m], b[1]);
            }
        }
    }
}

/* acc [16, D] += P B for row tile m, P = the tiles of p, B = s_b [64][D]: values, or in
 * backward keys. MASKED: keys whose bit in mask[m] is not set count as zero. */
template <int D, bool MASKED, int M>
static __device__ __forceinline__ void matmul_keys(acc_tiles<D / TILE_N> *const (&acc)[M],
                                                   const frag_a (&p)[M][KEY_STEPS], const bf16 *s_b,
                                                   const uint64_t (&mask)[M]) {
#pragma unroll
    for (int step = 0; step < KEY_STEPS; step++) {
        frag_b visible[M];
        for (int m = 0; MASKED && m < M; m++)
            visible[m] = visible_halves(keys_of(mask[m], step));
#pragma unroll
        for (int n = 0; n < D / TILE_N; n += 2) {
            frag_b b[2];
            load_b_trans<D>(b, s_b + step * TILE_K * D, n * TILE_N);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(acc[m]->x[n], p[m][step], MASKED ? masked(b[0], visible[m]) : b[0]);
                mma(acc[m]->x[n + 1], p[m][step], MASKED ? masked(b[1], visible[m]) : b[1]);
            }
        }
    }
}

/* The same, masked where some row tile does not see all keys. */
template <int D, int M>
static __device__ __forceinline__ void matmul_masked(acc_tiles<D / TILE_N> *const (&acc)[M],
                                                     const frag_a (&p)[M][KEY_STEPS],
                                                     const bf16 *s_b, const uint64_t (&mask)[M]) {
    bool all = true;
    for (int m = 0; m < M; m++)
        all &= mask[m] == ALL_KEYS;
    if (all)
        matmul_keys<D, false>(acc, p, s_b, mask);
    else
        matmul_keys<D, true>(acc, p, s_b, mask);
}

/* Tiles of scores as A of the next product. */
static __device__ __forceinline__ void pack_tiles(frag_a (&p)[KEY_STEPS],
                                                  const acc_tiles<KEY_TILES> &s) {
    for (int step = 0; step < KEY_STEPS; step++)
        p[step] = a_of_acc(s.x[2 * step], s.x[2 * step + 1]);
}

/* --------------------------------------------------- a block of one warp */

/* s [16, 8 N] = A B^T, B straight from global memory: keys or values [8 N][D], of which `g_b` is
 * this lane's piece of the first tile. */
template <int D, int N>
static __device__ __forceinline__ void global_scores(acc_tiles<N> *s, const frags_a<D> &a,
                                                     const bf16 *g_b) {
    zero_acc(s);
#pragma unroll
    for (int k = 0; k < D / MEM_COLS; k++) {
        uint4 b[N];
#pragma unroll
        for (int n = 0; n < N; n++)
            b[n] = load_mem_tile<D>(g_b, n * MEM_ROWS, k * MEM_COLS);
#pragma unroll
        for (int n = 0; n < N; n++)
            mma(s->x[n], a.x[2 * k], frag_b{{b[n].x, b[n].y}});
#pragma unroll
        for (int n = 0; n < N; n++)
            mma(s->x[n], a.x[2 * k + 1], frag_b{{b[n].z, b[n].w}});
    }
}

/* Half of a block, in registers: values or in backward keys [32][D]. */
enum { HALF = BLOCK / 2, HALF_STEPS = HALF / TILE_K };

template <int D> struct half_block { uint4 x[HALF / MEM_ROWS][D / MEM_COLS]; };

template <int D>
static __device__ __forceinline__ void load_half(half_block<D> *v, const bf16 *g_b) {
#pragma unroll
    for (int i = 0; i < HALF / MEM_ROWS; i++) {
#pragma unroll
        for (int n = 0; n < D / MEM_COLS; n++)
            v->x[i][n] = load_mem_tile<D>(g_b, i * MEM_ROWS, n * MEM_COLS);
    }
}

/* acc [16, D] += P B, B the half block; columns as transpose_mem_tiles() has them. MASKED: keys
 * whose bit is not set count as zero. */
template <int D, bool MASKED>
static __device__ __forceinline__ void add_half(acc_tiles<D / TILE_N> *acc,
                                                const frag_a (&p)[HALF_STEPS],
                                                const half_block<D> &v, uint64_t mask) {
#pragma unroll
    for (int step = 0; step < HALF_STEPS; step++) {
        frag_b visible;
        if (MASKED)
            visible = visible_halves(keys_of(mask, step));
#pragma unroll
        for (int n = 0; n < D / MEM_COLS; n++) {
            frag_b b[4];
            transpose_mem_tiles(b, v.x[2 * step][n], v.x[2 * step + 1][n]);
#pragma unroll
            for (int i = 0; i < 4; i++)
                mma(acc->x[n * 4 + i], p[step], MASKED ? masked(b[i], visible) : b[i]);
        }
    }
}

/* acc [16, DV] += P V over the block `g_v`, whose first half has been loaded. */
template <int DV, bool MASKED>
static __device__ __forceinline__ void add_values(acc_tiles<DV / TILE_N> *acc,
                                                  const frag_a (&p)[2][HALF_STEPS],
                                                  half_block<DV> *v, const bf16 *g_v,
                                                  uint64_t mask) {
    add_half<DV, MASKED>(acc, p[0], *v, mask);
    load_half(v, g_v + HALF * DV);
    add_half<DV, MASKED>(acc, p[1], *v, mask >> HALF);
}

/* Attention over one block of one warp, read straight from global memory. While the softmax is
 * computed the first half of the values is on its way. g_scores [16,64], if not NULL, gets the
 * scores. */
template <int DK, int DV>
static __device__ __forceinline__ void attend_global_block(softmax_state<DV> *x, const dims *c,
                                                           const frags_a<DK> &q, block_ptrs at,
                                                           uint64_t mask, float *g_scores) {
    acc_tiles<KEY_TILES> s;
    frag_a p[2][HALF_STEPS];
    half_block<DV> v;
    global_scores(&s, q, at.k + mem_tile_lane());
    load_half(&v, at.v + mem_tile_lane());
    if (g_scores)
        store_acc(g_scores, BLOCK, &s, TILE_ROWS);
    online_softmax_update(x, &s, mask, c->scale2);
#pragma unroll
    for (int i = 0; i < KEY_STEPS; i++)
        p[i / HALF_STEPS][i % HALF_STEPS] = a_of_acc(s.x[2 * i], s.x[2 * i + 1]);
    if (mask == ALL_KEYS)
        add_values<DV, false>(&x->o, p, &v, at.v + mem_tile_lane(), mask);
    else
        add_values<DV, true>(&x->o, p, &v, at.v + mem_tile_lane(), mask);
}

/* ------------------------------------------------------------------ outputs */

/* Four neighbouring columns, of which two lanes have two each of rows g and g+8: the even lane gets
 * row g, the odd one row g+8. Columns from lane_col() / 4 * 4 on. */
static __device__ __forceinline__ float4 pair_quad(const float (&x)[4]) {
    const bool odd = lane_id() % 2;
    const float a = __shfl_xor_sync(ALL_LANES, odd ? x[0] : x[2], 1);
    const float b = __shfl_xor_sync(ALL_LANES, odd ? x[1] : x[3], 1);
    return odd ? make_float4(a, b, x[2], x[3]) : make_float4(x[0], x[1], a, b);
}

/* Accumulators of add_half() in quads of neighbouring columns: of every 32 columns a lane has
 * 8 in each of its rows, quads 2n and 2n + 1. Their columns are quad_col() + quad_offset(). */
static __device__ __forceinline__ int quad_col(void) {
    return lane_id() % 4 * PIECE;
}

static __device__ __forceinline__ int quad_offset(int quad) {
    return quad / 2 * MEM_COLS + quad % 2 * 4;
}

/* Quad `quad` of row lane_row() + 8 i. */
template <int N>
static __device__ __forceinline__ float4 quad_of(const acc_tiles<N> &acc, int quad, int i) {
    const float(&a)[4] = acc.x[2 * quad], (&b)[4] = acc.x[2 * quad + 1];
    return make_float4(a[2 * i], a[2 * i + 1], b[2 * i], b[2 * i + 1]);
}

#endif
