/** @file
 *  @brief Step 0: a thread is a row, and reads its keys and values from global memory itself. */
#include "../steps.cuh"

enum { KEY_CHUNK = 8 }; /* keys at a time: 32 bytes of a row of K^T, one sector */

/* Eight keys of a block, the first at `kt` [D][BLOCK] and `v` [BLOCK][D], of which lo..hi-1 are
 * visible. Online softmax (Milakov and Gimelshein 2018): if m and m' are the row maximum before and
 * after these keys, o = o 2^(m-m') + sum_j 2^(s_j-m') v_j, and the same for the sum. */
static __device__ __forceinline__ void attend_keys(const float *q, const float *kt, const float *v,
                                                   int lo, int hi, float scale2, float *o,
                                                   float *row_max, float *row_sum) {
    float s[KEY_CHUNK] = {0}, new_max = *row_max;
#pragma unroll
    for (int c = 0; c < D; c++) {
        const float4 a = load4(kt + c * BLOCK), b = load4(kt + c * BLOCK + 4);
        const float k[KEY_CHUNK] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int j = 0; j < KEY_CHUNK; j++)
            s[j] += q[c] * k[j];
    }
#pragma unroll
    for (int j = 0; j < KEY_CHUNK; j++) {
        s[j] = j >= lo && j < hi ? s[j] : -INFINITY;
        new_max = fmaxf(new_max, s[j]);
    }
    const float rescale = exp2f(scale2 * (*row_max - new_max));
    *row_max = new_max;
    *row_sum *= rescale;
#pragma unroll
    for (int c = 0; c < D; c++)
        o[c] *= rescale;
#pragma unroll
    for (int j = 0; j < KEY_CHUNK; j++) {
        const float p = exp2f(scale2 * (s[j] - new_max));
        *row_sum += p;
        if (j < lo || j >= hi)
            continue; /* left out, not multiplied by zero: 0 * NaN is NaN */
#pragma unroll
        for (int c = 0; c < D; c += 4) {
            const float4 x = load4(v + j * D + c);
            o[c] += p * x.x;
            o[c + 1] += p * x.y;
            o[c + 2] += p * x.z;
            o[c + 3] += p * x.w;
        }
    }
}

/* One branch. Grid: a CUDA block for each 64 neighbouring queries (x) and head (y). Block: 64
 * threads; thread i owns query 64 blockIdx.x + i: q and o in its registers, nothing shared. In the
 * window the lanes of a warp happen to read the same keys at the same time; selected blocks differ
 * from lane to lane, so that one load asks for 32 lines. */
template <int BRANCH> static __global__ void __launch_bounds__(BLOCK) attend_kernel(problem pb) {
    const int t = (int)(blockIdx.x * BLOCK + threadIdx.x);
    if (t >= pb.T)
        return;
    const int64_t row = row_of(t, (int)blockIdx.y) * D;
    float q[D], o[D], row_max = -INFINITY, row_sum = 0;
#pragma unroll
    for (int c = 0; c < D; c++) {
        q[c] = pb.q[row + c];
        o[c] = 0;
    }
    span sp;
    for (int i = 0; (sp = span_of(&pb, BRANCH, t, i)).hi; i++) {
        const float *kt = keys_of(&pb, BRANCH, sp.block), *v = values_of(&pb, BRANCH, sp.block);
#pragma unroll 1
        for (int j = sp.lo / KEY_CHUNK * KEY_CHUNK; j < sp.hi; j += KEY_CHUNK)
            attend_keys(q, kt + j, v + j * D, sp.lo - j, sp.hi - j, pb.scale2, o, &row_max,
                        &row_sum);
    }
#pragma unroll
    for (int c = 0; c < D; c++)
        pb.o[BRANCH][row + c] = o[c] / row_sum;
}

/* The gated sum (Eq. 5) of the branches' outputs in memory. Grid: a CUDA block for each query.
 * Block: a thread for 4 columns of a head. */
static __global__ void __launch_bounds__(G *D / 4) combine_kernel(problem pb) {
    const int64_t at = row_of((int)blockIdx.x, 0) * D + (int)threadIdx.x * 4;
    const float *gate = pb.gate + at / D * BRANCHES;
    const float4 a = load4(pb.o[SLC] + at), b = load4(pb.o[WIN] + at);
    store4(pb.out + at, gate[SLC] * a.x + gate[WIN] * b.x, gate[SLC] * a.y + gate[WIN] * b.y,
           gate[SLC] * a.z + gate[WIN] * b.z, gate[SLC] * a.w + gate[WIN] * b.w);
}

nsa_status step_0_thread_row(const problem *pb) {
    const dim3 grid((unsigned)((pb->T + BLOCK - 1) / BLOCK), G);
    NSA_LAUNCH(attend_kernel<SLC>, grid, dim3(BLOCK), 0, 0, *pb);
    NSA_LAUNCHED("selected");
    NSA_LAUNCH(attend_kernel<WIN>, grid, dim3(BLOCK), 0, 0, *pb);
    NSA_LAUNCHED("window");
    NSA_LAUNCH(combine_kernel, dim3((unsigned)pb->T), dim3(G * D / 4), 0, 0, *pb);
    NSA_LAUNCHED("combine");
    return NSA_OK;
}
