/** @file model_open.c
 *  @brief The model's parameters in the order of the equations, its memory, and how it starts. */
#include "train/model.h"
#include "common/pool.h"
#include "common/tensors.h"
#include "harness/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ memory */

/* Memory that lives as long as the model; NULL, here and from now on, if there is none. */
static void *keep(model *m, int64_t count, size_t size) {
    const int full = m->allocated == (int)(sizeof m->memory / sizeof *m->memory);
    void *memory = full ? NULL : memory_new(count * (int64_t)size);
    if (memory)
        m->memory[m->allocated++] = memory;
    else
        m->failed = 1;
    return memory;
}

static real *reals(model *m, int64_t count) {
    return keep(m, count, sizeof(real));
}

/* -------------------------------------------------------------- parameters */

/* A parameter "layer 0 wq", or "embed" for a layer of -1. */
static param *add(model *m, int64_t of_layer, const char *name, int64_t in, int64_t out) {
    if (m->params == MODEL_PARAMS) {
        m->failed = 1;
        return &m->param[0];
    }
    param *p = &m->param[m->params++];
    *p = (param){.in = in, .out = out, .rate = 1, .decay = in > 1};
    if (of_layer < 0)
        snprintf(p->name, sizeof p->name, "%s", name);
    else
        snprintf(p->name, sizeof p->name, "layer %d %s", (int)of_layer, name);
    p->std_dev = in > 1 ? 1 / sqrt((double)in) : 0;
    p->value = reals(m, in * out);
    p->grad = reals(m, in * out);
    p->mean = reals(m, in * out);
    p->square = reals(m, in * out);
    return p;
}

/* A vector, all of one value, and not decayed. */
static param *add_vector(model *m, int64_t of_layer, const char *name, int64_t out, double start) {
    param *p = add(m, of_layer, name, 1, out);
    p->start = start;
    return p;
}

/* The compressors' weights: start_phi() says how they begin. */
static void add_phi(model *m, int64_t number, layer *l) {
    const nsa_config *c = &l->attend.cfg;
    for (int w = 0; w < PHI_WEIGHTS; w++) {
        const nsa_id id = (nsa_id)(NSA_PHI_FIRST + w);
        const int64_t count = nsa_weight_count(c, w / NSA_PHI_EACH, w % NSA_PHI_EACH);
        if (!nsa_has(c, id))
            continue;
        param *p = l->io.phi[w] = add_vector(m, number, nsa_name(id), count, 0);
        p->rate = m->cfg.phi_rate;
        if (c->phi == NSA_PHI_MLP && w % NSA_PHI_EACH == 0)
            p->std_dev = 0.02; /* pe */
    }
}

static void add_layer_params(model *m, int64_t number) {
    layer *l = &m->layer[number];
    const model_config *c = &m->cfg;
    const int64_t D = c->width, Hq = c->nsa.q_heads, Hkv = c->nsa.kv_heads;
    static const char *const wk[] = {"wk_1", "wk_2", "wk_3"}, *const wv[] = {"wv_1", "wv_2",
                                                                             "wv_3"};
    l->norm1 = add_vector(m, number, "norm1", D, 1);
    l->mu = add_vector(m, number, "mu", D, 0.5);
    l->wq = add(m, number, "wq", D, Hq * c->nsa.qk_dim);
    for (int i = 0; i < l->attend.pairs; i++) {
        l->wk[i] = add(m, number, wk[i], D, Hkv * c->nsa.qk_dim);
        l->wv[i] = add(m, number, wv[i], D, Hkv * c->nsa.v_dim);
    }
    if (l->attend.used) {
        l->gate_w = add(m, number, "gate_w", D, Hq * BRANCHES);
        l->gate_w->std_dev = 0.02;
        l->gate_b = add_vector(m, number, "gate_b", Hq * BRANCHES, 0);
    }
    add_phi(m, number, l);
    l->wo = add(m, number, "wo", Hq * c->nsa.v_dim, D);
    if (c->mlp) {
        l->norm2 = add_vector(m, number, "norm2", D, 1);
        l->up = add(m, number, "up", D, c->mlp);
        l->down = add(m, number, "down", c->mlp, D);
    }
}

static void add_params(model *m) {
    const int64_t D = m->cfg.width, V = m->cfg.vocab;
    m->embed = add(m, -1, "embed", V, D);
    m->embed->std_dev = 0.5;
    m->embed->decay = 0;
    if (m->cfg.smear) {
        m->smear = add(m, -1, "smear", SMEAR, D);
        m->smear->std_dev = 0.5;
    }
    for (int64_t i = 0; i < m->cfg.layers; i++)
        add_layer_params(m, i);
    m->norm = add_vector(m, -1, "norm", D, 1);
    m->head = add(m, -1, "head", D, V);
    m->head->std_dev = 0.02;
}

/* -------------------------------------------------------------- activations */

/* A gate of its own kind's layer: (0,0,1) where it is not learned. */
static void fixed_gate(const model *m, const layer *l) {
    const int64_t count = m->cfg.nsa.seq_len * m->cfg.nsa.q_heads * BRANCHES;
    real *host = calloc((size_t)count, sizeof *host);
    for (int64_t i = BRANCHES - 1; host && i < count; i += BRANCHES)
        host[i] = 1;
    if (host && l->io.gate)
        memory_write(l->io.gate, host, count * (int64_t)sizeof *host);
    free(host);
}

static void add_layer_memory(model *m, layer *l) {
    const nsa_config *c = &m->cfg.nsa;
    const int64_t N = c->seq_len, D = m->cfg.width;
    const int64_t qk = c->q_heads * c->qk_dim, qv = c->q_heads * c->v_dim;
    l->x = reals(m, N * D);
    l->h = reals(m, N * D);
    l->s = reals(m, N * D);
    l->io.q = reals(m, N * qk);
    l->io.dq = reals(m, N * qk);
    for (int i = 0; i < l->attend.pairs; i++) {
        l->io.k[i] = reals(m, N * c->kv_heads * c->qk_dim);
        l->io.dk[i] = reals(m, N * c->kv_heads * c->qk_dim);
        l->io.v[i] = reals(m, N * c->kv_heads * c->v_dim);
        l->io.dv[i] = reals(m, N * c->kv_heads * c->v_dim);
    }
    l->io.gate = reals(m, N * c->q_heads * BRANCHES);
    l->io.dgate = reals(m, N * c->q_heads * BRANCHES);
    l->io.out = reals(m, N * qv);
    l->io.dout = reals(m, N * qv);
    if (m->cfg.mlp) {
        l->x2 = reals(m, N * D);
        l->h2 = reals(m, N * D);
        l->up_x = reals(m, N * m->cfg.mlp);
        l->gelu_x = reals(m, N * m->cfg.mlp);
    }
    if (!l->attend.used)
        fixed_gate(m, l);
}

static void add_memory(model *m) {
    const int64_t N = m->cfg.nsa.seq_len, D = m->cfg.width;
    m->token = keep(m, N, sizeof *m->token);
    m->target = keep(m, N, sizeof *m->target);
    m->pos = keep(m, N, sizeof *m->pos);
    m->e = reals(m, N * D);
    m->x = reals(m, N * D);
    m->h = reals(m, N * D);
    m->logits = reals(m, N * m->cfg.vocab);
    m->dx = reals(m, N * D);
    m->dh = reals(m, N * D);
    m->ds = reals(m, N * D);
    m->dmlp = reals(m, N * m->cfg.mlp);
    for (int64_t i = 0; i < m->cfg.layers; i++)
        add_layer_memory(m, &m->layer[i]);
}

/* ----------------------------------------------------------- open and close */

nsa_status model_open(model *m, const model_config *cfg, const nsa_stage *stage, int threads) {
    memset(m, 0, sizeof *m);
    if (cfg->layers < 1 || cfg->layers > MODEL_LAYERS)
        return nsa_fail(NSA_ERR_CONFIG, "layers %d is not in 1..%d", (int)cfg->layers,
                        MODEL_LAYERS);
    m->cfg = *cfg;
    layers_threads(threads);
    for (int64_t i = 0; i < cfg->layers; i++) {
        attention *a = &m->layer[i].attend;
        nsa_status status = attention_plan(a, cfg->kind, &cfg->nsa, cfg->longest);
        status = status ? status : attention_open(a, stage, threads);
        if (status)
            return status;
    }
    add_params(m);
    add_memory(m);
    return m->failed ? nsa_fail(NSA_ERR_MEMORY, "no memory for the model") : NSA_OK;
}

void model_close(model *m) {
    for (int64_t i = 0; i < m->cfg.layers; i++)
        attention_close(&m->layer[i].attend);
    for (int i = 0; i < m->allocated; i++)
        memory_free(m->memory[i]);
    memset(m, 0, sizeof *m);
}

int64_t model_count(const model *m) {
    int64_t count = 0;
    for (int i = 0; i < m->params; i++)
        count += param_count(&m->param[i]);
    return count;
}

size_t model_context_bytes(const model *m) {
    size_t bytes = 0;
    for (int64_t i = 0; i < m->cfg.layers; i++)
        bytes += nsa_memory(m->layer[i].attend.ctx);
    return bytes;
}

/* ------------------------------------------------------------------- start */

/* The mlp compressor starts as the mean: W1 = [M; -M] with M the mean over the block, W2 = [I, -I],
 * because silu(z) - silu(-z) = z. Only so many hidden units as 2 D are needed; others start at 0.
 */
static void start_mean(const nsa_config *c, int64_t D, real *w1, real *w2) {
    for (int64_t i = 0; i < D && D + i < c->phi_hidden; i++) {
        for (int64_t r = 0; r < c->cmp_block; r++) {
            w1[i * c->cmp_block * D + r * D + i] = (real)(1 / (double)c->cmp_block);
            w1[(D + i) * c->cmp_block * D + r * D + i] = (real)(-1 / (double)c->cmp_block);
        }
        w2[i * c->phi_hidden + i] = 1;
        w2[i * c->phi_hidden + D + i] = -1;
    }
}

static void start_phi(layer *l) {
    const nsa_config *c = &l->attend.cfg;
    for (int first = 0; first < PHI_WEIGHTS; first += NSA_PHI_EACH) {
        param *const w1 = l->io.phi[first + NSA_PHI_K_W1 - NSA_PHI_FIRST];
        param *const w2 = l->io.phi[first + NSA_PHI_K_W2 - NSA_PHI_FIRST];
        real *host1 = w1 ? calloc((size_t)param_count(w1), sizeof *host1) : NULL;
        real *host2 = w2 ? calloc((size_t)param_count(w2), sizeof *host2) : NULL;
        if (host1 && host2) {
            start_mean(c, first ? c->v_dim : c->qk_dim, host1, host2);
            memory_write(w1->value, host1, param_count(w1) * (int64_t)sizeof *host1);
            memory_write(w2->value, host2, param_count(w2) * (int64_t)sizeof *host2);
        }
        free(host1);
        free(host2);
    }
}

void model_start(model *m, uint64_t seed) {
    for (int i = 0; i < m->params; i++) {
        param *p = &m->param[i];
        const int64_t count = param_count(p);
        uint64_t state = seed ^ random_seed(p->name); /* each has its own numbers */
        real *host = malloc((size_t)count * sizeof *host);
        for (int64_t j = 0; host && j < count; j++)
            host[j] = (real)(p->start + p->std_dev * (double)random_normal(&state));
        if (host)
            memory_write(p->value, host, count * (int64_t)sizeof *host);
        free(host);
    }
    for (int64_t i = 0; i < m->cfg.layers; i++)
        start_phi(&m->layer[i]);
}
