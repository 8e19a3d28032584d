/** @file
 *  @brief Backward of compression: from the gradients of compressed tokens to those of their tokens
 *  and of the weights. Each token gathers from the blocks that cover it, weights sum over all
 *  blocks, both in a fixed order. */
#include "compress.cuh"

/* Arguments of gather_tokens, for the compressed tokens i0..i0+count-1 of the pack. */
typedef struct gather_args {
    key_view dx;    /* gradients of all tokens: natural blocks */
    const real *dz; /* [count*Hkv][l*D] gradients of the rows of each span */
    int64_t i0, count;
    int l, d;
    const sequence *seqs;
    int64_t B;
} gather_args;

/* to[p][c] = sum over the rows m of part p of (scale ? scale[m] : 1) x[m][c], plus start[c] unless
 * it is NULL. Grid: (columns / 128, parts). Block: 128 threads, a column each. */
static __global__ void __launch_bounds__(SPAN_THREADS)
    column_sums_kernel(const real *x, const real *scale, int64_t rows, int64_t columns,
                       const real *start, real *to) {
    const int64_t c = (int64_t)blockIdx.x * SPAN_THREADS + threadIdx.x;
    const int64_t from = rows * blockIdx.y / gridDim.y, end = rows * (blockIdx.y + 1) / gridDim.y;
    if (c >= columns)
        return;
    float sum = start ? start[c] : 0;
#pragma unroll 8
    for (int64_t m = from; m < end; m++)
        sum += (scale ? scale[m] : 1) * x[m * columns + c];
    to[blockIdx.y * columns + c] = sum;
}

/* gated: da_r = dy.x_r,  du_r = a_r (da_r - sum_s a_s da_s). Grid: spans. Block: one warp, for one
 * span. Shared: a and da [l], 2 KiB. */
static __global__ void __launch_bounds__(WARP_SIZE)
    gated_backward(key_spans x, const real *w, const real *b, const real *dy, real *a, real *du) {
    __shared__ float s_a[MAX_BLOCK_LEN], s_da[MAX_BLOCK_LEN];
    const int64_t m = blockIdx.x;
    const int lane = (int)threadIdx.x, D = x.in.D;
    const real *g_x = span_rows(&x, m);
    float mean = 0;
    gated_weights(&x, m, w, b, s_a);
    for (int r = 0; r < x.l; r++) {
        float da = 0;
        for (int c = lane; c < D; c += WARP_SIZE)
            da += dy[m * D + c] * g_x[r * x.in.Dp + c];
        da = warp_reduce_sum(da);
        mean += s_a[r] * da;
        if (lane == r % WARP_SIZE) /* the lane that reads it below */
            s_da[r] = da;
    }
    for (int r = lane; r < x.l; r += WARP_SIZE) {
        a[m * x.l + r] = s_a[r];
        du[m * x.l + r] = s_a[r] * (s_da[r] - mean);
    }
}

/* dz_r = a_r dy + du_r w. The mean: a is NULL, all a_r are 1/l; du is NULL. Grid: spans. Block: 128
 * threads, for one span. */
static __global__ void __launch_bounds__(SPAN_THREADS)
    weighted_sum_backward(key_spans x, const real *dy, const real *a, const real *du, const real *w,
                          real *dz) {
    const int64_t m = blockIdx.x;
    const int D = x.in.D, lD = x.l * D;
    for (int i = (int)threadIdx.x; i < lD; i += SPAN_THREADS) {
        const int r = i / D, c = i % D;
        const float from_y = (a ? a[m * x.l + r] : 1 / (float)x.l) * dy[m * D + c];
        dz[m * lD + i] = du ? from_y + du[m * x.l + r] * w[c] : from_y;
    }
}

/* dx of a token += its rows of dz, in all spans that cover it. Grid: the tokens' keys from number
 * `first` on, times kv heads. Block: 128 threads, for one token. */
static __global__ void __launch_bounds__(SPAN_THREADS)
    gather_tokens(const gather_args p, int64_t first) {
    const int64_t key = first + blockIdx.x / p.dx.Hkv, h = blockIdx.x % p.dx.Hkv;
    int64_t lo = 0, hi = p.B - 1;
    while (lo < hi) { /* the last sequence that begins at or before it */
        const int64_t middle = (lo + hi + 1) / 2;
        if (p.seqs[middle].first[RAW] * BLOCK <= key)
            lo = middle;
        else
            hi = middle - 1;
    }
    const sequence *sq = &p.seqs[lo];
    const int64_t t = key - sq->first[RAW] * BLOCK;
    int64_t from = sq->cmp + (t >= p.l ? (t - p.l) / p.d + 1 : 0);
    int64_t to = sq->cmp + (t / p.d + 1 < sq->n_cmp ? t / p.d + 1 : sq->n_cmp);
    from = from > p.i0 ? from : p.i0;
    to = to < p.i0 + p.count ? to : p.i0 + p.count;
    real *dx = natural_row(&p.dx, h, key);
    for (int c = (int)threadIdx.x; c < p.dx.D && from < to; c += SPAN_THREADS) {
        float sum = dx[c];
        for (int64_t i = from; i < to; i++) {
            const int64_t m = (i - p.i0) * p.dx.Hkv + h, r = t - (i - sq->cmp) * p.d;
            sum += p.dz[(m * p.l + r) * p.dx.D + c];
        }
        dx[c] = sum;
    }
}

/* ----------------------------------------------------------------- host */

/* to [columns] += sum over the rows of x [rows,columns], each times its `scale` unless that is
 * NULL. Parts of the rows first, then the parts' sums in their order. */
static nsa_status column_sums(stage *st, const real *x, const real *scale, int64_t rows,
                              int64_t columns, real *to) {
    const int64_t max_parts = (rows + 255) / 256;
    const unsigned parts = max_parts < SUM_PARTIALS ? (unsigned)max_parts : (unsigned)SUM_PARTIALS;
    const unsigned blocks = (unsigned)((columns + SPAN_THREADS - 1) / SPAN_THREADS);
    const real *const none = NULL;
    real *partials = st->phi_scratch.partials;
    NSA_LAUNCH(column_sums_kernel, dim3(blocks, parts), SPAN_THREADS, 0, st->stream, x, scale, rows,
               columns, none, partials);
    NSA_LAUNCHED("column_sums, parts");
    NSA_LAUNCH(column_sums_kernel, blocks, SPAN_THREADS, 0, st->stream, partials, none,
               (int64_t)parts, columns, to, to);
    NSA_LAUNCHED("column_sums");
    return NSA_OK;
}

/* y = mean_r x_r:  dz_r = dy / l */
static nsa_status phi_mean_backward(stage *st, const key_spans *x) {
    const compressor_scratch *s = &st->phi_scratch;
    const real *const none = NULL;
    NSA_LAUNCH(weighted_sum_backward, (unsigned)(x->count * x->in.Hkv), SPAN_THREADS, 0, st->stream,
               *x, s->y, none, none, none, s->z);
    NSA_LAUNCHED("weighted_sum_backward");
    return NSA_OK;
}

/* y = sum_r a_r x_r, a = softmax(u), u_r = w.z_r + b_r, z_r = x_r + pe_r:
 *   du as in gated_backward,  dw += du_r z_r,  db_r += du_r,  dz_r = a_r dy + du_r w,
 *   dpe_r = db_r w, when all of db is there. */
static nsa_status phi_gated_backward(stage *st, int pair, const key_spans *x) {
    const compressor_scratch *s = &st->phi_scratch;
    real *const *phi = st->phi[pair], *const *dphi = st->dphi[pair];
    const int64_t M = x->count * x->in.Hkv, D = x->in.D, l = x->l;
    TRY(gather(st, x, s->z));
    NSA_LAUNCH(gated_backward, (unsigned)M, WARP_SIZE, 0, st->stream, *x, phi[W], phi[B], s->y,
               s->a, s->du);
    NSA_LAUNCHED("gated_backward");
    TRY(column_sums(st, s->z, s->du, M * l, D, dphi[W]));
    TRY(column_sums(st, s->du, NULL, M, l, dphi[B]));
    TRY(matmul(st, {l, D, 1}, rows_of(dphi[B], 1), rows_of(phi[W], D), rows_of(dphi[PE], D)));
    NSA_LAUNCH(weighted_sum_backward, (unsigned)M, SPAN_THREADS, 0, st->stream, *x, s->y, s->a,
               s->du, phi[W], s->z);
    NSA_LAUNCHED("weighted_sum_backward");
    return NSA_OK;
}

/* y = W2 h + b2, h = silu(u), u = W1 z + b1, z = vec(x + pe), a row a span:
 *   db2 += dy,  dW2 += dy^T h,  dh = dy W2,  du = dh silu'(u),
 *   db1 += du,  dW1 += du^T z,  dz = du W1,  dpe += dz. */
static nsa_status phi_mlp_backward(stage *st, int pair, const key_spans *x, const real *u) {
    const compressor_scratch *s = &st->phi_scratch;
    real *const *phi = st->phi[pair], *const *dphi = st->dphi[pair];
    const int64_t M = x->count * x->in.Hkv, D = x->in.D, H = st->c.hidden, lD = x->l * D;
    TRY(gather(st, x, s->z));
    TRY(matmul(st, {M, H, D}, rows_of(s->y, D), rows_of(phi[W2], H), rows_of(s->du, H)));
    TRY(silu(st, u, M * H, s->a, s->du));
    TRY(column_sums(st, s->y, NULL, M, D, dphi[B2]));
    TRY(matmul_add(st, {D, H, M}, columns_of(s->y, D), rows_of(s->a, H), rows_of(dphi[W2], H)));
    TRY(column_sums(st, s->du, NULL, M, H, dphi[B1]));
    TRY(matmul_add(st, {H, lD, M}, columns_of(s->du, H), rows_of(s->z, lD), rows_of(dphi[W1], lD)));
    TRY(matmul(st, {M, lD, H}, rows_of(s->du, H), rows_of(phi[W1], lD), rows_of(s->z, lD)));
    return column_sums(st, s->z, NULL, M, lD, dphi[PE]);
}

/* The compressed tokens i0.. of the pack, one batch: dy out of the blocks, dz, then dx. */
static nsa_status compress_backward(stage *st, int pair, int64_t i0, int64_t count) {
    const cmp_tokens tokens = {st->cmp.first + i0, st->cmp.key + i0, count};
    const key_spans x = spans_of(st, st->in, pair, &tokens);
    const key_spans dy = {gradient_view(st, CMP, pair), tokens.key, count, 1, NULL};
    const gather_args args = {gradient_view(st, RAW, pair),
                              st->phi_scratch.z,
                              i0,
                              count,
                              x.l,
                              st->c.d,
                              st->seqs,
                              st->batch.B};
    const int64_t *first = st->host_cmp.first + i0; /* ascending */
    const int64_t keys = first[count - 1] + x.l - first[0];
    TRY(gather(st, &dy, st->phi_scratch.y));
    if (st->cfg.phi == NSA_PHI_MLP)
        TRY(phi_mlp_backward(st, pair, &x, st->u[pair] + i0 * x.in.Hkv * st->c.hidden));
    else if (st->cfg.phi == NSA_PHI_MEAN)
        TRY(phi_mean_backward(st, &x));
    else
        TRY(phi_gated_backward(st, pair, &x));
    NSA_LAUNCH(gather_tokens, (unsigned)(keys * x.in.Hkv), SPAN_THREADS, 0, st->stream, args,
               first[0]);
    NSA_LAUNCHED("gather_tokens");
    return NSA_OK;
}

/* Backward of both compressors; gradients are zero before. */
nsa_status compress_pack_backward(stage *st) {
    const int64_t N = st->batch.N, batch = st->phi_scratch.batch;
    for (int pair = 0; pair < PAIR; pair++) {
        for (int64_t i = 0; i < N; i += batch)
            TRY(compress_backward(st, pair, i, N - i < batch ? N - i : batch));
    }
    return NSA_OK;
}
