/** @file gradients.c
 *  @brief The trainer's gradients against central differences, for every parameter of a two-layer
 * model, in float64 on stage 00: every number with the mlp compressor, else every fifth. Blocks are
 * frozen, and no weight starts at zero, because a zero output projection would hide what lies
 * before it. */
#include "harness/random.h"
#include "nsa_find.h"
#include "train/model.h"

#include <math.h>
#include <stdio.h>

enum { N = 37, B = 2, V = 11 };

/* What is compared, kind by kind: central differences of a step H are off by about H^2. */
static const double H = 2e-5, MOST = 2e-7;

typedef struct data {
    int32_t token[N], target[N], pos[N], cu_seqlens[B + 1];
} data;

static batch make_batch(data *d) {
    uint64_t state = 7;
    d->cu_seqlens[0] = 0, d->cu_seqlens[1] = 13, d->cu_seqlens[2] = N;
    for (int t = 0; t < N; t++) {
        d->token[t] = (int32_t)(random_next(&state) % V);
        d->target[t] = t % 5 ? (int32_t)(random_next(&state) % V) : -1;
        d->pos[t] = t < 13 ? t : t - 13;
    }
    return (batch){{N, B, d->cu_seqlens}, d->token, d->target, d->pos};
}

static model_config config_of(attention_kind kind, nsa_phi phi) {
    nsa_config nsa = nsa_config_defaults();
    nsa.seq_len = N, nsa.max_seqs = B;
    nsa.q_heads = 4, nsa.kv_heads = 2, nsa.qk_dim = 6, nsa.v_dim = 4;
    nsa.cmp_block = 4, nsa.cmp_stride = 2, nsa.slc_block = 4;
    nsa.slc_count = 3, nsa.slc_init = 1, nsa.slc_local = 1;
    nsa.window = 5, nsa.phi = phi;
    return (model_config){.vocab = V,
                          .width = 10,
                          .layers = 2,
                          .mlp = 14,
                          .smear = 1,
                          .longest = 24,
                          .turned = 4,
                          .rope_base = 50,
                          .phi_rate = 0.1,
                          .kind = kind,
                          .nsa = nsa};
}

/* Move every weight, so that none is zero and no two branches are alike. */
static void move_weights(model *m) {
    uint64_t state = 3;
    for (int i = 0; i < m->params; i++) {
        for (int64_t j = 0; j < param_count(&m->param[i]); j++)
            m->param[i].value[j] += 0.3 * (double)random_normal(&state);
    }
}

/* d loss / d weight by central differences; NaN if a call failed. */
static double difference(model *m, const batch *b, real *weight) {
    loss_result at[2];
    const real value = *weight;
    int bad = 0;
    for (int side = 0; side < 2; side++) {
        *weight = value + (side ? H : -H);
        bad |= model_forward(m, b, &at[side]) != NSA_OK;
    }
    *weight = value;
    return bad ? NAN : (at[1].loss - at[0].loss) / (2 * H);
}

/* The largest difference of one parameter, over the rms of its gradient or, for a gradient that is
 * zero by identity, over a thousandth. */
static double deviation(model *m, const batch *b, param *p) {
    const int64_t count = param_count(p), stride = m->cfg.nsa.phi == NSA_PHI_MLP ? 1 : 5;
    const double rms = sqrt(grad_squares(p) / (double)count);
    double most = 0;
    for (int64_t i = 0; i < count; i += stride) {
        const double off = fabs(difference(m, b, &p->value[i]) - p->grad[i]);
        if (!(off <= most))
            most = off;
    }
    return most / (rms > 1e-3 ? rms : 1e-3);
}

static nsa_status freeze_blocks(model *m) {
    nsa_status status = NSA_OK;
    for (int64_t i = 0; i < m->cfg.layers && !status; i++)
        status = attention_read_blocks(&m->layer[i].attend, &m->pack);
    m->blocks = BLOCKS_GIVEN;
    return status;
}

/* @return how many parameters are off */
static int check(const nsa_stage *stage, attention_kind kind, nsa_phi phi) {
    static model m;
    data d;
    const batch b = make_batch(&d);
    const model_config cfg = config_of(kind, phi);
    loss_result result = {0};
    int wrong = 0;
    double most = 0;
    nsa_status status = model_open(&m, &cfg, stage, 1);
    if (!status) {
        model_start(&m, 1);
        move_weights(&m);
        m.blocks = kind == ATTENTION_RANDOM ? BLOCKS_RANDOM : BLOCKS_SELECTED;
        status = model_forward(&m, &b, &result);
    }
    status = status ? status : freeze_blocks(&m);
    status = status ? status : model_forward(&m, &b, &result);
    status = status ? status : model_backward(&m);
    for (int i = 0; i < m.params && !status; i++) {
        const double off = deviation(&m, &b, &m.param[i]);
        most = off <= most ? most : off;
        if (!(off <= MOST) && ++wrong)
            printf("FAIL %s %s: %s is off by %.2g\n", attention_name(kind), nsa_phi_name(phi),
                   m.param[i].name, off);
    }
    if (status)
        printf("FAIL %s %s: %s\n", attention_name(kind), nsa_phi_name(phi), nsa_last_error());
    printf("%-8s %-6s %3d parameters, %5d numbers, loss %.3f, largest deviation %.1e  %s\n",
           attention_name(kind), nsa_phi_name(phi), m.params, (int)model_count(&m), result.loss,
           most, status || wrong ? "FAIL" : "OK");
    model_close(&m);
    return status || wrong;
}

int main(void) {
    nsa_found found;
    int wrong = 0;
    if (nsa_find_stage(NULL, "00", &found)) {
        printf("train-gradients: %s\n", nsa_last_error());
        return 1;
    }
    for (int phi = NSA_PHI_MEAN; phi <= NSA_PHI_MLP; phi++)
        wrong += check(found.stage, ATTENTION_NSA, (nsa_phi)phi);
    wrong += check(found.stage, ATTENTION_CMP_WIN, NSA_PHI_GATED);
    for (int kind = ATTENTION_FULL; kind <= ATTENTION_WINDOW; kind++)
        wrong += check(found.stage, (attention_kind)kind, NSA_PHI_MEAN);
    wrong += check(found.stage, ATTENTION_RANDOM, NSA_PHI_MEAN);
    nsa_free_stage(&found);
    printf("train-gradients: %s\n", wrong ? "FAIL" : "every parameter agrees");
    return wrong != 0;
}
