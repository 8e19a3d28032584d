/** @file
 *  @brief Compression (Eq. 7): every d tokens, the last l become one key and one value. */
#include "stage.cuh"

/* A compressor's part in a launch, for `count` compressed tokens of every kv head. x_r of token i,
 * head h, is raw + ((places[i].token + r) Hkv + h) D. */
typedef struct compressor {
    dims c;
    int D, Dp; /* dk or dv; width of a natural row */
    const real *raw;
    const real *pe, *w, *b, *b1, *b2; /* [l,D] [D] [l] [hidden] [D] */
    const real *w1t, *w2t;            /* [l*D up to DIM][hp] [hidden up to DIM][Dp] */
    const cmp_place *places;          /* [count] */
    int64_t count, stride;
    real *z;       /* [count,Hkv][hp] hidden units before silu */
    real *t, *nat; /* blocks [D8][64] and [64][Dp]; one may be NULL */
} compressor;

/* Element `col` of the compressed token at `place`, to where blocks have it. */
static __device__ __forceinline__ void put(const compressor *x, int h, int64_t place, int col,
                                           float y) {
    const int64_t block = h * x->stride + place / BLOCK, at = place % BLOCK;
    const int64_t D8 = (x->D + DIM - 1) / DIM * DIM;
    if (x->t)
        x->t[(block * D8 + col) * BLOCK + at] = y;
    if (x->nat)
        x->nat[(block * BLOCK + at) * x->Dp + col] = y;
}

/* y = mean_r x_r. An element of y a thread. */
static __global__ void phi_mean_kernel(compressor x) {
    const int64_t all = x.count * x.c.Hkv * x.D, threads = (int64_t)gridDim.x * blockDim.x;
    const int64_t apart = (int64_t)x.c.Hkv * x.D;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += threads) {
        const cmp_place at = x.places[i / apart];
        const float *g_x = x.raw + at.token * apart + i % apart;
        float sum = 0;
        if (at.token < 0)
            continue;
        for (int r = 0; r < x.c.l; r++)
            sum += g_x[r * apart];
        put(&x, (int)(i % apart / x.D), at.block, (int)(i % x.D), sum / (float)x.c.l);
    }
}

static __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lane = 1; lane < WARP; lane *= 2)
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lane = 1; lane < WARP; lane *= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

/* y = sum_r a_r x_r with a = softmax_r(w . (x_r + pe_r) + b_r). Block: a warp for one y; a [l] in
 * shared memory. */
static __global__ void phi_gated_kernel(compressor x) {
    __shared__ float s_a[256]; /* l <= 256: a bound of the specification */
    const int64_t apart = (int64_t)x.c.Hkv * x.D;
    const cmp_place at = x.places[blockIdx.x / x.c.Hkv];
    const int h = (int)(blockIdx.x % x.c.Hkv), lane = (int)threadIdx.x;
    const float *g_x = x.raw + at.token * apart + (int64_t)h * x.D;
    float most = -INFINITY, sum = 0;
    if (at.token < 0)
        return;
    for (int r = 0; r < x.c.l; r++) {
        float score = 0;
        for (int c = lane; c < x.D; c += WARP)
            score += x.w[c] * (g_x[r * apart + c] + x.pe[r * x.D + c]);
        score = warp_sum(score);
        if (lane == 0)
            s_a[r] = score + x.b[r];
    }
    __syncwarp();
    for (int r = lane; r < x.c.l; r += WARP)
        most = fmaxf(most, s_a[r]);
    most = warp_max(most);
    for (int r = lane; r < x.c.l; r += WARP) {
        s_a[r] = expf(s_a[r] - most);
        sum += s_a[r];
    }
    sum = warp_sum(sum);
    __syncwarp();
    for (int c = lane; c < x.D; c += WARP) {
        float y = 0;
        for (int r = 0; r < x.c.l; r++)
            y += s_a[r] / sum * g_x[r * apart + c];
        put(&x, h, at.block, c, y);
    }
}

enum { MLP_WARPS = 4, MLP_ROWS = MLP_WARPS * ROWS, MLP_K = 32, MLP_LD = MLP_ROWS + 4 };

/* Element (row, k) of the left matrix: vec(x + pe), or silu of the hidden units. The windows of
 * neighbouring rows overlap in memory, and are never written out. */
template <int SECOND>
static __device__ __forceinline__ float mlp_left(const compressor *x, int64_t row, int k) {
    if (row >= x->count * x->c.Hkv)
        return 0;
    if (SECOND) {
        const float z = k < x->c.hidden ? x->z[row * x->c.hp + k] : 0;
        return z / (1 + expf(-z));
    }
    const int64_t token = x->places[row / x->c.Hkv].token, r = k / x->D;
    if (token < 0 || k >= x->c.l * x->D)
        return 0;
    return x->raw[((token + r) * x->c.Hkv + row % x->c.Hkv) * x->D + k % x->D] + x->pe[k];
}

/* A layer of y = W2 silu(W1 vec(x + pe) + b1) + b2 as one matrix product, rows = compressed tokens
 * times kv heads: z [rows,hp] = vec(x + pe) W1^T + b1, or with SECOND y [rows,Dp] = silu(z) W2^T +
 * b2. Grid: (rows / 64, columns / 64). Block: 4 warps, 16 rows each; 32 of the long dimension at a
 * time in shared memory: the left matrix transposed, the right one as it is. */
template <int SECOND>
static __global__ void __launch_bounds__(MLP_WARPS *WARP) phi_mlp_kernel(compressor x) {
    __shared__ __align__(16) float s_left[MLP_K * MLP_LD];
    __shared__ __align__(16) float s_right[MLP_K * STRIP];
    const int K = SECOND ? (x.c.hidden + DIM - 1) / DIM * DIM : (x.c.l * x.D + DIM - 1) / DIM * DIM;
    const int columns = SECOND ? x.Dp : x.c.hp, first = (int)blockIdx.y * STRIP;
    const float *g_right = (SECOND ? x.w2t : x.w1t) + first;
    const int64_t row0 = (int64_t)blockIdx.x * MLP_ROWS;
    const int mine = (int)threadIdx.x / WARP * ROWS + first_row();
    const int64_t my_row = row0 + (int)threadIdx.x;
    piece acc;
    zero_piece(&acc);
    if (!__syncthreads_or((int)threadIdx.x < MLP_ROWS && my_row < x.count * x.c.Hkv &&
                          x.places[my_row / x.c.Hkv].token >= 0))
        return; /* a decode step that completes none */
    for (int k = 0; k < K; k += MLP_K) {
        const int some = min(MLP_K, K - k);
        for (int i = (int)threadIdx.x; i < MLP_ROWS * MLP_K; i += MLP_WARPS * WARP) {
            if (i % MLP_K < some)
                s_left[i % MLP_K * MLP_LD + i / MLP_K] =
                    mlp_left<SECOND>(&x, row0 + i / MLP_K, k + i % MLP_K);
        }
        for (int i = 4 * (int)threadIdx.x; i < some * STRIP; i += 4 * MLP_WARPS * WARP)
            *(float4 *)(s_right + i) =
                load4(g_right + (int64_t)(k + i / STRIP) * columns + i % STRIP);
        __syncthreads();
        product<1>(&acc, s_left + mine, MLP_LD, s_right + first_col(), STRIP, some);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const int64_t row = row0 + mine + i;
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++) {
            const int col = first + first_col() + j;
            if (row >= x.count * x.c.Hkv)
                continue;
            if (!SECOND)
                x.z[row * x.c.hp + col] = col < x.c.hidden ? acc.at[i][j] + x.b1[col] : 0;
            else if (col < x.D && x.places[row / x.c.Hkv].token >= 0)
                put(&x, (int)(row % x.c.Hkv), x.places[row / x.c.Hkv].block, col,
                    acc.at[i][j] + x.b2[col]);
        }
    }
}

static compressor compressor_of(const stage *st, int pair) {
    real *const *phi = st->phi[pair];
    compressor x;
    x.c = st->c;
    x.D = (int)width(st, pair);
    x.Dp = pair == KEYS ? st->c.dkp : st->c.dvp;
    x.pe = phi[PE];
    x.w = phi[W];
    x.b = phi[B];
    x.b1 = phi[B1];
    x.b2 = phi[B2];
    x.w1t = st->w1t[pair];
    x.w2t = st->w2t[pair];
    x.z = st->z[pair];
    return x;
}

/* `count` compressed tokens of every kv head, keys and values, to their places in the blocks. */
nsa_status compress(stage *st, const real *const raw[PAIR], const kv_blocks *to,
                    const cmp_place *places, int64_t count) {
    const int64_t rows = count * st->c.Hkv;
    for (int pair = 0; pair < PAIR && count; pair++) {
        compressor x = compressor_of(st, pair);
        x.raw = raw[pair];
        x.places = places;
        x.count = count;
        x.stride = to->stride;
        x.t = pair == KEYS ? to->kt : to->vt;
        x.nat = pair == KEYS ? to->k : to->v;
        if (st->cfg.phi == NSA_PHI_MEAN) {
            const int64_t blocks = (rows * x.D + 255) / 256;
            NSA_LAUNCH(phi_mean_kernel, (unsigned)(blocks < 1 << 20 ? blocks : 1 << 20), 256, 0,
                       st->stream, x);
        } else if (st->cfg.phi == NSA_PHI_GATED) {
            NSA_LAUNCH(phi_gated_kernel, (unsigned)rows, WARP, 0, st->stream, x);
        } else {
            const unsigned tiles = (unsigned)((rows + MLP_ROWS - 1) / MLP_ROWS);
            NSA_LAUNCH(phi_mlp_kernel<0>, dim3(tiles, (unsigned)(x.c.hp / STRIP)), MLP_WARPS * WARP,
                       0, st->stream, x);
            NSA_LAUNCHED("phi_mlp, first layer");
            NSA_LAUNCH(phi_mlp_kernel<1>, dim3(tiles, (unsigned)(x.Dp / STRIP)), MLP_WARPS * WARP,
                       0, st->stream, x);
        }
        NSA_LAUNCHED("phi");
    }
    return NSA_OK;
}
