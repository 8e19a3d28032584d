/** @file layers_cpu.c
 *  @brief The layers on the CPU, each forward beside its backward. Sums over tokens run in order on
 * one thread, so the bits do not depend on the number of threads; products are OpenBLAS'. */
#include "train/layers.h"
#include "train/matmul.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef TRAIN_DOUBLE
#define real_exp  exp
#define real_tanh tanh
#define real_sqrt sqrt
#else
#define real_exp  expf
#define real_tanh tanhf
#define real_sqrt sqrtf
#endif

static const real EPS = (real)1e-6; /* of RMSNorm */

/* ------------------------------------------------------------------ memory */

void *memory_new(int64_t bytes) {
    return calloc((size_t)(bytes > 0 ? bytes : 1), 1);
}

void memory_free(void *memory) {
    free(memory);
}

void memory_write(void *to, const void *host, int64_t bytes) {
    memcpy(to, host, (size_t)bytes);
}

void memory_read(void *host, const void *from, int64_t bytes) {
    memcpy(host, from, (size_t)bytes);
}

void memory_copy(void *to, const void *from, int64_t bytes) {
    memcpy(to, from, (size_t)bytes);
}

void memory_zero(void *memory, int64_t bytes) {
    memset(memory, 0, (size_t)bytes);
}

nsa_place memory_place(void) {
    return NSA_HOST;
}

void layers_threads(int threads) {
    matmul_threads(threads);
}

const char *layers_name(void) {
    return matmul_name();
}

/* --------------------------------------------------------------- embedding */

void embed_forward(const rows *r, const param *table, const int32_t *token, real *x) {
    const int64_t D = table->out;
    for (int64_t t = 0; t < r->N; t++)
        memcpy(x + t * D, table->value + token[t] * D, (size_t)D * sizeof *x);
}

void embed_backward(const rows *r, param *table, const int32_t *token, const real *dx) {
    const int64_t D = table->out;
    for (int64_t t = 0; t < r->N; t++) {
        real *d = table->grad + token[t] * D;
        for (int64_t i = 0; i < D; i++)
            d[i] += dx[t * D + i];
    }
}

void smear_forward(const rows *r, const param *c, const real *e, real *x) {
    const int64_t D = c->out;
    memcpy(x, e, (size_t)(r->N * D) * sizeof *x);
    for (int64_t t = 0; t < r->N; t++) {
        for (int64_t j = 1; j <= SMEAR && j <= r->pos[t]; j++) {
            const real *cj = c->value + (j - 1) * D, *before = e + (t - j) * D;
            for (int64_t i = 0; i < D; i++)
                x[t * D + i] += cj[i] * before[i];
        }
    }
}

void smear_backward(const rows *r, param *c, const real *e, const real *dx, real *de) {
    const int64_t D = c->out;
    memcpy(de, dx, (size_t)(r->N * D) * sizeof *de);
    for (int64_t t = 0; t < r->N; t++) {
        for (int64_t j = 1; j <= SMEAR && j <= r->pos[t]; j++) {
            const real *cj = c->value + (j - 1) * D, *before = e + (t - j) * D, *d = dx + t * D;
            real *dcj = c->grad + (j - 1) * D, *dbefore = de + (t - j) * D;
            for (int64_t i = 0; i < D; i++) {
                dcj[i] += d[i] * before[i];
                dbefore[i] += d[i] * cj[i];
            }
        }
    }
}

/* ----------------------------------------------------------------- RMSNorm */

static real inv_rms(const real *x, int64_t D) {
    real sum = 0;
    for (int64_t i = 0; i < D; i++)
        sum += x[i] * x[i];
    return 1 / real_sqrt(sum / (real)D + EPS);
}

void rmsnorm_forward(const rows *r, const param *gain, const real *x, real *y) {
    const int64_t D = gain->out;
    for (int64_t t = 0; t < r->N; t++, x += D, y += D) {
        const real inv = inv_rms(x, D);
        for (int64_t i = 0; i < D; i++)
            y[i] = gain->value[i] * (x[i] * inv);
    }
}

/* With u = x inv: dx = inv (g dy - u mean(u g dy)). */
void rmsnorm_backward(const rows *r, param *gain, const real *x, const real *dy, real *dx) {
    const int64_t D = gain->out;
    for (int64_t t = 0; t < r->N; t++, x += D, dy += D, dx += D) {
        const real inv = inv_rms(x, D);
        real sum = 0;
        for (int64_t i = 0; i < D; i++) {
            const real u = x[i] * inv;
            gain->grad[i] += dy[i] * u;
            sum += u * gain->value[i] * dy[i];
        }
        sum /= (real)D;
        for (int64_t i = 0; i < D; i++)
            dx[i] += inv * (gain->value[i] * dy[i] - x[i] * inv * sum);
    }
}

/* ----------------------------------------------------------------- K-shift */

void shift_forward(const rows *r, const param *mu, const real *h, real *y) {
    const int64_t D = mu->out;
    for (int64_t t = 0; t < r->N; t++, h += D, y += D) {
        for (int64_t i = 0; i < D; i++) {
            const real before = r->pos[t] ? h[i - D] : 0;
            y[i] = (1 - mu->value[i]) * h[i] + mu->value[i] * before;
        }
    }
}

void shift_backward(const rows *r, param *mu, const real *h, const real *dy, real *dh) {
    const int64_t D = mu->out;
    for (int64_t t = 0; t < r->N; t++, h += D, dy += D, dh += D) {
        for (int64_t i = 0; i < D; i++) {
            const real before = r->pos[t] ? h[i - D] : 0;
            mu->grad[i] += dy[i] * (before - h[i]);
            dh[i] += (1 - mu->value[i]) * dy[i];
        }
        for (int64_t i = 0; i < D && r->pos[t]; i++)
            dh[i - D] += mu->value[i] * dy[i];
    }
}

/* ------------------------------------------------------------------ linear */

void linear_forward(const rows *r, const param *w, const real *x, real *y, int add) {
    matmul(
        &(product){.m = r->N, .n = w->out, .k = w->in, .a = x, .b = w->value, .c = y, .add = add});
}

void linear_backward(const rows *r, param *w, const real *x, const real *dy, real *dx, int add) {
    matmul(&(product){.m = w->in,
                      .n = w->out,
                      .k = r->N,
                      .a = x,
                      .a_transposed = 1,
                      .b = dy,
                      .c = w->grad,
                      .add = 1});
    matmul(&(product){.m = r->N,
                      .n = w->in,
                      .k = w->out,
                      .a = dy,
                      .b = w->value,
                      .b_transposed = 1,
                      .c = dx,
                      .add = add});
}

/* -------------------------------------------------------------------- RoPE */

/* A turn by -angle is both the inverse and the transpose: it is the backward. */
void rope(const rows *r, const rope_shape *shape, real *x, int sign) {
    const int64_t half = shape->turned / 2;
    for (int64_t i = 0; i < half; i++) {
        const double step = pow(shape->base, -2.0 * (double)i / (double)shape->turned);
        for (int64_t t = 0; t < r->N; t++) {
            const double angle = r->pos[t] * step;
            const real c = (real)cos(angle), s = (real)(sign * sin(angle));
            for (int64_t h = 0; h < shape->heads; h++) {
                real *a = x + (t * shape->heads + h) * shape->dim + i, *b = a + half;
                const real first = *a * c - *b * s;
                *b = *a * s + *b * c;
                *a = first;
            }
        }
    }
}

/* -------------------------------------------------------------------- gate */

void gate_forward(const rows *r, const param *b, int used, real *z) {
    for (int64_t t = 0; t < r->N; t++, z += b->out) {
        for (int64_t i = 0; i < b->out; i++)
            z[i] = used >> i % 3 & 1 ? 1 / (1 + real_exp(-(z[i] + b->value[i]))) : 0;
    }
}

void gate_backward(const rows *r, param *b, int used, const real *gate, real *dgate) {
    for (int64_t t = 0; t < r->N; t++, gate += b->out, dgate += b->out) {
        for (int64_t i = 0; i < b->out; i++) {
            dgate[i] = used >> i % 3 & 1 ? dgate[i] * gate[i] * (1 - gate[i]) : 0;
            b->grad[i] += dgate[i];
        }
    }
}

/* -------------------------------------------------------------------- GELU */

/* gelu(x) = x (1 + tanh(a (x + b x^3))) / 2, a = sqrt(2 / pi), b = 0.044715 */
static const real GELU_A = (real)0.79788456080286535588, GELU_B = (real)0.044715;

void gelu_forward(const rows *r, int64_t width, const real *x, real *y) {
    for (int64_t i = 0; i < r->N * width; i++)
        y[i] = x[i] / 2 * (1 + real_tanh(GELU_A * (x[i] + GELU_B * x[i] * x[i] * x[i])));
}

void gelu_backward(const rows *r, int64_t width, const real *x, real *dy) {
    for (int64_t i = 0; i < r->N * width; i++) {
        const real square = x[i] * x[i], th = real_tanh(GELU_A * x[i] * (1 + GELU_B * square));
        const real inner = GELU_A * (1 + 3 * GELU_B * square);
        dy[i] *= (1 + th + x[i] * (1 - th * th) * inner) / 2;
    }
}

/* ----------------------------------------------------------- cross-entropy */

/* One row: the gradient of log(sum(exp(z))) - z[target] times `weight`. @return that loss */
static double row_loss(int64_t V, int64_t target, real *z, real weight, int64_t *correct) {
    real row_max = z[0], row_sum = 0;
    int64_t best = 0;
    for (int64_t v = 1; v < V; v++) {
        if (z[v] > row_max)
            row_max = z[v], best = v;
    }
    const real own = z[target];
    for (int64_t v = 0; v < V; v++)
        row_sum += z[v] = real_exp(z[v] - row_max);
    for (int64_t v = 0; v < V; v++)
        z[v] *= weight / row_sum;
    z[target] -= weight;
    *correct += best == target;
    return log((double)row_sum) + (double)row_max - (double)own;
}

loss_result cross_entropy(const rows *r, int64_t V, const int32_t *target, real *logits) {
    loss_result result = {0};
    for (int64_t t = 0; t < r->N; t++)
        result.counted += target[t] >= 0;
    const real weight = result.counted ? 1 / (real)result.counted : 0;
    for (int64_t t = 0; t < r->N; t++) {
        if (target[t] >= 0)
            result.loss += row_loss(V, target[t], logits + t * V, weight, &result.correct);
        else
            memset(logits + t * V, 0, (size_t)V * sizeof *logits);
    }
    result.loss /= result.counted ? (double)result.counted : 1;
    return result;
}

/* --------------------------------------------------------------- optimizer */

/* m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, w -= lr (m/bias1 / (sqrt(v/bias2) + eps) + decay w)
 */
void adamw_update(param *p, const adamw_step *s) {
    const real b1 = (real)s->beta[0], b2 = (real)s->beta[1], clip = (real)s->clip;
    const real lr = (real)(s->lr * p->rate), eps = (real)s->eps;
    const real inv1 = (real)(1 / s->bias[0]), inv2 = (real)(1 / s->bias[1]);
    const real decay = (real)(p->decay ? s->decay : 0);
    for (int64_t i = 0; i < param_count(p); i++) {
        const real g = p->grad[i] * clip;
        p->mean[i] = b1 * p->mean[i] + (1 - b1) * g;
        p->square[i] = b2 * p->square[i] + (1 - b2) * g * g;
        p->value[i] -=
            lr * (p->mean[i] * inv1 / (real_sqrt(p->square[i] * inv2) + eps) + decay * p->value[i]);
    }
}

double grad_squares(const param *p) {
    double sum = 0;
    for (int64_t i = 0; i < param_count(p); i++)
        sum += (double)p->grad[i] * (double)p->grad[i];
    return sum;
}
