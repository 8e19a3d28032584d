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
    real most = -INFINITY, sum = 0;
    for (int64_t r = 0; r < l; r++) {
        a[r] = phi[B][r] + dot(phi[W], x + r * stride, D) + dot(phi[W], phi[PE] + r * D, D);
        most = a[r] > most ? a[r] : most;
    }
    for (int64_t r = 0; r < l; r++) {
        a[r] = real_exp(a[r] - most);
        sum += a[r];
    }
    for (int64_t r = 0; r < l; r++)
        a[r] /= sum;
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

/* y = W2 silu(W1 vec(x + pe) + b1) + b2 of `count` blocks at once, so that W1 is read once for all:
 * z [count,l*D] = vec(x + pe), hidden [count,hidden up to LANES] = z W1^T. */
static void phi_mlp(const stage *st, work *w, int pair, const real *x, int64_t apart, int64_t count,
                    real *y) {
    int64_t l = st->cfg.cmp_block, D = width(st, pair), stride = st->cfg.kv_heads * D;
    int64_t hidden = st->cfg.phi_hidden, padded = round_up(hidden, LANES);
    real *const *phi = st->phi[pair];
    for (int64_t i = 0; i < count; i++) {
        for (int64_t r = 0; r < l; r++) {
            for (int64_t c = 0; c < D; c++)
                w->z[(i * l + r) * D + c] = x[i * apart + r * stride + c] + phi[PE][r * D + c];
        }
    }
    matmul(count, padded, l * D, (operand){w->z, l * D, 1}, st->w1t[pair], padded, w->hidden,
           padded, 0);
    for (int64_t i = 0; i < count; i++) {
        real *h = w->hidden + i * padded;
        for (int64_t m = 0; m < hidden; m++) {
            h[m] += phi[B1][m];
            h[m] = h[m] / (1 + real_exp(-h[m]));
        }
        for (int64_t c = 0; c < D; c++)
            y[i * D + c] = phi[B2][c] + dot(phi[W2] + c * hidden, h, hidden);
    }
}

/* `count` blocks of one head: x the first row of the first, `apart` reals to the next block's; y
 * [count,D] their compressed tokens. */
void compress(const stage *st, work *w, int pair, const real *x, int64_t apart, int64_t count,
              real *y) {
    int64_t D = width(st, pair);
    if (st->cfg.phi == NSA_PHI_MLP) {
        phi_mlp(st, w, pair, x, apart, count, y);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        if (st->cfg.phi == NSA_PHI_MEAN)
            phi_mean(st, pair, x + i * apart, y + i * D);
        else
            phi_gated(st, w, pair, x + i * apart, y + i * D);
    }
}

/* Compressed tokens i..i+count-1 of one head of sequence b, to their places in the blocks. */
static void compress_some(const stage *st, work *w, int pair, int64_t b, int64_t h, int64_t i,
                          int64_t count) {
    int64_t D = width(st, pair), Hkv = st->cfg.kv_heads, d = st->cfg.cmp_stride;
    int64_t token = st->batch.seq[b] + i * d;
    compress(st, w, pair, st->raw[pair] + (token * Hkv + h) * D, d * Hkv * D, count, w->dz);
    for (int64_t k = i; k < i + count; k++) {
        int64_t block = st->first[CMP][b] + k / BLOCK;
        if (pair == KEYS)
            put_key(st, &st->in[CMP], h, block, k % BLOCK, w->dz + (k - i) * D);
        else
            put_value(st, &st->in[CMP], h, block, k % BLOCK, w->dz + (k - i) * D);
    }
}

/* Every block that fits whole into its sequence; a tail that fills none is never compressed. */
void compress_pack(stage *st) {
    const nsa_batch *batch = &st->batch;
    const int64_t Hkv = st->cfg.kv_heads;
    for (int64_t b = 0; b < batch->B; b++) {
        int64_t N = batch->cmp[b + 1] - batch->cmp[b], parts = (N + COMPRESSED - 1) / COMPRESSED;
#pragma omp parallel for num_threads(st->threads) schedule(static)
        for (int64_t unit = 0; unit < PAIR * Hkv * parts; unit++) {
            int64_t i = unit % parts * COMPRESSED, left = N - i;
            compress_some(st, &st->work[this_thread()], (int)(unit / parts / Hkv), b,
                          unit / parts % Hkv, i, left < COMPRESSED ? left : COMPRESSED);
        }
    }
}
