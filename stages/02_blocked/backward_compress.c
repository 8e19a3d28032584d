/** @file
 *  @brief Backward of compression: from a compressed token's gradient to its block and the weights.
 */
#include "stage.h"

/* y = mean_r x_r:  dx_r += dy / l */
static void phi_mean_backward(stage *st, int pair, const real *dy, real *dx) {
    int64_t l = st->cfg.cmp_block, D = width(st, pair), stride = st->cfg.kv_heads * D;
    for (int64_t r = 0; r < l; r++)
        add_scaled(dx + r * stride, 1 / (real)l, dy, D);
}

/* y = sum_r a_r x_r, a = softmax(u), u_r = w.(x_r + pe_r) + b_r:
 *   da_r = dy.x_r,  du_r = a_r (da_r - sum_s a_s da_s),
 *   dx_r += a_r dy + du_r w,  dpe_r += du_r w,  dw += du_r (x_r + pe_r),  db_r += du_r. */
static void phi_gated_backward(stage *st, work *w, int pair, const real *x, const real *dy,
                               real *dx) {
    int64_t l = st->cfg.cmp_block, D = width(st, pair), stride = st->cfg.kv_heads * D;
    real *const *phi = st->phi[pair], *const *dphi = st->dphi[pair];
    real *a = w->hidden, *da = w->dhidden, mean = 0;
    gated_weights(st, pair, x, a);
    for (int64_t r = 0; r < l; r++) {
        da[r] = dot(dy, x + r * stride, D);
        mean += a[r] * da[r];
    }
    for (int64_t r = 0; r < l; r++) {
        const real du = a[r] * (da[r] - mean);
        add_scaled(dx + r * stride, a[r], dy, D);
        add_scaled(dx + r * stride, du, phi[W], D);
        add_scaled(dphi[PE] + r * D, du, phi[W], D);
        add_scaled(dphi[W], du, x + r * stride, D);
        add_scaled(dphi[W], du, phi[PE] + r * D, D);
        dphi[B][r] += du;
    }
}

/* y = W2 h + b2, h = silu(u), u = W1 vec(x) + W1 pe + b1, of `count` blocks at once:
 *   db2 += dy,  dW2 += dy h^T,  dh = W2^T dy,  du = dh silu'(u),  silu'(u) = sg (1 + u (1 - sg)),
 *   db1 += du,  dW1 += du vec(x)^T,  dx += W1^T du;   sg = 1/(1 + e^-u).
 * What pe has to do with it follows from db1 alone, once for all blocks: mlp_end_backward(). */
static void phi_mlp_backward(stage *st, work *w, int pair, const real *x, int64_t block_stride,
                             int64_t count, const real *dy, real *dx) {
    const int64_t D = width(st, pair), Dp = round_up(D, LANES), stride = st->cfg.kv_heads * D;
    const int64_t hidden = st->cfg.phi_hidden, padded = round_up(hidden, LANES);
    real *const *dphi = st->dphi[pair], *h = w->hidden, *du = w->dhidden;
    mlp_hidden(st, pair, x, block_stride, count, h);
    matmul(count, padded, D, (operand){dy, Dp, 1}, st->w2[pair], padded, du, padded, 0);
    for (int64_t i = 0; i < count * padded; i++) {
        const real u = h[i], sg = 1 / (1 + real_exp(-u));
        du[i] *= sg * (1 + u * (1 - sg));
        h[i] = u * sg;
    }
    for (int64_t i = 0; i < count; i++) {
        add_scaled(dphi[B2], 1, dy + i * Dp, D);
        add_scaled(dphi[B1], 1, du + i * padded, padded);
    }
    matmul(D, padded, count, (operand){dy, 1, Dp}, h, padded, dphi[W2], padded, 1);
    for (int64_t r = 0; r < st->cfg.cmp_block; r++) {
        matmul(D, padded, count, (operand){x + r * stride, 1, block_stride}, du, padded,
               dphi[W1] + r * D * padded, padded, 1);
        matmul(count, Dp, hidden, (operand){du, padded, 1}, st->w1[pair] + r * hidden * Dp, Dp,
               w->dz, Dp, 0);
        for (int64_t i = 0; i < count; i++)
            add_scaled(dx + i * block_stride + r * stride, 1, w->dz + i * Dp, D);
    }
}

/* z = vec(x) + pe in every block, so dpe = W1^T db1 and dW1 += db1 pe^T. */
static void mlp_end_backward(stage *st, int pair) {
    const int64_t z = st->cfg.cmp_block * width(st, pair), hidden = st->cfg.phi_hidden;
    const int64_t padded = round_up(hidden, LANES);
    real *const *phi = st->phi[pair], *const *dphi = st->dphi[pair];
    for (int64_t m = 0; m < hidden; m++)
        add_scaled(dphi[PE], dphi[B1][m], phi[W1] + m * z, z);
    for (int64_t k = 0; k < z; k++)
        add_scaled(dphi[W1] + k * padded, phi[PE][k], dphi[B1], padded);
}

/* `count` blocks of one head: x the first row of the first, `apart` reals to the next block's; dy
 * [count,D up to LANES] the gradients of their compressed tokens, dx that of x. */
void compress_backward(stage *st, work *w, int pair, const real *x, int64_t block_stride,
                       int64_t count, const real *dy, real *dx) {
    const int64_t Dp = round_up(width(st, pair), LANES);
    if (st->cfg.phi == NSA_PHI_MLP) {
        phi_mlp_backward(st, w, pair, x, block_stride, count, dy, dx);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        if (st->cfg.phi == NSA_PHI_MEAN)
            phi_mean_backward(st, pair, dy + i * Dp, dx + i * block_stride);
        else
            phi_gated_backward(st, w, pair, x + i * block_stride, dy + i * Dp,
                               dx + i * block_stride);
    }
}

/* What is left once all blocks are done. */
void compress_end_backward(stage *st, int pair) {
    if (st->cfg.phi == NSA_PHI_MLP)
        mlp_end_backward(st, pair);
}
