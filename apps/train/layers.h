/**
 * @file layers.h
 * @brief The layers around the attention, forward and backward, and the memory that they work in.
 *
 * layers_cpu.c is one implementation. Another, on a device, exports the same functions: nothing
 * outside of it looks into the memory behind a `real *`, except through memory_write() and
 * memory_read(). Letters: N tokens of all packed sequences, D the model's width.
 */
#ifndef TRAIN_LAYERS_H
#define TRAIN_LAYERS_H

#include "nsa.h"

#ifdef TRAIN_DOUBLE
typedef double real;       /**< what the trainer computes in, to check its gradients */
#define REAL_DTYPE NSA_F64 /**< the same, for the tensors of a stage */
#else
typedef float real; /**< what the trainer computes in */
#define REAL_DTYPE NSA_F32 /**< the same, for the tensors of a stage */
#endif

/** The tokens of one packed batch, as all layers see them. */
typedef struct rows {
    int64_t N;          /**< tokens */
    const int32_t *pos; /**< [N] position of each in its own sequence */
} rows;

/** A parameter: a matrix [in,out] or a vector [1,out], its gradient and its optimizer's state. */
typedef struct param {
    char name[32];  /**< "layer 0 wq" */
    int64_t in;     /**< rows; 1 of a vector */
    int64_t out;    /**< columns */
    double std_dev; /**< of its normal start */
    double start;   /**< the mean of its start */
    double rate;    /**< times the learning rate */
    int decay;      /**< 1: weight decay */
    real *value;    /**< [in,out] */
    real *grad;     /**< [in,out] the gradient of the loss */
    real *mean;     /**< [in,out] AdamW's running mean of the gradient */
    real *square;   /**< [in,out] and of its square */
} param;

/** @return elements of a parameter. */
static inline int64_t param_count(const param *p) {
    return p->in * p->out;
}

/* ------------------------------------------------------------------ memory */

/** @return `bytes` zeroed bytes where the layers work; NULL if there are none. */
void *memory_new(int64_t bytes);

/** Free memory; NULL is allowed. */
void memory_free(void *memory);

/** Copy from the host. */
void memory_write(void *to, const void *host, int64_t bytes);

/** Copy to the host. */
void memory_read(void *host, const void *from, int64_t bytes);

/** Copy within that memory. */
void memory_copy(void *to, const void *from, int64_t bytes);

/** Set to zero. */
void memory_zero(void *memory, int64_t bytes);

/** @return where that memory lies, for the tensors of a stage. */
nsa_place memory_place(void);

/** Set the threads of every later call. */
void layers_threads(int threads);

/** @return what multiplies matrices, in words. */
const char *layers_name(void);

/* ------------------------------------------------------------------ layers */

/** x_t = table[token_t]. */
void embed_forward(const rows *r, const param *table, const int32_t *token, real *x);
/** dtable[token_t] += dx_t. */
void embed_backward(const rows *r, param *table, const int32_t *token, const real *dx);

enum { SMEAR = 3 /**< tokens before the own that the smear reads */ };

/** x_t = e_t + sum_j c_j * e_{t-j}, j = 1..SMEAR, by channel, within a sequence; c [SMEAR,D]. */
void smear_forward(const rows *r, const param *c, const real *e, real *x);
/** dc += ..., and de = ... */
void smear_backward(const rows *r, param *c, const real *e, const real *dx, real *de);

/** y = gain * x / sqrt(mean(x^2) + eps), by row. */
void rmsnorm_forward(const rows *r, const param *gain, const real *x, real *y);
/** dgain += ..., and dx += ... */
void rmsnorm_backward(const rows *r, param *gain, const real *x, const real *dy, real *dx);

/** K-shift: y_t = (1 - mu) * h_t + mu * h_{t-1}, with zero before a sequence's first token. */
void shift_forward(const rows *r, const param *mu, const real *h, real *y);
/** dmu += ..., and dh += ... */
void shift_backward(const rows *r, param *mu, const real *h, const real *dy, real *dh);

/** y = x W, or y += x W if `add`. */
void linear_forward(const rows *r, const param *w, const real *x, real *y, int add);
/** dW += x^T dy, and dx = dy W^T, or dx += dy W^T if `add`. */
void linear_backward(const rows *r, param *w, const real *x, const real *dy, real *dx, int add);

/** RoPE of a head: the first `turned` of `dim` numbers, in pairs (i, i + turned/2). */
typedef struct rope_shape {
    int64_t heads;  /**< of the tensor [N,heads,dim] */
    int64_t dim;    /**< of a head */
    int64_t turned; /**< even, up to dim */
    double base;    /**< the angle is pos * base^(-2 i / turned) */
} rope_shape;

/** Turn x [N,heads,dim] in place: sign 1 forward, -1 backward. */
void rope(const rows *r, const rope_shape *shape, real *x, int sign);

/** gate = sigmoid(z + b), in place: z [N,3 Hq]; 0 in the branches that `used` does not have. */
void gate_forward(const rows *r, const param *b, int used, real *z);
/** dgate becomes dz = dgate * gate * (1 - gate), 0 in unused branches; db += dz. */
void gate_backward(const rows *r, param *b, int used, const real *gate, real *dgate);

/** y = gelu(x), the tanh form; x and y [N,width]. */
void gelu_forward(const rows *r, int64_t width, const real *x, real *y);
/** dy becomes dx. */
void gelu_backward(const rows *r, int64_t width, const real *x, real *dy);

/** What a batch came to. */
typedef struct loss_result {
    double loss;     /**< mean cross-entropy over the tokens that have a target, in nats */
    int64_t counted; /**< those tokens */
    int64_t correct; /**< of them, where the target has the largest logit */
} loss_result;

/** Cross-entropy of logits [N,V] at rows with target >= 0; the logits become their gradient. */
loss_result cross_entropy(const rows *r, int64_t V, const int32_t *target, real *logits);

/* --------------------------------------------------------------- optimizer */

/** One AdamW step: what is the same for all parameters. */
typedef struct adamw_step {
    double lr;      /**< learning rate of this step */
    double clip;    /**< factor on every gradient, from the global norm */
    double beta[2]; /**< of the running means */
    double eps;     /**< added to the root */
    double decay;   /**< weight decay */
    double bias[2]; /**< 1 - beta^step */
} adamw_step;

/** Update a parameter from its gradient. */
void adamw_update(param *p, const adamw_step *s);

/** @return the sum of squares of a parameter's gradient. */
double grad_squares(const param *p);

#endif
