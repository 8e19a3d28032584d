/** @file
 *  @brief Step 2: a CUDA block is a query with all its heads, a warp's tile of 16 x 64. Each loaded
 *  block serves 16 rows, so it is loaded a sixteenth as often. */
#include "../steps.cuh"

enum {
    CHUNK = 16,            /* rows of K^T or V in shared memory at a time */
    FLOATS = CHUNK * BLOCK /* of a chunk */
};

/* The query's G rows of q, as Q^T [D][G]. */
static __device__ __forceinline__ void load_query(float *s_q, const float *g_q) {
    const int g = lane_id() % G;
    for (int c = lane_id() / G * 4; c < D; c += WARP_SIZE / G * 4) {
        const float4 x = load4(g_q + g * D + c);
        s_q[c * G + g] = x.x;
        s_q[(c + 1) * G + g] = x.y;
        s_q[(c + 2) * G + g] = x.z;
        s_q[(c + 3) * G + g] = x.w;
    }
}

/* Load a chunk from global memory, by the warp. */
static __device__ __forceinline__ void load_chunk(float *s_chunk, const float *g_from) {
    __syncwarp(); /* all lanes have used the last chunk */
#pragma unroll
    for (int i = 4 * lane_id(); i < FLOATS; i += 4 * WARP_SIZE)
        *(float4 *)(s_chunk + i) = load4(g_from + i);
    __syncwarp();
}

/* One span of a query's tile: S [16,64] = Q K^T, softmax as in step 1, O [16,D] += P V. */
static __device__ __forceinline__ void softmax_step(softmax_state<1> *x, const problem *pb,
                                                    int branch, span sp, float *s_chunk,
                                                    const float *s_q, float *s_p) {
    const float *g_kt = keys_of(pb, branch, sp.block), *g_v = values_of(pb, branch, sp.block);
    const uint64_t mask = range_mask(sp.lo, sp.hi);
    acc_16x64 s;
    zero_acc_16x64(&s);
    for (int k = 0; k < D; k += CHUNK) {
        load_chunk(s_chunk, g_kt + k * BLOCK);
        warp_matmul<1>(&s, s_q + k * G + lane_row(), G, s_chunk + lane_col(), BLOCK, CHUNK);
    }
    online_softmax_update(x, &s, mask, pb->scale2, s_p);
    for (int k = 0; k < BLOCK; k += CHUNK) {
        load_chunk(s_chunk, g_v + k * D);
        matmul_masked<1>(x->o, s_p, s_chunk + lane_col(), D, mask, k / LANE_COLS,
                         (k + CHUNK) / LANE_COLS);
    }
}

/* Store a finished tile: o [G,D]. */
static __device__ __forceinline__ void write_tile(float *g_o, const acc_16x64 *o) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++)
        store4(g_o + (lane_row() + i) * D + lane_col(), o->x[i][0], o->x[i][1], o->x[i][2],
               o->x[i][3]);
}

/* All spans of query t. */
static __device__ __forceinline__ void attend(softmax_state<1> *x, const problem *pb, int branch,
                                              int t, float *s_chunk, const float *s_q, float *s_p) {
    span sp;
    softmax_init(x);
    for (int i = 0; (sp = span_of(pb, branch, t, i)).hi; i++)
        softmax_step(x, pb, branch, sp, s_chunk, s_q, s_p);
    softmax_finalize(x);
}

/* One branch. Grid: a CUDA block for each query. Block: one warp; a lane owns 8 heads x 4 keys,
 * then 8 heads x 4 columns (tile.cuh). Shared: 12 KiB, a chunk of a block, Q^T and P^T. */
template <int BRANCH>
static __global__ void __launch_bounds__(WARP_SIZE, 12) attend_kernel(problem pb) {
    __shared__ __align__(16) float s_chunk[FLOATS], s_q[D * G], s_p[BLOCK * G];
    const int t = (int)blockIdx.x;
    softmax_state<1> x;
    load_query(s_q, pb.q + row_of(t, 0) * D);
    attend(&x, &pb, BRANCH, t, s_chunk, s_q, s_p);
    write_tile(pb.o[BRANCH] + row_of(t, 0) * D, &x.o[0]);
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

nsa_status step_2_group(const problem *pb) {
    const dim3 grid((unsigned)pb->T);
    NSA_LAUNCH(attend_kernel<SLC>, grid, dim3(WARP_SIZE), 0, 0, *pb);
    NSA_LAUNCHED("selected");
    NSA_LAUNCH(attend_kernel<WIN>, grid, dim3(WARP_SIZE), 0, 0, *pb);
    NSA_LAUNCHED("window");
    NSA_LAUNCH(combine_kernel, dim3((unsigned)pb->T), dim3(G * D / 4), 0, 0, *pb);
    NSA_LAUNCHED("combine");
    return NSA_OK;
}
