/** @file
 *  @brief Step 4, ring: importance is added up as soon as all keys of a block are through. Only the
 *  last 128 group sums are kept, in a ring buffer in shared memory. */
#include "problem.cuh"

/* S [16,64] of block b. */
static __device__ __forceinline__ void score(acc_16x64 *s, const problem *pb, const float *s_q,
                                             int b) {
    const float *g_kt = pb->kt + (int64_t)b * D * BLOCK;
    zero_acc_16x64(s);
    warp_matmul<1>(s, s_q + lane_row(), G, g_kt + lane_col(), BLOCK, D);
}

/* Maxima and sums of this lane's 8 rows with one more block: an online softmax without outputs.
 * Until the end inv_sum is the sum over this lane's columns. */
static __device__ __forceinline__ void update_stats(row_stats *x, const acc_16x64 *s, int n_visible,
                                                    float scale2) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        float block_max = -INFINITY, sum = 0;
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            block_max = lane_col() + j < n_visible ? fmaxf(block_max, s->x[i][j]) : block_max;
        const float new_max = fmaxf(x[i].row_max, row_reduce_max(block_max));
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++)
            sum += lane_col() + j < n_visible ? exp2f(scale2 * (s->x[i][j] - new_max)) : 0;
        x[i].inv_sum = x[i].inv_sum * exp2f(scale2 * (x[i].row_max - new_max)) + sum;
        x[i].row_max = new_max;
    }
}

enum { RING = 2 * BLOCK }; /* columns: a block of keys, and what an unfinished block needs */

/* Probabilities of block b, summed over the heads: 8 rows of a lane, then the other 8. */
static __device__ __forceinline__ void add_to_ring(float *s_ring, const acc_16x64 *s,
                                                   const row_stats *x, float scale2) {
    float sum[LANE_COLS];
#pragma unroll
    for (int j = 0; j < LANE_COLS; j++) {
        float p[LANE_ROWS];
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++)
            p[i] = exp2f(scale2 * (s->x[i][j] - x[i].row_max)) * x[i].inv_sum;
        sum[j] = ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
        sum[j] += __shfl_xor_sync(ALL_LANES, sum[j], 1);
    }
    if (lane_row() == 0)
        store4(s_ring + lane_col(), sum[0], sum[1], sum[2], sum[3]);
    __syncwarp();
}

/* Importance of blocks next..end-1 (Eq. 9, 10), one in each lane, from the ring buffer. Keys that
 * are not visible count 0. */
static __device__ __forceinline__ void add_importance(const problem *pb, const float *s_ring, int t,
                                                      int next, int end) {
    const int n_visible = cmp_visible(pb, t);
    for (; next < end; next += WARP_SIZE) {
        const int j = next + lane_id();
        float importance = 0;
        for (int k = 1 - OVERLAP; k < PER_BLOCK; k++) {
            const int i = PER_BLOCK * j + k;
            importance += i >= 0 && i < n_visible ? weight(k) * s_ring[i % RING] : 0;
        }
        if (j < end)
            pb->importance[(int64_t)t * pb->J + j] = importance;
    }
    __syncwarp(); /* the oldest columns may be overwritten */
}

/* Two passes over the visible keys. Grid: queries. Block: a warp. Shared: Q^T, ring. */
static __global__ void __launch_bounds__(WARP_SIZE) importance_kernel(problem pb) {
    __shared__ __align__(16) float s_q[D * G], s_ring[RING];
    const int t = (int)blockIdx.x, n_visible = cmp_visible(&pb, t),
              own_block = own_block_of(&pb, t);
    const int64_t row = (int64_t)t * G;
    row_stats x[LANE_ROWS];
    acc_16x64 s;
    int done = 0; /* blocks */
    load_query(s_q, pb.q + row * D);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++)
        x[i] = row_stats{-INFINITY, 0};
    for (int b = 0; b * BLOCK < n_visible; b++) {
        score(&s, &pb, s_q, b);
        update_stats(x, &s, n_visible - b * BLOCK, pb.scale2);
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++)
        x[i].inv_sum = 1 / row_reduce_sum(x[i].inv_sum);
    for (int b = 0; b * BLOCK < n_visible; b++) {
        score(&s, &pb, s_q, b);
        add_to_ring(s_ring + b * BLOCK % RING, &s, x, pb.scale2);
        const int end = min((b + 1) * BLOCK / PER_BLOCK, own_block + 1);
        add_importance(&pb, s_ring, t, done, end);
        done = end;
    }
    add_importance(&pb, s_ring, t, done, own_block + 1);
}

/* Blocks that come before block j by importance, among those that are not forced. */
static __device__ __forceinline__ int rank_of(const float *imp, int j, int own_block) {
    int rank = 0;
    for (int i = INIT; i <= own_block - LOCAL; i++)
        rank += imp[i] > imp[j] || (imp[i] == imp[j] && i < j);
    return rank;
}

/* Selection (Eq. 11). Grid: queries. Block: a warp. */
static __global__ void __launch_bounds__(WARP_SIZE) select_kernel(problem pb) {
    const int t = (int)blockIdx.x, own_block = own_block_of(&pb, t);
    const float *imp = pb.importance + (int64_t)t * pb.J;
    int32_t *idx = pb.idx + (int64_t)t * pb.n;
    const int n_forced = min(INIT + LOCAL, own_block + 1);
    int used = 0;
    for (int first = 0; first <= own_block; first += WARP_SIZE) {
        const int j = first + lane_id();
        bool selected = j <= own_block && forced(j, own_block);
        if (j <= own_block && !selected)
            selected = rank_of(imp, j, own_block) < pb.n - n_forced;
        const unsigned all = __ballot_sync(ALL_LANES, selected);
        if (selected) /* its place: behind the selected blocks before it */
            idx[used + __popc(all & ((1u << lane_id()) - 1))] = j;
        used += __popc(all);
    }
    for (int i = used + lane_id(); i < pb.n; i += WARP_SIZE)
        idx[i] = -1;
}

nsa_status select_4_ring(const problem *pb) {
    const unsigned T = (unsigned)pb->T;
    NSA_LAUNCH(importance_kernel, T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("importance");
    NSA_LAUNCH(select_kernel, T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("select");
    return NSA_OK;
}
