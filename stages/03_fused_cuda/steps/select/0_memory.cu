/** @file
 *  @brief Step 0, in memory: stage 02's loops, each a kernel. Scores, probabilities and importance
 *  go through device memory; a thread selects for a query. */
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

/* Insert block j where it belongs in topk, if it is among the best `capacity`; returns the
 * length. */
static __device__ __forceinline__ int topk_insert(const float *imp, int *topk, int length,
                                                  int capacity, int j) {
    int pos = length;
    while (pos > 0 && imp[j] > imp[topk[pos - 1]]) /* equal: the lower index stays before */
        pos--;
    if (pos == capacity)
        return length;
    length = min(length + 1, capacity);
    for (int i = length - 1; i > pos; i--)
        topk[i] = topk[i - 1];
    topk[pos] = j;
    return length;
}

/* Selection (Eq. 11). Grid and block: a thread a query. */
static __global__ void __launch_bounds__(THREADS) select_kernel(problem pb) {
    const int t = (int)(blockIdx.x * THREADS + threadIdx.x), own_block = own_block_of(&pb, t);
    if (t >= pb.T)
        return;
    const float *imp = pb.importance + (int64_t)t * pb.J;
    int32_t *idx = pb.idx + (int64_t)t * pb.n;
    int topk[WARP_SIZE], length = 0, n_forced = 0, used = 0; /* n <= 32 here */
    for (int j = 0; j <= own_block; j++)
        n_forced += forced(j, own_block);
    for (int j = 0; j <= own_block; j++) {
        if (!forced(j, own_block))
            length = topk_insert(imp, topk, length, pb.n - n_forced, j);
    }
    for (int j = 0; j <= own_block; j++) {
        bool selected = forced(j, own_block);
        for (int i = 0; i < length; i++)
            selected |= topk[i] == j;
        if (selected)
            idx[used++] = j;
    }
    while (used < pb.n)
        idx[used++] = -1;
}

nsa_status select_0_memory(const problem *pb) {
    const unsigned T = (unsigned)pb->T, rows = T * G, J = (unsigned)pb->J;
    NSA_LAUNCH(score_kernel, dim3(T, (unsigned)(pb->padded / BLOCK)), BLOCK, 0, 0, *pb);
    NSA_LAUNCHED("score");
    NSA_LAUNCH(softmax_kernel, (rows + THREADS - 1) / THREADS, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("softmax");
    NSA_LAUNCH(importance_kernel, dim3(T, (J + THREADS - 1) / THREADS), THREADS, 0, 0, *pb);
    NSA_LAUNCHED("importance");
    NSA_LAUNCH(select_kernel, (T + THREADS - 1) / THREADS, THREADS, 0, 0, *pb);
    NSA_LAUNCHED("select");
    return NSA_OK;
}
