/** @file
 *  @brief Compression (Eq. 7): at every d-th token, l tokens become one key and one value. */
#include "stage.cuh"

/* Arguments of one compressor's launch, for `count` compressed tokens of every kv head. x_r of
 * token i, head h, is raw + ((cmp_coords[i].token + r) Hkv + h) D. */
typedef struct compressor {
    dims c;
    int D, Dp; /* dk or dv; width of a padded row */
    const real *raw;
    const real *pe, *w, *b, *b1, *b2; /* [l,D] [D] [l] [hidden] [D] */
    const real *w1t, *w2t;            /* [l*D up to DIM_ALIGN][hp] [hidden up to DIM_ALIGN][Dp] */
    const cmp_coord *cmp_coords;      /* [count] */
    int64_t count, stride;
    real *z;       /* [count,Hkv][hp] hidden units before silu */
    real *t, *nat; /* blocks [D8][64] and [64][Dp]; one may be NULL */
} compressor;

/* Store element `col` of a compressed token as key `key` of the head's blocks. */
static __device__ __forceinline__ void store_compressed(const compressor *x, int h, int64_t key,
                                                        int col, float y) {
    const int64_t block = h * x->stride + key / BLOCK, row = key % BLOCK;
    const int64_t D8 = (x->D + DIM_ALIGN - 1) / DIM_ALIGN * DIM_ALIGN;
    if (x->t)
        x->t[(block * D8 + col) * BLOCK + row] = y;
    if (x->nat)
        x->nat[(block * BLOCK + row) * x->Dp + col] = y;
}

/* y = mean_r x_r. Grid: elements of y / 256, within the limit of a grid. Block: 256 threads, one
 * element of y each. */
static __global__ void phi_mean_kernel(compressor x) {
    const int64_t all = x.count * x.c.Hkv * x.D, threads = (int64_t)gridDim.x * blockDim.x;
    const int64_t token_stride = (int64_t)x.c.Hkv * x.D;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += threads) {
        const cmp_coord coord = x.cmp_coords[i / token_stride];
        const float *g_x = x.raw + coord.token * token_stride + i % token_stride;
        float sum = 0;
        if (coord.token < 0)
            continue;
        for (int r = 0; r < x.c.l; r++)
            sum += g_x[r * token_stride];
        store_compressed(&x, (int)(i % token_stride / x.D), coord.key, (int)(i % x.D),
                         sum / (float)x.c.l);
    }
}

static __device__ __forceinline__ float warp_reduce_sum(float x) {
#pragma unroll
    for (int lane = 1; lane < WARP_SIZE; lane *= 2)
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

static __device__ __forceinline__ float warp_reduce_max(float x) {
#pragma unroll
    for (int lane = 1; lane < WARP_SIZE; lane *= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

/* y = sum_r a_r x_r with a = softmax_r(w . (x_r + pe_r) + b_r). Grid: compressed tokens times kv
 * heads. Block: one warp, for one y. Shared: a [l], 1 KiB. */
static __global__ void phi_gated_kernel(compressor x) {
    __shared__ float s_a[256]; /* l <= 256 by the specification */
    const int64_t token_stride = (int64_t)x.c.Hkv * x.D;
    const cmp_coord coord = x.cmp_coords[blockIdx.x / x.c.Hkv];
    const int h = (int)(blockIdx.x % x.c.Hkv), lane = (int)threadIdx.x;
    const float *g_x = x.raw + coord.token * token_stride + (int64_t)h * x.D;
    float row_max = -INFINITY, row_sum = 0;
    if (coord.token < 0)
        return;
    for (int r = 0; r < x.c.l; r++) {
        float score = 0;
        for (int c = lane; c < x.D; c += WARP_SIZE)
            score += x.w[c] * (g_x[r * token_stride + c] + x.pe[r * x.D + c]);
        score = warp_reduce_sum(score);
        if (lane == 0)
            s_a[r] = score + x.b[r];
    }
    __syncwarp();
    for (int r = lane; r < x.c.l; r += WARP_SIZE)
        row_max = fmaxf(row_max, s_a[r]);
    row_max = warp_reduce_max(row_max);
    for (int r = lane; r < x.c.l; r += WARP_SIZE) {
        s_a[r] = expf(s_a[r] - row_max);
        row_sum += s_a[r];
    }
    row_sum = warp_reduce_sum(row_sum);
    __syncwarp();
    for (int c = lane; c < x.D; c += WARP_SIZE) {
        float y = 0;
        for (int r = 0; r < x.c.l; r++)
            y += s_a[r] / row_sum * g_x[r * token_stride + c];
        store_compressed(&x, h, coord.key, c, y);
    }
}

enum {
    MLP_WARPS = 4,
    MLP_ROWS = MLP_WARPS * TILE_ROWS,
    MLP_K = 32,                      /* step of the summed dimension; a thread loads k = its lane */
    MLP_LD = MLP_ROWS + 4,           /* 4 more, against bank conflicts */
    MLP_LEFT = MLP_ROWS / MLP_WARPS, /* floats of the left matrix that a thread loads */
    MLP_RIGHT = MLP_K * TILE_COLS / (4 * MLP_WARPS * WARP_SIZE) /* float4s of the right one */
};

/* Operands of the next step, loaded ahead by one thread. */
typedef struct mlp_prefetch {
    float left[MLP_LEFT];
    float4 right[MLP_RIGHT];
} mlp_prefetch;

/* Column k of the left matrix, vec(x + pe) or silu of the hidden units, for every MLP_WARPS-th row
 * from this warp's first on. s_from [MLP_ROWS]: the offset of each row's elements, -1 if there is
 * no row. Neighbouring rows overlap in memory; they are never copied out. */
template <int SECOND>
static __device__ __forceinline__ void mlp_load_left(const compressor *x, const int64_t *s_from,
                                                     int k, float *left) {
    const bool inside = k < (SECOND ? x->c.hidden : x->c.l * x->D);
    const int64_t offset = SECOND || !inside ? k : (int64_t)(k / x->D) * x->c.Hkv * x->D + k % x->D;
    const float pe = SECOND || !inside ? 0 : x->pe[k];
    const real *g_x = SECOND ? x->z : x->raw;
#pragma unroll
    for (int i = 0; i < MLP_LEFT; i++) {
        const int64_t from = s_from[(int)threadIdx.x / WARP_SIZE + i * MLP_WARPS];
        left[i] = inside && from >= 0 ? g_x[from + offset] + pe : 0;
    }
}

/* Rows k.. of the right matrix, 64 of its columns. */
static __device__ __forceinline__ void mlp_load_right(const float *g_right, int columns, int k,
                                                      int K, float4 *right) {
#pragma unroll
    for (int i = 0; i < MLP_RIGHT; i++) {
        const int i0 = 4 * (int)threadIdx.x + i * 4 * MLP_WARPS * WARP_SIZE,
                  row = k + i0 / TILE_COLS;
        right[i] = row < K ? load4(g_right + (int64_t)row * columns + i0 % TILE_COLS)
                           : make_float4(0, 0, 0, 0);
    }
}

/* One layer of y = W2 silu(W1 vec(x + pe) + b1) + b2 as a matrix product, rows = compressed tokens
 * times kv heads: z [rows,hp] = vec(x + pe) W1^T + b1, or with SECOND y [rows,Dp] = silu(z) W2^T +
 * b2. Grid: (rows / 64, columns / 64). Block: 4 warps with 16 rows each. Shared: 17 KiB, 32
 * elements of the summed dimension at a time, the left matrix transposed, while the next 32 are
 * loaded. */
template <int SECOND>
static __global__ void __launch_bounds__(MLP_WARPS *WARP_SIZE) phi_mlp_kernel(compressor x) {
    __shared__ __align__(16) float s_left[MLP_K * MLP_LD];
    __shared__ __align__(16) float s_right[MLP_K * TILE_COLS];
    __shared__ int64_t s_from[MLP_ROWS];
    const int K = SECOND ? (x.c.hidden + DIM_ALIGN - 1) / DIM_ALIGN * DIM_ALIGN
                         : (x.c.l * x.D + DIM_ALIGN - 1) / DIM_ALIGN * DIM_ALIGN;
    const int columns = SECOND ? x.Dp : x.c.hp, first = (int)blockIdx.y * TILE_COLS;
    const float *g_right = (SECOND ? x.w2t : x.w1t) + first;
    const int64_t row0 = (int64_t)blockIdx.x * MLP_ROWS, rows = x.count * x.c.Hkv;
    const int lane = (int)threadIdx.x % WARP_SIZE, warp = (int)threadIdx.x / WARP_SIZE;
    const int row_in_block = warp * TILE_ROWS + lane_row();
    mlp_prefetch next;
    acc_16x64 acc;
    zero_acc_16x64(&acc);
    bool any = false; /* none if a decode step completes no compressed token */
    if ((int)threadIdx.x < MLP_ROWS) {
        const int64_t row = row0 + (int)threadIdx.x;
        const int64_t token = row < rows ? x.cmp_coords[row / x.c.Hkv].token : -1;
        any = token >= 0;
        s_from[threadIdx.x] = !any     ? -1
                              : SECOND ? row * x.c.hp
                                       : (token * x.c.Hkv + row % x.c.Hkv) * x.D;
    }
    if (!__syncthreads_or(any))
        return;
    mlp_load_left<SECOND>(&x, s_from, lane, next.left);
    mlp_load_right(g_right, columns, 0, K, next.right);
    for (int k = 0; k < K; k += MLP_K) {
        __syncthreads(); /* all warps have used the last step's operands */
#pragma unroll
        for (int i = 0; i < MLP_LEFT; i++)
            s_left[lane * MLP_LD + warp + i * MLP_WARPS] =
                SECOND ? next.left[i] / (1 + expf(-next.left[i])) : next.left[i];
#pragma unroll
        for (int i = 0; i < MLP_RIGHT; i++)
            *(float4 *)(s_right + 4 * (int)threadIdx.x + i * 4 * MLP_WARPS * WARP_SIZE) =
                next.right[i];
        __syncthreads();
        if (k + MLP_K < K) {
            mlp_load_left<SECOND>(&x, s_from, k + MLP_K + lane, next.left);
            mlp_load_right(g_right, columns, k + MLP_K, K, next.right);
        }
        warp_matmul<1>(&acc, s_left + row_in_block, MLP_LD, s_right + lane_col(), TILE_COLS, MLP_K);
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const int64_t row = row0 + row_in_block + i;
#pragma unroll
        for (int j = 0; j < LANE_COLS; j++) {
            const int col = first + lane_col() + j;
            if (row >= rows)
                continue;
            if (!SECOND)
                x.z[row * x.c.hp + col] = col < x.c.hidden ? acc.x[i][j] + x.b1[col] : 0;
            else if (col < x.D && x.cmp_coords[row / x.c.Hkv].token >= 0)
                store_compressed(&x, (int)(row % x.c.Hkv), x.cmp_coords[row / x.c.Hkv].key, col,
                                 acc.x[i][j] + x.b2[col]);
        }
    }
}

static compressor make_compressor(const stage *st, int pair) {
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

/* Compress: keys and values of `count` compressed tokens of every kv head, into the blocks of
 * `to`. */
nsa_status compress(stage *st, const real *const raw[PAIR], const kv_blocks *to,
                    const cmp_coord *cmp_coords, int64_t count) {
    const int64_t rows = count * st->c.Hkv;
    for (int pair = 0; pair < PAIR && count; pair++) {
        compressor x = make_compressor(st, pair);
        x.raw = raw[pair];
        x.cmp_coords = cmp_coords;
        x.count = count;
        x.stride = to->stride;
        x.t = pair == KEYS ? to->kt : to->vt;
        x.nat = pair == KEYS ? to->k : to->v;
        if (st->cfg.phi == NSA_PHI_MEAN) {
            const int64_t blocks = (rows * x.D + 255) / 256;
            NSA_LAUNCH(phi_mean_kernel, (unsigned)(blocks < 1 << 20 ? blocks : 1 << 20), 256, 0,
                       st->stream, x);
        } else if (st->cfg.phi == NSA_PHI_GATED) {
            NSA_LAUNCH(phi_gated_kernel, (unsigned)rows, WARP_SIZE, 0, st->stream, x);
        } else {
            const unsigned tiles = (unsigned)((rows + MLP_ROWS - 1) / MLP_ROWS);
            NSA_LAUNCH(phi_mlp_kernel<0>, dim3(tiles, (unsigned)(x.c.hp / TILE_COLS)),
                       MLP_WARPS * WARP_SIZE, 0, st->stream, x);
            NSA_LAUNCHED("phi_mlp, first layer");
            NSA_LAUNCH(phi_mlp_kernel<1>, dim3(tiles, (unsigned)(x.Dp / TILE_COLS)),
                       MLP_WARPS * WARP_SIZE, 0, st->stream, x);
        }
        NSA_LAUNCHED("phi");
    }
    return NSA_OK;
}
