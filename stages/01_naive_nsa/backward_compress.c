/** @file
 *  @brief Backward of compression: a compressed token's gradient to its block and the weights. */
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
static void phi_gated_backward(stage *st, int pair, const real *x, const real *dy, real *dx) {
    int64_t l = st->cfg.cmp_block, D = width(st, pair), stride = st->cfg.kv_heads * D;
    real *const *phi = st->phi[pair], *const *dphi = st->dphi[pair];
    real *a = st->hidden, *da = st->dhidden, mean = 0;
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

/* y = W2 h + b2, h = silu(u), u = W1 z + b1, z = vec(x + pe):
 *   db2 += dy,  dW2 += dy h^T,  dh = W2^T dy,  du = dh silu'(u),  silu'(u) = sg (1 + u (1 - sg)),
 *   db1 += du,  dW1 += du z^T,  dz = W1^T du,  dx += dz,  dpe += dz;   sg = 1/(1 + e^-u). */
static void phi_mlp_backward(stage *st, int pair, const real *x, const real *dy, real *dx) {
    int64_t l = st->cfg.cmp_block, D = width(st, pair), stride = st->cfg.kv_heads * D;
    int64_t hidden = st->cfg.phi_hidden;
    real *const *phi = st->phi[pair], *const *dphi = st->dphi[pair];
    real *u = st->hidden, *dh = st->dhidden;
    mlp_hidden(st, pair, x, st->z, u);
    for (int64_t m = 0; m < hidden; m++)
        dh[m] = 0;
    for (int64_t c = 0; c < D; c++) {
        dphi[B2][c] += dy[c];
        add_scaled(dh, dy[c], phi[W2] + c * hidden, hidden);
        for (int64_t m = 0; m < hidden; m++)
            dphi[W2][c * hidden + m] += dy[c] * (u[m] / (1 + real_exp(-u[m])));
    }
    for (int64_t i = 0; i < l * D; i++)
        st->dz[i] = 0;
    for (int64_t m = 0; m < hidden; m++) {
        const real sg = 1 / (1 + real_exp(-u[m])), du = dh[m] * sg * (1 + u[m] * (1 - sg));
        dphi[B1][m] += du;
        add_scaled(dphi[W1] + m * l * D, du, st->z, l * D);
        add_scaled(st->dz, du, phi[W1] + m * l * D, l * D);
    }
    for (int64_t r = 0; r < l; r++) {
        add_scaled(dx + r * stride, 1, st->dz + r * D, D);
        add_scaled(dphi[PE] + r * D, 1, st->dz + r * D, D);
    }
}

/* One block of one head: x its first row, dy [D] the gradient of its compressed token, dx that of
 * x. */
void compress_backward(stage *st, int pair, const real *x, const real *dy, real *dx) {
    switch (st->cfg.phi) {
    case NSA_PHI_MEAN:
        phi_mean_backward(st, pair, dy, dx);
        break;
    case NSA_PHI_GATED:
        phi_gated_backward(st, pair, x, dy, dx);
        break;
    case NSA_PHI_MLP:
        phi_mlp_backward(st, pair, x, dy, dx);
        break;
    }
}
