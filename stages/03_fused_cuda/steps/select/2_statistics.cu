/** @file
 *  @brief Step 2, statistics: a warp has a query and its 16 heads, a tile a block of keys. It finds
 *  the rows' maxima and sums while it stores the scores, so that these are read once. */
#include "problem.cuh"

enum { THREADS = 64 };

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

/* Scores of the visible keys, and statistics. Grid: queries. Block: a warp. Shared: Q^T. */
static __global__ void __launch_bounds__(WARP_SIZE) softmax_kernel(problem pb) {
    __shared__ __align__(16) float s_q[D * G];
    const int t = (int)blockIdx.x, n_visible = cmp_visible(&pb, t);
    const int64_t row = (int64_t)t * G;
    row_stats x[LANE_ROWS];
    acc_16x64 s;
    load_query(s_q, pb.q + row * D);
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++)
        x[i] = row_stats{-INFINITY, 0};
    for (int b = 0; b * BLOCK < n_visible; b++) {
        score(&s, &pb, s_q, b);
        update_stats(x, &s, n_visible - b * BLOCK, pb.scale2);
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++)
            store4(pb.scores + (row + lane_row() + i) * pb.padded + b * BLOCK + lane_col(),
                   s.x[i][0], s.x[i][1], s.x[i][2], s.x[i][3]);
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        x[i].inv_sum = 1 / row_reduce_sum(x[i].inv_sum);
        if (lane_id() < 2)
            pb.stats[row + lane_row() + i] = x[i];
    }
}

/* Importance (Eq. 9, 10). Grid: a CUDA block for each query (x) and 64 blocks (y). Block: a thread
 * a block. */
static __global__ void __launch_bounds__(THREADS) importance_kernel(problem pb) {
    const int t = (int)blockIdx.x, j = (int)(blockIdx.y * THREADS + threadIdx.x);
    const int n_visible = cmp_visible(&pb, t);
    const float *scores = pb.scores + (int64_t)t * G * pb.padded;
    const row_stats *x = pb.stats + (int64_t)t * G;
    float importance = 0;
    if (j > own_block_of(&pb, t))
        return;
    for (int k = 1 - OVERLAP; k < PER_BLOCK; k++) {
        const int i = PER_BLOCK * j + k;
        float p_group = 0;
        for (int g = 0; g < G && i >= 0 && i < n_visible; g++)
            p_group += exp2f(pb.scale2 * (scores[(int64_t)g * pb.padded + i] - x[g].row_max)) *
                       x[g].inv_sum;
        importance += weight(k) * p_group;
    }
    pb.importance[(int64_t)t * pb.J + j] = importance;
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

nsa_status select_2_statistics(const problem *pb) {
    const unsigned T = (unsigned)pb->T, J = (unsigned)pb->J;
    NSA_LAUNCH(softmax_kernel, T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("softmax");
    NSA_LAUNCH(importance_kernel, dim3(T, (J + THREADS - 1) / THREADS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("importance");
    NSA_LAUNCH(select_kernel, T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("select");
    return NSA_OK;
}
