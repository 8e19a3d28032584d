/** @file model.c
 *  @brief Forward and backward of the whole model, in the order of the equations of model.h. */
#include "train/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static rows rows_of(const model *m) {
    return (rows){.N = m->pack.N, .pos = m->pos};
}

static rope_shape rope_of(const model *m, int64_t heads) {
    const model_config *c = &m->cfg;
    return (rope_shape){
        .heads = heads, .dim = c->nsa.qk_dim, .turned = c->turned, .base = c->rope_base};
}

/* ----------------------------------------------------------------- forward */

static void mlp_forward(const model *m, layer *l, real *x) {
    const rows r = rows_of(m);
    rmsnorm_forward(&r, l->norm2, x, l->h2);
    linear_forward(&r, l->up, l->h2, l->up_x, 0);
    gelu_forward(&r, m->cfg.mlp, l->up_x, l->gelu_x);
    memory_copy(l->x2, x, r.N * m->cfg.width * (int64_t)sizeof *x);
    linear_forward(&r, l->down, l->gelu_x, x, 1);
}

/* x becomes what the next layer gets. */
static nsa_status layer_forward(model *m, layer *l, real *x) {
    const rows r = rows_of(m);
    const rope_shape of_q = rope_of(m, m->cfg.nsa.q_heads), of_k = rope_of(m, m->cfg.nsa.kv_heads);
    attention *a = &l->attend;
    memory_copy(l->x, x, r.N * m->cfg.width * (int64_t)sizeof *x);
    rmsnorm_forward(&r, l->norm1, l->x, l->h);
    shift_forward(&r, l->mu, l->h, l->s);
    linear_forward(&r, l->wq, l->h, l->io.q, 0);
    rope(&r, &of_q, l->io.q, 1);
    for (int i = 0; i < a->pairs; i++) {
        linear_forward(&r, l->wk[i], l->s, l->io.k[i], 0);
        rope(&r, &of_k, l->io.k[i], 1);
        linear_forward(&r, l->wv[i], l->h, l->io.v[i], 0);
    }
    if (a->used) {
        linear_forward(&r, l->gate_w, l->h, l->io.gate, 0);
        gate_forward(&r, l->gate_b, a->used, l->io.gate);
    }
    if (m->blocks == BLOCKS_RANDOM)
        attention_random_blocks(a, &m->pack, &m->block_seed);
    nsa_status status = attention_forward(a, &m->pack, &l->io, m->blocks);
    if (status)
        return status;
    linear_forward(&r, l->wo, l->io.out, x, 1);
    if (l->up)
        mlp_forward(m, l, x);
    return NSA_OK;
}

static void take_batch(model *m, const batch *b) {
    const int64_t bytes = b->pack.N * (int64_t)sizeof(int32_t);
    m->pack = b->pack;
    memory_write(m->token, b->token, bytes);
    memory_write(m->target, b->target, bytes);
    memory_write(m->pos, b->pos, bytes);
}

nsa_status model_forward(model *m, const batch *b, loss_result *result) {
    take_batch(m, b);
    const rows r = rows_of(m);
    embed_forward(&r, m->embed, m->token, m->smear ? m->e : m->x);
    if (m->smear)
        smear_forward(&r, m->smear, m->e, m->x);
    for (int64_t i = 0; i < m->cfg.layers; i++) {
        nsa_status status = layer_forward(m, &m->layer[i], m->x);
        if (status)
            return status;
    }
    rmsnorm_forward(&r, m->norm, m->x, m->h);
    linear_forward(&r, m->head, m->h, m->logits, 0);
    *result = cross_entropy(&r, m->cfg.vocab, m->target, m->logits);
    return NSA_OK;
}

/* ---------------------------------------------------------------- backward */

/* dx: the gradient behind the layer, then before it. Each residual adds to it. */
static void mlp_backward(const model *m, layer *l, real *dx) {
    const rows r = rows_of(m);
    linear_backward(&r, l->down, l->gelu_x, dx, m->dmlp, 0);
    gelu_backward(&r, m->cfg.mlp, l->up_x, m->dmlp);
    linear_backward(&r, l->up, l->h2, m->dmlp, m->dh, 0);
    rmsnorm_backward(&r, l->norm2, l->x2, m->dh, dx);
}

static nsa_status layer_backward(model *m, layer *l, real *dx) {
    const rows r = rows_of(m);
    const rope_shape of_q = rope_of(m, m->cfg.nsa.q_heads), of_k = rope_of(m, m->cfg.nsa.kv_heads);
    attention *a = &l->attend;
    if (l->up)
        mlp_backward(m, l, dx);
    linear_backward(&r, l->wo, l->io.out, dx, l->io.dout, 0);
    nsa_status status = attention_backward(a, &m->pack, &l->io);
    if (status)
        return status;
    rope(&r, &of_q, l->io.dq, -1);
    linear_backward(&r, l->wq, l->h, l->io.dq, m->dh, 0);
    for (int i = 0; i < a->pairs; i++) {
        rope(&r, &of_k, l->io.dk[i], -1);
        linear_backward(&r, l->wk[i], l->s, l->io.dk[i], m->ds, i > 0);
        linear_backward(&r, l->wv[i], l->h, l->io.dv[i], m->dh, 1);
    }
    if (a->used) {
        gate_backward(&r, l->gate_b, a->used, l->io.gate, l->io.dgate);
        linear_backward(&r, l->gate_w, l->h, l->io.dgate, m->dh, 1);
    }
    shift_backward(&r, l->mu, l->h, m->ds, m->dh);
    rmsnorm_backward(&r, l->norm1, l->x, m->dh, dx);
    return NSA_OK;
}

nsa_status model_backward(model *m) {
    const rows r = rows_of(m);
    for (int i = 0; i < m->params; i++)
        memory_zero(m->param[i].grad, param_count(&m->param[i]) * (int64_t)sizeof(real));
    memory_zero(m->dx, r.N * m->cfg.width * (int64_t)sizeof(real));
    linear_backward(&r, m->head, m->h, m->logits, m->dh, 0);
    rmsnorm_backward(&r, m->norm, m->x, m->dh, m->dx);
    for (int64_t i = m->cfg.layers; i-- > 0;) {
        nsa_status status = layer_backward(m, &m->layer[i], m->dx);
        if (status)
            return status;
    }
    if (m->smear)
        smear_backward(&r, m->smear, m->e, m->dx, m->dh);
    embed_backward(&r, m->embed, m->token, m->smear ? m->dh : m->dx);
    return NSA_OK;
}

/* ---------------------------------------------------------- what went wrong */

/* @return 1 if memory of the layers holds a number that is not finite */
static int is_bad(const real *data, int64_t count) {
    real *host = data && count > 0 ? malloc((size_t)count * sizeof *host) : NULL;
    int bad = 0;
    if (!host)
        return 0;
    memory_read(host, data, count * (int64_t)sizeof *host);
    for (int64_t i = 0; i < count && !bad; i++)
        bad = !isfinite(host[i]);
    free(host);
    return bad;
}

/* The backward goes from the last parameter to the first. */
static void first_gradient(const model *m, char *text, size_t size) {
    for (int i = m->params; i-- > 0;) {
        if (!isfinite(grad_squares(&m->param[i]))) {
            snprintf(text, size, "the gradient of %s", m->param[i].name);
            return;
        }
    }
}

/* The first of what a layer keeps. @return NULL if all is finite */
static const char *first_of_layer(const model *m, const layer *l) {
    const nsa_config *c = &m->cfg.nsa;
    const struct {
        const char *name;
        const real *data;
        int64_t width;
    } kept[] = {{"its input", l->x, m->cfg.width},
                {"RMSNorm", l->h, m->cfg.width},
                {"q", l->io.q, c->q_heads * c->qk_dim},
                {"k", l->io.k[0], c->kv_heads * c->qk_dim},
                {"v", l->io.v[0], c->kv_heads * c->v_dim},
                {"the gate", l->io.gate, c->q_heads * BRANCHES},
                {"the attention", l->io.out, c->q_heads * c->v_dim},
                {"the residual", l->x2, m->cfg.width},
                {"the MLP", l->gelu_x, m->cfg.mlp}};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        if (is_bad(kept[i].data, m->pack.N * kept[i].width))
            return kept[i].name;
    }
    return NULL;
}

void model_first_nonfinite(const model *m, int backward, char *text, size_t size) {
    text[0] = 0;
    if (backward)
        first_gradient(m, text, size);
    for (int64_t i = 0; i < m->cfg.layers && !text[0]; i++) {
        const char *name = first_of_layer(m, &m->layer[i]);
        if (name)
            snprintf(text, size, "layer %d: %s", (int)i, name);
    }
    if (!text[0])
        snprintf(text, size, "%s",
                 is_bad(m->x, m->pack.N * m->cfg.width) ? "behind the last layer" : "the head");
}
