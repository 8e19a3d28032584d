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

/* y = W2 h + b2, h = silu(u), u = W1 z + b1, z = vec(x + pe), a lane a block of the batch:
 *   db2 += dy,  dW2 += dy h^T,  dh = W2^T dy,  du = dh silu'(u),  silu'(u) = sg (1 + u (1 - sg)),
 *   db1 += du,  dW1 += du z^T,  dz = W1^T du,  dx += dz,  dpe += dz;   sg = 1/(1 + e^-u). */
static void phi_mlp_backward(stage *st, work *w, int pair, cmp_blocks in, const real *dy,
                             real *dx) {
    const int64_t D = width(st, pair), Dp = round_up(D, LANES), stride = st->cfg.kv_heads * D;
    const int64_t hidden = st->cfg.phi_hidden, Z = z_width(st, pair);
    const int64_t lanes = round_up(in.count, LANES);
    real *const *phi = st->phi[pair], *const *dphi = st->dphi[pair];
    mlp_hidden(st, w, pair, in);
    memset(w->yt, 0, (size_t)(D * MLP_BATCH) * sizeof *w->yt);
    transpose(w->yt, dy, Dp, in.count, D);
    matmul(hidden, lanes, D, columns_of(phi[W2], hidden), rows_of(w->yt, MLP_BATCH),
           rows_of(w->dhidden, MLP_BATCH));
    for (int64_t m = 0; m < hidden; m++) {
        real *u = w->hidden + m * MLP_BATCH, *du = w->dhidden + m * MLP_BATCH;
        for (int64_t i = 0; i < lanes; i++) {
            const real sg = 1 / (1 + real_exp(-u[i]));
            du[i] *= sg * (1 + u[i] * (1 - sg));
            u[i] *= sg; /* h from here on */
            dphi[B1][m] += du[i];
        }
        for (int64_t c = 0; c < D; c++)
            dphi[W2][c * hidden + m] += dot(w->yt + c * MLP_BATCH, u, lanes);
    }
    matmul_add(hidden, Z, in.count, rows_of(w->dhidden, MLP_BATCH), rows_of(w->z, Z),
               rows_of(dphi[W1], Z));
    matmul(in.count, Z, hidden, columns_of(w->dhidden, MLP_BATCH), rows_of(phi[W1], Z),
           rows_of(w->dz, Z));
    for (int64_t i = 0; i < in.count; i++) {
        add_scaled(dphi[B2], 1, dy + i * Dp, D);
        add_scaled(dphi[PE], 1, w->dz + i * Z, st->cfg.cmp_block * D);
        for (int64_t r = 0; r < st->cfg.cmp_block; r++)
            add_scaled(dx + i * in.stride + r * stride, 1, w->dz + i * Z + r * D, D);
    }
}

/* Blocks of one head: dy [count,D up to LANES] the gradients of their compressed tokens, dx that of
 * in.x. */
void compress_backward(stage *st, work *w, int pair, cmp_blocks in, const real *dy, real *dx) {
    const int64_t Dp = round_up(width(st, pair), LANES);
    if (st->cfg.phi == NSA_PHI_MLP) {
        phi_mlp_backward(st, w, pair, in, dy, dx);
        return;
    }
    for (int64_t i = 0; i < in.count; i++) {
        if (st->cfg.phi == NSA_PHI_MEAN)
            phi_mean_backward(st, pair, dy + i * Dp, dx + i * in.stride);
        else
            phi_gated_backward(st, w, pair, in.x + i * in.stride, dy + i * Dp, dx + i * in.stride);
    }
}
