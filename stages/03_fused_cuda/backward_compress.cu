/** @file
 *  @brief Backward of compression: from the gradients of compressed tokens to those of their tokens
 *  and of the weights. Each token gathers from the blocks that cover it, weights sum over all
 *  blocks, both in a fixed order. */
#include "backward.cuh"

enum {
    SUM_PARTIALS = 64, /* partial sums of a long sum over rows */
    SUM_THREADS = 128  /* columns of a CUDA block */
};

/* Arguments of the kernels for one compressor, for the compressed tokens i0..i0+count-1 of the
 * pack. */
typedef struct phi_args {
    int D, Dp, l, d, Hkv, hidden;
    int64_t i0, count, B;
    const sequence *seqs;
    const cmp_coord *cmp_coords;
    int64_t stride;  /* blocks of a head */
    const real *dkv; /* gradients of the compressed tokens, in blocks [BLOCK,Dp] */
    const real *raw; /* [T,Hkv,D] */
    const real *u;   /* [N,Hkv][hp] mlp: hidden units before silu */
    int hp;
    const real *w, *b, *pe; /* weights */
    real *dy, *z, *silu, *du, *sum_du, *draw;
} phi_args;

/* ---------------------------------------------------------- sums and products */

/* partial[p][c] = sum over the rows m of part p of (scale ? scale[m] : 1) x[m][c]; rows with scale
 * 0 are left out, whatever they hold. Grid (columns / 128, partials), one thread a column. */
static __global__ void __launch_bounds__(SUM_THREADS)
    partial_column_sums(const real *x, const real *scale, int64_t rows, int64_t columns,
                        real *partial) {
    const int64_t c = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x;
    const int64_t from = rows * blockIdx.y / gridDim.y, to = rows * (blockIdx.y + 1) / gridDim.y;
    float sum = 0;
    if (c >= columns)
        return;
#pragma unroll 8
    for (int64_t m = from; m < to; m++)
        sum += !scale ? x[m * columns + c] : scale[m] != 0 ? scale[m] * x[m * columns + c] : 0;
    partial[blockIdx.y * columns + c] = sum;
}

/* to[c] += the partial sums, in their order. */
static __global__ void __launch_bounds__(SUM_THREADS)
    reduce_column_sums(const real *partial, int partials, int64_t columns, real *to) {
    const int64_t c = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x;
    float sum = 0;
    if (c >= columns)
        return;
    for (int p = 0; p < partials; p++)
        sum += partial[p * columns + c];
    to[c] += sum;
}

/* to [columns] += sum over rows of scale[m] x[m]; scale may be NULL. */
static nsa_status column_sums(stage *st, const real *x, const real *scale, int64_t rows,
                              int64_t columns, real *to) {
    const scratch *s = (const scratch *)st->scratch;
    const int64_t max_partials = (rows + 255) / 256;
    const int partials = (int)(max_partials < SUM_PARTIALS ? max_partials : (int64_t)SUM_PARTIALS);
    const unsigned blocks = (unsigned)((columns + SUM_THREADS - 1) / SUM_THREADS);
    NSA_LAUNCH(partial_column_sums, dim3(blocks, (unsigned)partials), SUM_THREADS, 0, st->stream, x,
               scale, rows, columns, s->column_partials);
    NSA_LAUNCHED("partial_column_sums");
    NSA_LAUNCH(reduce_column_sums, blocks, SUM_THREADS, 0, st->stream,
               (const real *)s->column_partials, partials, columns, to);
    NSA_LAUNCHED("reduce_column_sums");
    return NSA_OK;
}

/* A matrix operand: element (i,j) is at[i * row + j * col]. */
typedef struct operand {
    const real *at;
    int64_t row, col;
} operand;

enum { GEMM = 128, GEMM_K = 16 }; /* tile of C of a CUDA block, and its step of k */

/* Load rows k0.. of an operand into s_x [GEMM_K][GEMM]; zero outside of [M] and [K]. */
static __device__ __forceinline__ void stage_operand(float *s_x, operand x, int64_t m0, int64_t M,
                                                     int64_t k0, int64_t K) {
    for (int i = (int)threadIdx.x; i < GEMM * GEMM_K; i += 256) {
        /* neighbouring threads read contiguous elements */
        const int m = x.col == 1 ? i / GEMM_K : i % GEMM, k = x.col == 1 ? i % GEMM_K : i / GEMM;
        const bool inside = m0 + m < M && k0 + k < K;
        s_x[k * GEMM + m] = inside ? x.at[(m0 + m) * x.row + (k0 + k) * x.col] : 0;
    }
}

/* C [M,N] (+)= A [M,K] B [K,N]; b is B transposed, an operand (n,k). Grid (M / 128, N / 128), 8
 * warps with 16 rows and 128 columns each. */
static __global__ void __launch_bounds__(256)
    matmul_kernel(int64_t M, int64_t N, int64_t K, operand a, operand b, real *c, int add) {
    __shared__ float4 s_a[GEMM_K * GEMM / 4];
    __shared__ float4 s_b[GEMM_K * GEMM / 4];
    const int64_t m0 = (int64_t)blockIdx.x * GEMM, n0 = (int64_t)blockIdx.y * GEMM;
    const int row = (int)threadIdx.x / WARP_SIZE * TILE_ROWS + lane_row();
    acc_16x64 acc[2];
    zero_acc_16x64(&acc[0]);
    zero_acc_16x64(&acc[1]);
    for (int64_t k0 = 0; k0 < K; k0 += GEMM_K) {
        __syncthreads();
        stage_operand((float *)s_a, a, m0, M, k0, K);
        stage_operand((float *)s_b, b, n0, N, k0, K);
        __syncthreads();
        warp_matmul<2>(acc, (float *)s_a + row, GEMM, (float *)s_b + lane_col(), GEMM, GEMM_K);
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
#pragma unroll
        for (int j = 0; j < 2 * LANE_COLS; j++) {
            const int64_t m = m0 + row + i,
                          n = n0 + j / LANE_COLS * TILE_COLS + lane_col() + j % LANE_COLS;
            if (m < M && n < N)
                c[m * N + n] = acc[j / LANE_COLS].x[i][j % LANE_COLS] + (add ? c[m * N + n] : 0);
        }
    }
}

static nsa_status matmul(stage *st, int64_t M, int64_t N, int64_t K, operand a, operand b, real *c,
                         int add) {
    const dim3 grid((unsigned)((M + GEMM - 1) / GEMM), (unsigned)((N + GEMM - 1) / GEMM));
    NSA_LAUNCH(matmul_kernel, grid, 256, 0, st->stream, M, N, K, a, b, c, add);
    NSA_LAUNCHED("matmul_kernel");
    return NSA_OK;
}

/* -------------------------------------------------------------- from and to tokens */

/* dy [count*Hkv][D], out of the blocks; for the mlp z = vec(x + pe) too. One CUDA block for each
 * m. */
static __global__ void __launch_bounds__(128) gather_blocks(const phi_args p, int with_z) {
    const int64_t m = blockIdx.x, h = m % p.Hkv;
    const cmp_coord coord = p.cmp_coords[p.i0 + m / p.Hkv];
    const real *dy = p.dkv + (h * p.stride * BLOCK + coord.key) * p.Dp;
    for (int c = (int)threadIdx.x; c < p.D; c += 128)
        p.dy[m * p.D + c] = dy[c];
    for (int i = (int)threadIdx.x; with_z && i < p.l * p.D; i += 128)
        p.z[m * p.l * p.D + i] =
            p.raw[((coord.token + i / p.D) * p.Hkv + h) * p.D + i % p.D] + p.pe[i];
}

/* mlp: silu(u); and dh [m][hidden] becomes du = dh silu'(u) = dh sg (1 + u (1 - sg)). */
static __global__ void __launch_bounds__(256) silu_backward(const phi_args p) {
    const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (i >= p.count * p.Hkv * p.hidden)
        return;
    const float u = p.u[(p.i0 * p.Hkv + i / p.hidden) * p.hp + i % p.hidden];
    const float sg = 1 / (1 + expf(-u));
    p.silu[i] = u * sg;
    p.du[i] *= sg * (1 + u * (1 - sg));
}

static __device__ __forceinline__ float warp_reduce_sum(float x) {
    for (int other = 1; other < WARP_SIZE; other *= 2)
        x += __shfl_xor_sync(0xffffffffu, x, other);
    return x;
}

/* gated: a = softmax_r(w.(x_r + pe_r) + b_r),  da_r = dy.x_r,  du_r = a_r (da_r - sum_s a_s da_s).
 * One warp for each m; a goes to p.silu, du to p.du, both [m][l]. */
static __global__ void __launch_bounds__(WARP_SIZE) gated_backward(const phi_args p) {
    const int64_t m = blockIdx.x, h = m % p.Hkv;
    const real *x = p.raw + (p.cmp_coords[p.i0 + m / p.Hkv].token * p.Hkv + h) * p.D;
    const int lane = (int)threadIdx.x;
    real *a = p.silu + m * p.l, *du = p.du + m * p.l;
    float row_max = -INFINITY, row_sum = 0, mean = 0;
    for (int r = 0; r < p.l; r++) {
        float logit = 0, da = 0;
        for (int c = lane; c < p.D; c += WARP_SIZE) {
            const float x_rc = x[(int64_t)r * p.Hkv * p.D + c];
            logit += p.w[c] * x_rc + p.w[c] * p.pe[r * p.D + c];
            da += p.dy[m * p.D + c] * x_rc;
        }
        logit = warp_reduce_sum(logit) + p.b[r];
        da = warp_reduce_sum(da);
        row_max = logit > row_max || logit != logit ? logit : row_max;
        if (lane == r % WARP_SIZE) { /* the lane that reads it below */
            a[r] = logit;
            du[r] = da;
        }
    }
    for (int r = lane; r < p.l; r += WARP_SIZE) {
        a[r] = expf(a[r] - row_max);
        row_sum += a[r];
    }
    row_sum = warp_reduce_sum(row_sum);
    for (int r = lane; r < p.l; r += WARP_SIZE) {
        a[r] /= row_sum;
        mean += a[r] * du[r];
    }
    mean = warp_reduce_sum(mean);
    for (int r = lane; r < p.l; r += WARP_SIZE)
        du[r] = a[r] * (du[r] - mean);
}

/* The gradient of a token, from the blocks that cover it; r is its index in block i:
 *     mean   dx += dy_i / l        gated  dx += a_ir dy_i + du_ir w        mlp  dx += dz_ir
 * One CUDA block for each (token from `first` on, head). Gated: sum_du too, the token's sum of
 * du. */
static __global__ void __launch_bounds__(128)
    gather_tokens(const phi_args p, nsa_phi phi, int64_t first) {
    const int64_t token = first + blockIdx.x / p.Hkv, h = blockIdx.x % p.Hkv;
    int64_t lo = 0, hi = p.B - 1;
    while (lo < hi) { /* the last sequence that begins at or before it */
        const int64_t middle = (lo + hi + 1) / 2;
        if (p.seqs[middle].token <= token)
            lo = middle;
        else
            hi = middle - 1;
    }
    const sequence *sq = &p.seqs[lo];
    const int64_t t = token - sq->token;
    int64_t from = sq->cmp + (t >= p.l ? (t - p.l) / p.d + 1 : 0);
    int64_t to = sq->cmp + (t / p.d + 1 < sq->n_cmp ? t / p.d + 1 : sq->n_cmp);
    from = from > p.i0 ? from : p.i0;
    to = to < p.i0 + p.count ? to : p.i0 + p.count;
    real *dx = p.draw + (token * p.Hkv + h) * p.D;
    for (int c = (int)threadIdx.x; c < p.D && from < to; c += 128) {
        float sum = dx[c];
        for (int64_t i = from; i < to; i++) {
            const int64_t m = (i - p.i0) * p.Hkv + h, r = t - (i - sq->cmp) * p.d;
            if (phi == NSA_PHI_MLP)
                sum += p.z[(m * p.l + r) * p.D + c];
            else if (phi == NSA_PHI_GATED)
                sum += p.silu[m * p.l + r] * p.dy[m * p.D + c] + p.du[m * p.l + r] * p.w[c];
            else
                sum += p.dy[m * p.D + c] / (float)p.l;
        }
        dx[c] = sum;
    }
    if (phi == NSA_PHI_GATED && threadIdx.x == 0) {
        float sum = 0;
        for (int64_t i = from; i < to; i++)
            sum += p.du[((i - p.i0) * p.Hkv + h) * p.l + t - (i - sq->cmp) * p.d];
        p.sum_du[token * p.Hkv + h] = sum;
    }
}

/* gated, at the end: dpe_r = db_r w,  dw += sum_r db_r pe_r. One thread a column. */
static __global__ void __launch_bounds__(128)
    gated_weights_backward(const phi_args p, const real *db, real *dpe, real *dw) {
    const int c = (int)(blockIdx.x * 128 + threadIdx.x);
    float sum = 0;
    if (c >= p.D)
        return;
    for (int r = 0; r < p.l; r++) {
        dpe[r * p.D + c] = db[r] * p.w[c];
        sum += db[r] * p.pe[r * p.D + c];
    }
    dw[c] += sum;
}

/* ----------------------------------------------------------------- host */

/* y = W2 h + b2, h = silu(u), u = W1 z + b1, z = vec(x + pe):
 *   db2 += dy,  dW2 += dy h^T,  dh = W2^T dy,  du = dh silu'(u),
 *   db1 += du,  dW1 += du z^T,  dz = W1^T du,  dx += dz,  dpe += dz. */
static nsa_status phi_mlp_backward(stage *st, const phi_args *p, int pair) {
    real *const *phi = st->phi[pair], *const *dphi = st->dphi[pair];
    const int64_t M = p->count * p->Hkv, D = p->D, H = p->hidden, lD = (int64_t)p->l * p->D;
    TRY(matmul(st, M, H, D, {p->dy, D, 1}, {phi[W2], 1, H}, p->du, 0));
    NSA_LAUNCH(silu_backward, (unsigned)((M * H + 255) / 256), 256, 0, st->stream, *p);
    NSA_LAUNCHED("silu_backward");
    TRY(column_sums(st, p->dy, NULL, M, D, dphi[B2]));
    TRY(matmul(st, D, H, M, {p->dy, 1, D}, {p->silu, 1, H}, dphi[W2], 1));
    TRY(column_sums(st, p->du, NULL, M, H, dphi[B1]));
    TRY(matmul(st, H, lD, M, {p->du, 1, H}, {p->z, 1, lD}, dphi[W1], 1));
    TRY(matmul(st, M, lD, H, {p->du, H, 1}, {phi[W1], 1, lD}, p->z, 0));
    return column_sums(st, p->z, NULL, M, lD, dphi[PE]);
}

/* Number of tokens that the compressed tokens of p cover, and the first of them. */
static int64_t covered(const stage *st, const phi_args *p, int64_t *first) {
    *first = st->host_cmp_coords[p->i0].token;
    return st->host_cmp_coords[p->i0 + p->count - 1].token + p->l - *first;
}

/* Backward of one batch of one compressor. */
static nsa_status compress_backward(stage *st, const phi_args *p, int pair) {
    const nsa_phi phi = st->cfg.phi;
    const unsigned M = (unsigned)(p->count * p->Hkv);
    int64_t first, tokens = covered(st, p, &first);
    NSA_LAUNCH(gather_blocks, M, 128, 0, st->stream, *p, (int)(phi == NSA_PHI_MLP));
    NSA_LAUNCHED("gather_blocks");
    if (phi == NSA_PHI_MLP)
        TRY(phi_mlp_backward(st, p, pair));
    if (phi == NSA_PHI_GATED) {
        NSA_LAUNCH(gated_backward, M, WARP_SIZE, 0, st->stream, *p);
        NSA_LAUNCHED("gated_backward");
        TRY(column_sums(st, p->du, NULL, M, p->l, st->dphi[pair][B]));
    }
    NSA_LAUNCH(gather_tokens, (unsigned)(tokens * p->Hkv), 128, 0, st->stream, *p, phi, first);
    NSA_LAUNCHED("gather_tokens");
    if (phi == NSA_PHI_GATED) /* dw += sum over tokens of sum_du x */
        TRY(column_sums(st, p->raw + first * p->Hkv * p->D, p->sum_du + first * p->Hkv,
                        tokens * p->Hkv, p->D, st->dphi[pair][W]));
    return NSA_OK;
}

/* Backward of one compressor, a batch of compressed tokens at a time; gradients are zero before. */
nsa_status compress_pack_backward(stage *st, int pair) {
    const dims *c = &st->c;
    const scratch *s = (const scratch *)st->scratch;
    phi_args p;
    p.D = (int)width(st, pair);
    p.Dp = pair == KEYS ? c->dkp : c->dvp;
    p.l = c->l;
    p.d = c->d;
    p.Hkv = c->Hkv;
    p.hidden = c->hidden;
    p.B = st->batch.B;
    p.seqs = st->seqs;
    p.cmp_coords = st->cmp_coords;
    p.stride = st->in[CMP].stride;
    p.dkv = pair == KEYS ? st->in[CMP].dk : st->in[CMP].dv;
    p.raw = st->raw[pair];
    p.u = st->z[pair];
    p.hp = c->hp;
    p.w = st->phi[pair][W];
    p.b = st->phi[pair][B];
    p.pe = st->phi[pair][PE];
    p.dy = s->dy;
    p.z = s->z;
    p.silu = s->silu;
    p.du = s->du;
    p.sum_du = s->sum_du;
    p.draw = st->draw[pair];
    for (p.i0 = 0; p.i0 < st->batch.N; p.i0 += s->batch) {
        p.count = st->batch.N - p.i0 < s->batch ? st->batch.N - p.i0 : s->batch;
        TRY(compress_backward(st, &p, pair));
    }
    if (st->cfg.phi == NSA_PHI_GATED) {
        real *const *dphi = st->dphi[pair];
        NSA_LAUNCH(gated_weights_backward, (unsigned)((p.D + 127) / 128), 128, 0, st->stream, p,
                   (const real *)dphi[B], dphi[PE], dphi[W]);
        NSA_LAUNCHED("gated_weights_backward");
    }
    return NSA_OK;
}

/* Allocate buffers for a batch of compressed tokens: as many as a bounded size allows. */
nsa_status open_compress(stage *st, scratch *s) {
    const nsa_config *c = &st->cfg;
    const int64_t D = c->qk_dim > c->v_dim ? c->qk_dim : c->v_dim, lD = c->cmp_block * D;
    const int mlp = c->phi == NSA_PHI_MLP, gated = c->phi == NSA_PHI_GATED;
    const int64_t token_floats = c->kv_heads * (mlp ? lD > c->phi_hidden ? lD : c->phi_hidden
                                                : c->cmp_block > D ? c->cmp_block
                                                                   : D);
    const int64_t max_floats = (int64_t)64 << 20, units = mlp     ? c->phi_hidden
                                                          : gated ? c->cmp_block
                                                                  : 0;
    s->batch = max_floats / token_floats > 1 ? max_floats / token_floats : 1;
    s->batch = s->batch < st->plan->max_cmp ? s->batch : st->plan->max_cmp;
    const int64_t M = s->batch * c->kv_heads;
    const int64_t columns = mlp && c->phi_hidden > lD ? c->phi_hidden : lD;
    s->dy = (real *)device_alloc(st, NSA_MEM_SCRATCH, M * D, sizeof(real));
    s->z = (real *)device_alloc(st, NSA_MEM_SCRATCH, mlp ? M * lD : 0, sizeof(real));
    s->silu = (real *)device_alloc(st, NSA_MEM_SCRATCH, M * units, sizeof(real));
    s->du = (real *)device_alloc(st, NSA_MEM_SCRATCH, M * units, sizeof(real));
    s->sum_du = (real *)device_alloc(st, NSA_MEM_SCRATCH, gated ? c->seq_len * c->kv_heads : 0,
                                     sizeof(real));
    s->column_partials =
        (real *)device_alloc(st, NSA_MEM_SCRATCH, SUM_PARTIALS * columns, sizeof(real));
    return NSA_OK;
}
