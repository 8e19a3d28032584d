/** @file
 *  @brief Backward of compression: from the gradients of compressed tokens to those of their tokens
 *  and of the weights. Each token gathers from the blocks that cover it, weights sum over all
 *  blocks, both in a fixed order. */
#include "compress.cuh"

/* to[p][c] = sum over the rows m of part p of x[m][c], plus start[c] unless it is NULL. Grid:
 * (columns / 128, parts). Block: 128 threads, a column each. */
static __global__ void __launch_bounds__(SPAN_THREADS)
    column_sums_kernel(const real *x, int64_t rows, int64_t columns, const real *start, real *to) {
    const int64_t c = (int64_t)blockIdx.x * SPAN_THREADS + threadIdx.x;
    const int64_t from = rows * blockIdx.y / gridDim.y, end = rows * (blockIdx.y + 1) / gridDim.y;
    if (c >= columns)
        return;
    float sum = start ? start[c] : 0;
#pragma unroll 8
    for (int64_t m = from; m < end; m++)
        sum += x[m * columns + c];
    to[blockIdx.y * columns + c] = sum;
}

/* gated: a and da_r = dy.x_r,  du_r = a_r (da_r - sum_s a_s da_s),  dz_r = a_r dy + du_r w; and the
 * span's part of dw, sum_r du_r z_r, in the place of its dy. Grid: spans. Block: one warp, for one
 * span. Shared: a and da, then du [l], 2 KiB. */
static __global__ void __launch_bounds__(WARP_SIZE)
    gated_backward(key_spans x, const real *w, const real *b, compressor_scratch s) {
    __shared__ float s_a[MAX_BLOCK_LEN], s_du[MAX_BLOCK_LEN];
    const int64_t m = blockIdx.x;
    const int lane = (int)threadIdx.x, D = x.in.D;
    real *dy = s.y + m * D, *dz = s.z + m * x.l * D;
    float mean = 0;
    gated_weights(&x, m, w, b, s_a);
    for (int r = 0; r < x.l; r++) {
        float da = 0;
        for (int c = lane; c < D; c += WARP_SIZE)
            da += dy[c] * span_element(&x, m, r, c);
        da = warp_reduce_sum(da);
        mean += s_a[r] * da;
        if (lane == r % WARP_SIZE) /* the lane that reads it below */
            s_du[r] = da;
    }
    for (int r = lane; r < x.l; r += WARP_SIZE)
        s.du[m * x.l + r] = s_du[r] = s_a[r] * (s_du[r] - mean);
    __syncwarp();
    for (int c = lane; c < D; c += WARP_SIZE) {
        float dw = 0;
        for (int r = 0; r < x.l; r++) {
            dz[r * D + c] = s_a[r] * dy[c] + s_du[r] * w[c];
            dw += s_du[r] * (span_element(&x, m, r, c) + x.pe[r * D + c]);
        }
        dy[c] = dw;
    }
}

/* dx of a token += scale times its rows of dz, in all spans x that cover it. Row r of span m is at
 * dz.at + m * dz.row + r * dz.col. Grid: the keys from key0 on, times kv heads. Block: 128 threads,
 * for one key. */
static __global__ void __launch_bounds__(SPAN_THREADS)
    gather_tokens(key_spans x, matrix dz, float scale, gradient_view dx, int64_t key0) {
    const int64_t key = key0 + blockIdx.x / dx.Hkv, h = blockIdx.x % dx.Hkv;
    int64_t begin = 0, end = x.count; /* the first span that does not end before the key */
    while (begin < end) {
        const int64_t middle = (begin + end) / 2;
        if (x.first[middle] + x.l <= key)
            begin = middle + 1;
        else
            end = middle;
    }
    while (end < x.count && x.first[end] <= key)
        end++;
    real *g_dx = element_at(&dx, h, key, 0);
    for (int c = (int)threadIdx.x; c < dx.D && begin < end; c += SPAN_THREADS) {
        float sum = 0;
        for (int64_t i = begin; i < end; i++)
            sum += dz.at[(i * dx.Hkv + h) * dz.row + (key - x.first[i]) * dz.col + c];
        g_dx[c] += scale * sum;
    }
}

/* ----------------------------------------------------------------- host */

/* to [columns] += sum over the rows of x [rows,columns]: parts of the rows first, then the parts'
 * sums in their order. */
static nsa_status column_sums(stage *st, const real *x, int64_t rows, int64_t columns, real *to) {
    const int64_t max_parts = (rows + 255) / 256;
    const unsigned parts = max_parts < SUM_PARTIALS ? (unsigned)max_parts : (unsigned)SUM_PARTIALS;
    const unsigned blocks = (unsigned)((columns + SPAN_THREADS - 1) / SPAN_THREADS);
    real *partials = st->phi_scratch.partials, *none = NULL;
    LAUNCH(column_sums_kernel, dim3(blocks, parts), SPAN_THREADS, 0, st, x, rows, columns, none,
           partials);
    LAUNCH(column_sums_kernel, blocks, SPAN_THREADS, 0, st, partials, (int64_t)parts, columns, to,
           to);
    return NSA_OK;
}

/* y = sum_r a_r x_r, a = softmax(u), u_r = w.z_r + b_r, z_r = x_r + pe_r:
 *   du and dz as in gated_backward,  dw += du_r z_r,  db_r += du_r,
 *   dpe_r = db_r w, right after the last batch. */
static nsa_status phi_gated_backward(stage *st, int pair, const key_spans *x) {
    const compressor_scratch *s = &st->phi_scratch;
    real *const *phi = st->phi[pair], *const *dphi = st->dphi[pair];
    const int64_t M = x->count * x->in.Hkv, D = x->in.D, l = x->l;
    LAUNCH(gated_backward, (unsigned)M, WARP_SIZE, 0, st, *x, phi[W], phi[B], *s);
    TRY(column_sums(st, s->y, M, D, dphi[W]));
    TRY(column_sums(st, s->du, M, l, dphi[B]));
    return matmul(st, {l, D, 1}, rows_of(dphi[B], 1), rows_of(phi[W], D), rows_of(dphi[PE], D));
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
    TRY(silu(st, u, M * H, s->h, s->du));
    TRY(column_sums(st, s->y, M, D, dphi[B2]));
    TRY(matmul_add(st, {D, H, M}, columns_of(s->y, D), rows_of(s->h, H), rows_of(dphi[W2], H)));
    TRY(column_sums(st, s->du, M, H, dphi[B1]));
    TRY(matmul_add(st, {H, lD, M}, columns_of(s->du, H), rows_of(s->z, lD), rows_of(dphi[W1], lD)));
    TRY(matmul(st, {M, lD, H}, rows_of(s->du, H), rows_of(phi[W1], lD), rows_of(s->z, lD)));
    return column_sums(st, s->z, M, lD, dphi[PE]);
}

/* The compressed tokens i0.. of the pack, one batch: dy out of the blocks, dz, then dx. The mean's
 * dz_r = dy / l is the same for all r, and is not stored. */
static nsa_status compress_backward(stage *st, int pair, int64_t i0, int64_t count) {
    const compressor_scratch *s = &st->phi_scratch;
    const cmp_tokens tokens = {st->cmp.first + i0, st->cmp.key + i0, count};
    const key_spans x = spans_of(st, st->in, pair, &tokens);
    const key_spans dy = {gradient_view_of(st, CMP, pair), tokens.key, count, 1, NULL};
    const int64_t *first = st->host_cmp.first + i0, D = x.in.D; /* ascending */
    const int64_t keys = first[count - 1] + x.l - first[0];
    const int mean = st->cfg.phi == NSA_PHI_MEAN;
    const matrix dz = mean ? matrix{s->y, D, 0} : matrix{s->z, x.l * D, D};
    TRY(gather(st, &dy, s->y));
    if (st->cfg.phi == NSA_PHI_MLP)
        TRY(phi_mlp_backward(st, pair, &x, st->u[pair] + i0 * x.in.Hkv * st->c.hidden));
    else if (!mean)
        TRY(phi_gated_backward(st, pair, &x));
    LAUNCH(gather_tokens, (unsigned)(keys * x.in.Hkv), SPAN_THREADS, 0, st, x, dz,
           mean ? 1 / (float)x.l : 1, gradient_view_of(st, RAW, pair), first[0]);
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
