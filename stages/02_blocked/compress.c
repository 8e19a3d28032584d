/** @file
 *  @brief Compression (Eq. 7): every d tokens, the last l become one key and one value. */
#include "stage.h"

/* D: dk for the key compressor, dv for the value compressor */
int64_t width(const stage *st, int pair) {
    return pair == KEYS ? st->cfg.qk_dim : st->cfg.v_dim;
}

/* l*D up to LANES: a row of z, and of W1 */
int64_t z_width(const stage *st, int pair) {
    return round_up(st->cfg.cmp_block * width(st, pair), LANES);
}

/* Elements of a weight or of its gradient: W1's rows are padded as z's are. */
int64_t padded_count(const stage *st, int pair, int weight) {
    return weight == W1 ? st->cfg.phi_hidden * z_width(st, pair)
                        : weight_count(&st->cfg, pair, weight);
}

/* y = mean_r x_r */
static void phi_mean(const stage *st, int pair, const real *x, real *y) {
    int64_t l = st->cfg.cmp_block, D = width(st, pair), stride = st->cfg.kv_heads * D;
    for (int64_t c = 0; c < D; c++)
        y[c] = 0;
    for (int64_t r = 0; r < l; r++)
        add_scaled(y, 1 / (real)l, x + r * stride, D);
}

/* a [l] = softmax_r(w . (x_r + pe_r) + b_r): the weights depend on the content */
void gated_weights(const stage *st, int pair, const real *x, real *a) {
    int64_t l = st->cfg.cmp_block, D = width(st, pair), stride = st->cfg.kv_heads * D;
    real *const *phi = st->phi[pair];
    real row_max = -INFINITY, row_sum = 0;
    for (int64_t r = 0; r < l; r++) {
        a[r] = phi[B][r] + dot(phi[W], x + r * stride, D) + dot(phi[W], phi[PE] + r * D, D);
        row_max = a[r] > row_max ? a[r] : row_max;
    }
    for (int64_t r = 0; r < l; r++) {
        a[r] = real_exp(a[r] - row_max);
        row_sum += a[r];
    }
    for (int64_t r = 0; r < l; r++)
        a[r] /= row_sum;
}

/* y = sum_r a_r x_r */
static void phi_gated(const stage *st, work *w, int pair, const real *x, real *y) {
    int64_t l = st->cfg.cmp_block, D = width(st, pair), stride = st->cfg.kv_heads * D;
    real *a = w->hidden;
    gated_weights(st, pair, x, a);
    for (int64_t c = 0; c < D; c++)
        y[c] = 0;
    for (int64_t r = 0; r < l; r++)
        add_scaled(y, a[r], x + r * stride, D);
}

/* y [cols,rows] = x [rows,cols] transposed, in tiles of LANES columns: a tile's rows of y stay in
 * cache while they fill. Rows of x lie x_row apart, those of y MLP_BATCH. */
void transpose(real *y, const real *x, int64_t x_row, int64_t rows, int64_t cols) {
    for (int64_t c0 = 0; c0 < cols; c0 += LANES) {
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = c0; c < c0 + LANES && c < cols; c++)
                y[c * MLP_BATCH + r] = x[r * x_row + c];
        }
    }
}

/* z [MLP_BATCH,l*D] = vec(x + pe), position-major, a row a block; hidden [phi_hidden,MLP_BATCH] =
 * W1 z^T + b1, before the activation. The batch's blocks are the lanes:
 *
 *        W1 [phi_hidden, l*D]   x   z^T [l*D, MLP_BATCH]   =   hidden [phi_hidden, MLP_BATCH]
 *        as loaded                  column i: block i          column i: block i
 *
 * W1 is large (l*D*phi_hidden floats: 4 MB for D = 128) and is read once for a batch. One block at
 * a time would read it from main memory for each. Lanes without a block hold z = 0 and contribute
 * nothing: forward does not read them, backward gives them dy = 0. */
void mlp_hidden(const stage *st, work *w, int pair, cmp_blocks in) {
    const int64_t D = width(st, pair), stride = st->cfg.kv_heads * D, Z = z_width(st, pair);
    const int64_t lD = st->cfg.cmp_block * D, lanes = round_up(in.count, LANES);
    real *const *phi = st->phi[pair];
    for (int64_t i = 0; i < lanes; i++) {
        for (int64_t k = 0; k < Z; k++)
            w->z[i * Z + k] = i < in.count && k < lD
                                  ? in.x[i * in.stride + k / D * stride + k % D] + phi[PE][k]
                                  : 0;
    }
    transpose(w->zt, w->z, Z, lanes, lD);
    matmul(st->cfg.phi_hidden, lanes, lD, rows_of(phi[W1], Z), rows_of(w->zt, MLP_BATCH),
           rows_of(w->hidden, MLP_BATCH));
    for (int64_t m = 0; m < st->cfg.phi_hidden; m++) {
        for (int64_t i = 0; i < lanes; i++)
            w->hidden[m * MLP_BATCH + i] += phi[B1][m];
    }
}

/* y^T = W2 silu(W1 z^T + b1) + b2, the paper's MLP; silu(u) = u / (1 + e^-u) */
static void phi_mlp(const stage *st, work *w, int pair, cmp_blocks in) {
    const int64_t hidden = st->cfg.phi_hidden, D = width(st, pair);
    const int64_t lanes = round_up(in.count, LANES);
    real *const *phi = st->phi[pair];
    mlp_hidden(st, w, pair, in);
    for (int64_t m = 0; m < hidden; m++) {
        for (int64_t i = m * MLP_BATCH; i < m * MLP_BATCH + lanes; i++)
            w->hidden[i] = w->hidden[i] / (1 + real_exp(-w->hidden[i]));
    }
    matmul(D, lanes, hidden, rows_of(phi[W2], hidden), rows_of(w->hidden, MLP_BATCH),
           rows_of(w->yt, MLP_BATCH));
    for (int64_t i = 0; i < in.count; i++) {
        for (int64_t c = 0; c < D; c++)
            w->y[i * D + c] = w->yt[c * MLP_BATCH + i] + phi[B2][c];
    }
}

void compress(const stage *st, work *w, int pair, cmp_blocks in) {
    if (st->cfg.phi == NSA_PHI_MLP) {
        phi_mlp(st, w, pair, in);
        return;
    }
    for (int64_t i = 0; i < in.count; i++) {
        const real *x = in.x + i * in.stride;
        real *y = w->y + i * width(st, pair);
        if (st->cfg.phi == NSA_PHI_MEAN)
            phi_mean(st, pair, x, y);
        else
            phi_gated(st, w, pair, x, y);
    }
}

/* Compressed tokens i..i+count-1 of head h of sequence b, to their places in the blocks. */
static void compress_batch(const stage *st, work *w, int64_t b, int64_t h, int64_t i,
                           int64_t count) {
    const kv_blocks *in = &st->in[CMP];
    const int64_t Hkv = st->cfg.kv_heads, d = st->cfg.cmp_stride;
    const int64_t key = (h * in->stride + first_block(st, CMP, b)) * BLOCK + i;
    for (int pair = 0; pair < PAIR; pair++) {
        const int64_t D = width(st, pair), row = (st->batch.seq[b] + i * d) * Hkv + h;
        compress(st, w, pair, (cmp_blocks){st->raw[pair] + row * D, d * Hkv * D, count});
        for (int64_t k = 0; k < count; k++)
            pack_row(st, in, pair, key + k, w->y + k * D);
    }
}

/* Every block that fits whole into its sequence; a tail that fills none is never compressed. */
void compress_pack(stage *st) {
    const nsa_batch *batch = &st->batch;
    const int64_t Hkv = st->cfg.kv_heads;
    for (int64_t b = 0; b < batch->B; b++) {
        const int64_t N = batch->cmp[b + 1] - batch->cmp[b];
        const int64_t batches = (N + MLP_BATCH - 1) / MLP_BATCH;
#pragma omp parallel for num_threads(st->threads) schedule(static)
        for (int64_t unit = 0; unit < Hkv * batches; unit++) {
            const int64_t i = unit % batches * MLP_BATCH;
            compress_batch(st, &st->work[omp_get_thread_num()], b, unit / batches, i,
                           N - i < MLP_BATCH ? N - i : MLP_BATCH);
        }
    }
}
