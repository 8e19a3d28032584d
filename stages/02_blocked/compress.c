/** @file
 *  @brief Compression (Eq. 7): every d tokens, the last l become one key and one value. */
#include "stage.h"

/* D: dk for the key compressor, dv for the value compressor */
int64_t width(const stage *st, int pair) {
    return pair == KEYS ? st->cfg.qk_dim : st->cfg.v_dim;
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

/* u [count,hidden up to LANES] = W1 vec(x) of `count` blocks at once, so that W1 is read once for
 * all: position after position, rows of x where they lie times D rows of W1 transposed. */
void mlp_hidden(const stage *st, int pair, const real *x, int64_t block_stride, int64_t count,
                real *u) {
    const int64_t D = width(st, pair), stride = st->cfg.kv_heads * D;
    const int64_t padded = round_up(st->cfg.phi_hidden, LANES);
    for (int64_t r = 0; r < st->cfg.cmp_block; r++)
        matmul(count, padded, D, (operand){x + r * stride, block_stride, 1},
               st->w1t[pair] + r * D * padded, padded, u, padded, r > 0);
    for (int64_t i = 0; i < count; i++)
        add_scaled(u + i * padded, 1, st->bias[pair], padded); /* W1 pe + b1 */
}

/* y = W2 silu(W1 vec(x + pe) + b1) + b2 */
static void phi_mlp(const stage *st, work *w, int pair, const real *x, int64_t block_stride,
                    int64_t count, real *y) {
    const int64_t D = width(st, pair), Dp = round_up(D, LANES);
    const int64_t hidden = st->cfg.phi_hidden, padded = round_up(hidden, LANES);
    mlp_hidden(st, pair, x, block_stride, count, w->hidden);
    for (int64_t i = 0; i < count * padded; i++)
        w->hidden[i] = w->hidden[i] / (1 + real_exp(-w->hidden[i]));
    matmul(count, Dp, hidden, (operand){w->hidden, padded, 1}, st->w2t[pair], Dp, y, Dp, 0);
    for (int64_t i = 0; i < count; i++)
        add_scaled(y + i * Dp, 1, st->phi[pair][B2], D);
}

/* `count` blocks of one head: x the first row of the first, `apart` reals to the next block's; y
 * [count,D up to LANES] their compressed tokens. */
void compress(const stage *st, work *w, int pair, const real *x, int64_t block_stride,
              int64_t count, real *y) {
    const int64_t Dp = round_up(width(st, pair), LANES);
    if (st->cfg.phi == NSA_PHI_MLP) {
        phi_mlp(st, w, pair, x, block_stride, count, y);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        if (st->cfg.phi == NSA_PHI_MEAN)
            phi_mean(st, pair, x + i * block_stride, y + i * Dp);
        else
            phi_gated(st, w, pair, x + i * block_stride, y + i * Dp);
    }
}

/* Compressed tokens i..i+count-1 of one head of sequence b, to their places in the blocks. */
static void compress_batch(const stage *st, work *w, int pair, int64_t b, int64_t h, int64_t i,
                           int64_t count) {
    int64_t D = width(st, pair), Hkv = st->cfg.kv_heads, d = st->cfg.cmp_stride;
    int64_t Dp = round_up(D, LANES);
    int64_t token = st->batch.seq[b] + i * d;
    compress(st, w, pair, st->raw[pair] + (token * Hkv + h) * D, d * Hkv * D, count, w->dz);
    for (int64_t k = i; k < i + count; k++) {
        int64_t block = st->first[CMP][b] + k / BLOCK;
        if (pair == KEYS)
            pack_key(st, &st->in[CMP], h, block, k % BLOCK, w->dz + (k - i) * Dp);
        else
            pack_value(st, &st->in[CMP], h, block, k % BLOCK, w->dz + (k - i) * Dp);
    }
}

/* Every block that fits whole into its sequence; a tail that fills none is never compressed. */
void compress_pack(stage *st) {
    const nsa_batch *batch = &st->batch;
    const int64_t Hkv = st->cfg.kv_heads;
    for (int64_t b = 0; b < batch->B; b++) {
        int64_t N = batch->cmp[b + 1] - batch->cmp[b], parts = (N + MLP_BATCH - 1) / MLP_BATCH;
#pragma omp parallel for num_threads(st->threads) schedule(static)
        for (int64_t unit = 0; unit < PAIR * Hkv * parts; unit++) {
            int64_t i = unit % parts * MLP_BATCH, left = N - i;
            compress_batch(st, &st->work[this_thread()], (int)(unit / parts / Hkv), b,
                           unit / parts % Hkv, i, left < MLP_BATCH ? left : MLP_BATCH);
        }
    }
}
