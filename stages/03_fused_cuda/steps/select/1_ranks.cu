/** @file
 *  @brief Step 1, ranks: a warp selects for a query. A lane has a block, and counts how many others
 *  come before it: no list, no order of insertion. */
#include "problem.cuh"

enum { THREADS = 64 };

/* Scores of all heads. Grid: a CUDA block for each query (x) and 64 keys (y). Block: a thread a
 * key. */
static __global__ void __launch_bounds__(BLOCK) score_kernel(problem pb) {
    const int t = (int)blockIdx.x, i = (int)threadIdx.x;
    const float *kt = pb.kt + (int64_t)blockIdx.y * D * BLOCK;
    float *scores = pb.scores + (int64_t)t * G * pb.padded + blockIdx.y * BLOCK;
    for (int g = 0; g < G; g++) {
        const float *q = pb.q + ((int64_t)t * G + g) * D;
        float s = 0;
        for (int c = 0; c < D; c++)
            s += q[c] * kt[c * BLOCK + i];
        scores[g * pb.padded + i] = s;
    }
}

/* From scores to probabilities, in place. Grid and block: a thread a row. */
static __global__ void __launch_bounds__(THREADS) softmax_kernel(problem pb) {
    const int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (row >= (int64_t)pb.T * G)
        return;
    const int n_visible = cmp_visible(&pb, (int)(row / G));
    float *p = pb.scores + row * pb.padded, row_max = -INFINITY, row_sum = 0;
    for (int i = 0; i < n_visible; i++)
        row_max = fmaxf(row_max, p[i]);
    for (int i = 0; i < n_visible; i++)
        row_sum += p[i] = exp2f(pb.scale2 * (p[i] - row_max));
    for (int i = 0; i < n_visible; i++)
        p[i] *= 1 / row_sum;
}

/* Importance (Eq. 9, 10). Grid: a CUDA block for each query (x) and 64 blocks (y). Block: a thread
 * a block. */
static __global__ void __launch_bounds__(THREADS) importance_kernel(problem pb) {
    const int t = (int)blockIdx.x, j = (int)(blockIdx.y * THREADS + threadIdx.x);
    const int n_visible = cmp_visible(&pb, t);
    const float *p = pb.scores + (int64_t)t * G * pb.padded;
    float importance = 0;
    if (j > own_block_of(&pb, t))
        return;
    for (int k = 1 - OVERLAP; k < PER_BLOCK; k++) {
        const int i = PER_BLOCK * j + k;
        float p_group = 0;
        for (int g = 0; g < G && i >= 0 && i < n_visible; g++)
            p_group += p[(int64_t)g * pb.padded + i];
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

nsa_status select_1_ranks(const problem *pb) {
    const unsigned T = (unsigned)pb->T, rows = T * G, J = (unsigned)pb->J;
    NSA_LAUNCH(score_kernel, dim3(T, (unsigned)(pb->padded / BLOCK)), BLOCK, 0, 0, *pb);
    NSA_LAUNCHED("score");
    NSA_LAUNCH(softmax_kernel, (rows + THREADS - 1) / THREADS, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("softmax");
    NSA_LAUNCH(importance_kernel, dim3(T, (J + THREADS - 1) / THREADS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("importance");
    NSA_LAUNCH(select_kernel, T, WARP_SIZE, 0, 0, *pb);
    NSA_LAUNCHED("select");
    return NSA_OK;
}
