/** @file
 *  @brief Step 4: one launch for both branches and the gated sum. No branch's outputs go through
 *  device memory. */
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

template <bool SHARED> static __device__ __forceinline__ void barrier(void) {
    if (SHARED)
        __syncthreads();
    else
        __syncwarp();
}

/* Load a chunk from global memory, by the warp; or SHARED: the chunks of all warps as one, by all
 * warps. */
template <bool SHARED>
static __device__ __forceinline__ void load_chunk(float *s_chunk, const float *g_from) {
    const int threads = SHARED ? NEIGHBOURS * WARP_SIZE : WARP_SIZE,
              floats = FLOATS / WARP_SIZE * threads;
    barrier<SHARED>(); /* the last chunk is no longer in use */
#pragma unroll
    for (int i = 4 * ((int)threadIdx.x % threads); i < floats; i += 4 * threads)
        *(float4 *)(s_chunk + i) = load4(g_from + i);
    barrier<SHARED>();
}

/* One span of a query's tile: S [16,64] = Q K^T, softmax as in step 1, O [16,D] += P V. SHARED: for
 * all four queries; the mask of some may be empty. */
template <bool SHARED>
static __device__ __forceinline__ void softmax_step(softmax_state<1> *x, const problem *pb,
                                                    int branch, span sp, float *s_chunk,
                                                    const float *s_q, float *s_p) {
    const float *g_kt = keys_of(pb, branch, sp.block), *g_v = values_of(pb, branch, sp.block);
    const uint64_t mask = range_mask(sp.lo, sp.hi);
    const int rows = SHARED ? NEIGHBOURS * CHUNK : CHUNK;
    acc_16x64 s;
    zero_acc_16x64(&s);
    for (int k = 0; k < D; k += rows) {
        load_chunk<SHARED>(s_chunk, g_kt + k * BLOCK);
        if (mask)
            warp_matmul<1>(&s, s_q + k * G + lane_row(), G, s_chunk + lane_col(), BLOCK, rows);
    }
    if (mask)
        online_softmax_update(x, &s, mask, pb->scale2, s_p);
    for (int k = 0; k < BLOCK; k += rows) {
        load_chunk<SHARED>(s_chunk, g_v + k * D);
        if (mask)
            matmul_masked<1>(x->o, s_p, s_chunk + lane_col(), D, mask, k / LANE_COLS,
                             (k + rows) / LANE_COLS);
    }
}

/* Store a finished tile: out [G,D] (+)= gate times it; `gate` is head 0's. */
static __device__ __forceinline__ void write_tile(float *g_out, const float *gate,
                                                  const acc_16x64 *o, bool add) {
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        float *to = g_out + (lane_row() + i) * D + lane_col();
        const float g = gate[(lane_row() + i) * BRANCHES];
        const float4 sum = add ? load4(to) : make_float4(0, 0, 0, 0);
        store4(to, sum.x + g * o->x[i][0], sum.y + g * o->x[i][1], sum.z + g * o->x[i][2],
               sum.w + g * o->x[i][3]);
    }
}

/* The window of the CUDA block's queries t0..t0+3: all blocks that one of them sees. */
static __device__ __forceinline__ void attend_win(softmax_state<1> *x, const problem *pb, int t0,
                                                  int t, float *s_chunks, const float *s_q,
                                                  float *s_p) {
    const int last = min(t0 + NEIGHBOURS, pb->T) - 1;
    softmax_init(x);
    for (int b = max(t0 - pb->w + 1, 0) / BLOCK; b <= last / BLOCK; b++) {
        const span none = {b, 0, 0};
        softmax_step<true>(x, pb, WIN, t <= last ? span_win(pb, t, b) : none, s_chunks, s_q, s_p);
    }
    softmax_finalize(x);
}

/* The selected blocks of query t, which are this warp's alone. */
static __device__ __forceinline__ void attend_slc(softmax_state<1> *x, const problem *pb, int t,
                                                  float *s_chunk, const float *s_q, float *s_p) {
    span sp;
    softmax_init(x);
    for (int i = 0; (sp = span_of(pb, SLC, t, i)).hi; i++)
        softmax_step<false>(x, pb, SLC, sp, s_chunk, s_q, s_p);
    softmax_finalize(x);
}

/* Both branches and their gated sum (Eq. 5). Grid, block and shared memory as before. A lane adds
 * the selected part to the window's, which it has just stored itself, so the second-level cache
 * still has it. In registers the window's 32 numbers a lane would not leave room for three CUDA
 * blocks on a multiprocessor. */
static __global__ void __launch_bounds__(NEIGHBOURS *WARP_SIZE, 3) attend_kernel(problem pb) {
    __shared__ __align__(16) float s_chunks[NEIGHBOURS * FLOATS], s_qs[NEIGHBOURS * D * G],
        s_ps[NEIGHBOURS * BLOCK * G];
    float *s_q = s_qs + warp_id() * D * G, *s_p = s_ps + warp_id() * BLOCK * G;
    const int t0 = (int)blockIdx.x * NEIGHBOURS, t = t0 + warp_id();
    const bool live = t < pb.T;
    const float *gate = pb.gate + row_of(t, 0) * BRANCHES;
    softmax_state<1> x;
    if (live)
        load_query(s_q, pb.q + row_of(t, 0) * D);
    attend_win(&x, &pb, t0, t, s_chunks, s_q, s_p);
    __syncthreads(); /* from here on each warp uses its own chunk */
    if (!live)
        return;
    write_tile(pb.out + row_of(t, 0) * D, gate + WIN, &x.o[0], false);
    attend_slc(&x, &pb, t, s_chunks + warp_id() * FLOATS, s_q, s_p);
    write_tile(pb.out + row_of(t, 0) * D, gate + SLC, &x.o[0], true);
}

nsa_status step_4_fused(const problem *pb) {
    const dim3 grid((unsigned)((pb->T + NEIGHBOURS - 1) / NEIGHBOURS));
    NSA_LAUNCH(attend_kernel, grid, dim3(NEIGHBOURS * WARP_SIZE), 0, 0, *pb);
    NSA_LAUNCHED("fused");
    return NSA_OK;
}
