/**
 * @file model.h
 * @brief The model: embedding, pre-norm layers with NSA as their attention, head.
 *
 *     x = embed(token), smeared                                  smear
 *     h = RMSNorm(x);  s = h shifted                             norm1, mu
 *     q = RoPE(h Wq);  k_i = RoPE(s Wk_i);  v_i = h Wv_i         wq, wk, wv: three pairs
 *     gate = sigmoid(h Wg + b)                                   gate_w, gate_b
 *     x += NSA(q, k, v, gate) Wo                                 phi, wo
 *     x += gelu(RMSNorm(x) Wup) Wdown                            norm2, up, down: with an MLP
 *     logits = RMSNorm(x) Whead                                  norm, head
 */
#ifndef TRAIN_MODEL_H
#define TRAIN_MODEL_H

#include "train/attention.h"

enum {
    MODEL_PARAMS = 512, /**< the most parameters */
    MODEL_LAYERS = 16   /**< the most layers */
};

/** What a model is; it stands as it is in a checkpoint. */
typedef struct model_config {
    int64_t vocab;       /**< V: tokens of the vocabulary */
    int64_t width;       /**< D */
    int64_t layers;      /**< up to MODEL_LAYERS */
    int64_t mlp;         /**< hidden width of the MLP; 0: no MLP */
    int64_t smear;       /**< 1: the embedding is smeared */
    int64_t longest;     /**< tokens of the longest sequence */
    int64_t turned;      /**< dims of a head that RoPE turns */
    double rope_base;    /**< of its angles */
    double phi_rate;     /**< the compressors' learning rate, as a factor */
    attention_kind kind; /**< of every layer */
    nsa_config nsa;      /**< seq_len is the tokens of a batch, max_seqs its sequences */
} model_config;

/** One packed batch, on the host. */
typedef struct batch {
    pack pack;             /**< tokens, sequences, where they begin */
    const int32_t *token;  /**< [N] */
    const int32_t *target; /**< [N] the token to predict, -1: none */
    const int32_t *pos;    /**< [N] position in its sequence */
} batch;

/** A layer: its parameters, and what its forward keeps for the backward. Without an MLP, or without
 * a learned gate, what belongs to it is NULL. */
typedef struct layer {
    attention attend;    /**< its context */
    param *norm1;        /**< [D] gain before the attention */
    param *mu;           /**< [D] of the K-shift */
    param *wq;           /**< [D,Hq dk] */
    param *wk[BRANCHES]; /**< [D,Hkv dk] a pair */
    param *wv[BRANCHES]; /**< [D,Hkv dv] a pair */
    param *gate_w;       /**< [D,3 Hq] */
    param *gate_b;       /**< [3 Hq] */
    param *wo;           /**< [Hq dv,D] */
    param *norm2;        /**< [D] gain before the MLP */
    param *up;           /**< [D,mlp] */
    param *down;         /**< [mlp,D] */
    attention_io io;     /**< q, k, v, gate, out and their gradients; phi's weights */
    real *x;             /**< [N,D] what the layer gets */
    real *h;             /**< [N,D] normalised */
    real *s;             /**< [N,D] and shifted */
    real *x2;            /**< [N,D] behind the attention */
    real *h2;            /**< [N,D] normalised */
    real *up_x;          /**< [N,mlp] before gelu */
    real *gelu_x;        /**< [N,mlp] behind it */
} layer;

/** The model, its memory, and its last batch. */
typedef struct model {
    model_config cfg;          /**< what it is */
    param param[MODEL_PARAMS]; /**< in the order of the equations */
    int params;                /**< how many */
    struct param *embed;       /**< [V,D] */
    struct param *smear;       /**< [SMEAR,D]; NULL: none */
    struct param *norm;        /**< [D] gain before the head */
    struct param *head;        /**< [D,V] */
    layer layer[MODEL_LAYERS]; /**< cfg.layers of them */
    attention_blocks blocks;   /**< of the next forward */
    uint64_t block_seed;       /**< of random blocks */
    pack pack;                 /**< of the last forward */
    int32_t *token;            /**< [N] of the last forward */
    int32_t *target;           /**< [N] of the last forward */
    int32_t *pos;              /**< [N] of the last forward */
    real *e;                   /**< [N,D] embedded tokens, before the smear */
    real *x;                   /**< [N,D] behind the last layer */
    real *h;                   /**< [N,D] normalised */
    real *logits;              /**< [N,V], then their gradient */
    real *dx;                  /**< [N,D] gradient of the residual stream */
    real *dh;                  /**< [N,D] of what a norm gives */
    real *ds;                  /**< [N,D] of what the K-shift gives */
    real *dmlp;                /**< [N,mlp] of the MLP's hidden units */
    void *memory[1024];        /**< all of the above */
    int allocated;             /**< how many */
    int failed;                /**< 1: memory was short */
} model;

/** Open a model: check its config, allocate all memory, open a context a layer. Zero weights.
 *  @param[out] m   for model_close(), also on an error
 *  @param cfg      what it is
 *  @param stage    its attention
 *  @param threads  for the stage and the layers
 *  @return NSA_ERR_CONFIG, NSA_ERR_MEMORY, or the status of nsa_open() */
nsa_status model_open(model *m, const model_config *cfg, const nsa_stage *stage, int threads);

/** Draw the weights that a training starts from. */
void model_start(model *m, uint64_t seed);

/** Close the contexts and free all memory; a zeroed model is allowed. */
void model_close(model *m);

/** @return how many numbers are learned. */
int64_t model_count(const model *m);

/** @return bytes of all contexts together. */
size_t model_context_bytes(const model *m);

/** The loss of a batch.
 *  @return NSA_OK, or the status of the stage that failed */
nsa_status model_forward(model *m, const batch *b, loss_result *result);

/** The gradients of every parameter, after a forward; they start from zero. */
nsa_status model_backward(model *m);

/** Name the first tensor of the last forward that holds a number that is not finite, or, of the
 * last backward, the first parameter whose gradient does.
 *  @param m          the model
 *  @param backward   1: look at gradients, too
 *  @param[out] text  "layer 0: the attention"
 *  @param size       its bytes */
void model_first_nonfinite(const model *m, int backward, char *text, size_t size);

#endif
