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
static void phi_gated(const stage *st, int pair, const real *x, real *y) {
    int64_t l = st->cfg.cmp_block, D = width(st, pair), stride = st->cfg.kv_heads * D;
    real *a = st->hidden;
    gated_weights(st, pair, x, a);
    for (int64_t c = 0; c < D; c++)
        y[c] = 0;
    for (int64_t r = 0; r < l; r++)
        add_scaled(y, a[r], x + r * stride, D);
}

/* z [l*D] = vec(x + pe), position-major; pre [hidden] = W1 z + b1, before the activation */
void mlp_hidden(const stage *st, int pair, const real *x, real *z, real *pre) {
    int64_t l = st->cfg.cmp_block, D = width(st, pair), stride = st->cfg.kv_heads * D;
    real *const *phi = st->phi[pair];
    for (int64_t r = 0; r < l; r++) {
        for (int64_t c = 0; c < D; c++)
            z[r * D + c] = x[r * stride + c] + phi[PE][r * D + c];
    }
    for (int64_t m = 0; m < st->cfg.phi_hidden; m++)
        pre[m] = phi[B1][m] + dot(phi[W1] + m * l * D, z, l * D);
}

/* y = W2 silu(W1 vec(x + pe) + b1) + b2, the paper's MLP; silu(u) = u / (1 + e^-u) */
static void phi_mlp(const stage *st, int pair, const real *x, real *y) {
    int64_t hidden = st->cfg.phi_hidden, D = width(st, pair);
    real *const *phi = st->phi[pair], *h = st->hidden;
    mlp_hidden(st, pair, x, st->z, h);
    for (int64_t m = 0; m < hidden; m++)
        h[m] = h[m] / (1 + real_exp(-h[m]));
    for (int64_t c = 0; c < D; c++)
        y[c] = phi[B2][c] + dot(phi[W2] + c * hidden, h, hidden);
}

/* One block of one head: x its first row, y [D] its compressed token. */
void compress(const stage *st, int pair, const real *x, real *y) {
    switch (st->cfg.phi) {
    case NSA_PHI_MEAN:
        phi_mean(st, pair, x, y);
        break;
    case NSA_PHI_GATED:
        phi_gated(st, pair, x, y);
        break;
    case NSA_PHI_MLP:
        phi_mlp(st, pair, x, y);
        break;
    }
}

/* Every block that fits whole into its sequence; a tail that fills none is never compressed. */
void compress_pack(stage *st) {
    const nsa_batch *batch = &st->batch;
    for (int pair = 0; pair < PAIR; pair++) {
        const real *x = pair == KEYS ? st->k[CMP] : st->v[CMP];
        int64_t D = width(st, pair), Hkv = st->cfg.kv_heads;
        for (int64_t b = 0; b < batch->B; b++) {
            for (int64_t i = batch->cmp[b]; i < batch->cmp[b + 1]; i++) {
                int64_t token = batch->seq[b] + (i - batch->cmp[b]) * st->cfg.cmp_stride;
                for (int64_t h = 0; h < Hkv; h++)
                    compress(st, pair, x + (token * Hkv + h) * D,
                             st->xphi[pair] + (i * Hkv + h) * D);
            }
        }
    }
}
