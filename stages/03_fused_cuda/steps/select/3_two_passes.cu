/** @file
 *  @brief Step 3, two passes: scores are not stored but computed again in a second pass, when the
 *  rows' maxima and sums are known. Heads are summed on the chip: a sixteenth of the bytes goes to
 *  memory. */
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

/* Probabilities of block b, summed over the heads: 8 rows of a lane, then the other 8. */
static __device__ __forceinline__ void sum_heads(float *p_group, const acc_16x64 *s,
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
        store4(p_group + lane_col(), sum[0], sum[1], sum[2], sum[3]);
}

/* Two passes over the visible keys. Grid: queries. Block: a warp. Shared: Q^T. */
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
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++)
        x[i].inv_sum = 1 / row_reduce_sum(x[i].inv_sum);
    for (int b = 0; b * BLOCK < n_visible; b++) {
        score(&s, &pb, s_q, b);
        sum_heads(pb.p_group + (int64_t)t * pb.padded + b * BLOCK, &s, x, pb.scale2);
    }
}

/* Importance (Eq. 9, 10). Grid: a CUDA block for each query (x) and 64 blocks (y). Block: a thread
 * a block. */
static __global__ void __launch_bounds__(THREADS) importance_kernel(problem pb) {
    const int t = (int)blockIdx.x, j = (int)(blockIdx.y * THREADS + threadIdx.x);
    const int n_visible = cmp_visible(&pb, t);
    const float *p = pb.p_group + (int64_t)t * pb.padded;
    float importance = 0;
    if (j > own_block_of(&pb, t))
        return;
    for (int k = 1 - OVERLAP; k < PER_BLOCK; k++) {
        const int i = PER_BLOCK * j + k;
        importance += i >= 0 && i < n_visible ? weight(k) * p[i] : 0;
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

nsa_status select_3_two_passes(const problem *pb) {
    const unsigned T = (unsigned)pb->T, J = (unsigned)pb->J;
    NSA_LAUNCH(softmax_kernel, T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("softmax");
    NSA_LAUNCH(importance_kernel, dim3(T, (J + THREADS - 1) / THREADS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("importance");
    NSA_LAUNCH(select_kernel, T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("select");
    return NSA_OK;
}
