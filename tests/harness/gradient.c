/** @file gradient.c
 *  @brief Comparing gradients. Those that are zero by identity are judged in the units of their
 * formula; ill-conditioned cases are detected. */
#include "harness/cases.h"
#include "harness/compare.h"
#include "harness/difference.h"
#include "harness/random.h"
#include "harness/tensor.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ------------------------------------------------------------------ units */

static double max_1(double x) {
    return x > 1 ? x : 1;
}

/* max(1, rms(k_cmp)), and for mlp max(1, sqrt(fan-in) rms(W)) of both layers. */
static double compressor_unit(const nsa_config *cfg, const nsa_tensors *in) {
    const double fan_in = (double)(cfg->cmp_block * cfg->qk_dim);
    double unit = max_1(rms_of(&in->at[NSA_K_CMP]));
    if (cfg->phi == NSA_PHI_MLP)
        unit *= max_1(sqrt(fan_in) * rms_of(&in->at[NSA_PHI_K_W1])) *
                max_1(sqrt((double)cfg->phi_hidden) * rms_of(&in->at[NSA_PHI_K_W2]));
    return unit;
}

gradient_units units_of(const nsa_config *cfg, const nsa_tensors *in) {
    const int64_t group = cfg->q_heads / cfg->kv_heads;
    gradient_units u = {.cfg = cfg,
                        .in = in,
                        .dout = rms_of(&in->at[NSA_DOUT]),
                        .tokens = (double)in->at[NSA_DOUT].shape[0],
                        .q = cfg->scale * rms_of(&in->at[NSA_Q]),
                        .heads = max_1(sqrt((double)(group * cfg->v_dim)) / 10),
                        .compressor = compressor_unit(cfg, in)};
    for (int x = 0; x < 3; x++) {
        u.k[x] = cfg->scale * rms_of(&in->at[NSA_K_CMP + 2 * x]);
        u.v[x] = rms_of(&in->at[NSA_V_CMP + 2 * x]);
    }
    return u;
}

gradient_units units_for(const subject *s, const test_case *c, const nsa_tensors *in) {
    gradient_units u = units_of(&c->cfg, in);
    u.oracle = s->oracle;
    u.text = c->text;
    return u;
}

/* A gradient below 1e-9 U is zero by identity, and then its rounding may reach M. U and M are the
 * products of x and of max(1, x) over the factors x of the gradient's formula. */
typedef struct unit {
    double u, m;
} unit;

static unit product_of(double x, double y) {
    return (unit){x * y, max_1(x) * max_1(y)};
}

static unit unit_of(const gradient_units *g, nsa_id id) {
    unit all = {1, 1};
    if (id == NSA_DK_CMP || id == NSA_DK_SLC || id == NSA_DK_WIN)
        return product_of(g->v[(id - NSA_DK_CMP) / 2], g->q);
    if (id >= NSA_DPHI_K_PE && id <= NSA_DPHI_K_B2) {
        all = product_of(g->v[0], g->q);
        all.m *= g->compressor;
        return all;
    }
    if (id != NSA_DQ && id != NSA_DGATE)
        return all; /* dv_* and dphi_v_* */
    for (int x = 0; x < 3; x++) {
        const unit pair = product_of(g->v[x], id == NSA_DQ ? g->k[x] : 1);
        all.u = x && all.u < pair.u ? all.u : pair.u;
        all.m = x && all.m > pair.m ? all.m : pair.m;
    }
    return all;
}

/* ---------------------------------------------------------- ill-conditioned */

/* Every input as float64, times 1 + 2^-24 or 1 - 2^-24; gates stay in [0,1]. */
static nsa_status perturb_inputs(nsa_tensors *in) {
    uint64_t state = 24;
    nsa_status status = tensors_widen(in);
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        nsa_tensor *t = &in->at[id];
        for (int64_t i = 0; t->dtype && t->dtype != NSA_I32 && i < nsa_count(t); i++) {
            const double by = random_next(&state) & 1 ? 0x1p-24 : -0x1p-24;
            const double x = tensor_get(t, i) * (1 + by);
            tensor_set(t, i, id == NSA_GATE && x > 1 ? 1 : x);
        }
    }
    return status;
}

/* One gradient of the oracle with the inputs as they are and perturbed: the difference, and the
 * largest element. Both runs use the same blocks. */
static nsa_status perturb_gradient(const gradient_units *g, nsa_id id, difference *change,
                                   double *max_abs) {
    nsa_tensors in = {0}, before = {0}, after = {0};
    nsa_status status = tensors_copy(&in, g->in);
    status = status ? status : run_stage(g->oracle, g->cfg, &in, RUN_BACKWARD, &before);
    if (!status && !in.at[NSA_BLOCK_IDX].dtype)
        status = force_blocks(g->cfg, &in, &before.at[NSA_BLOCK_IDX]);
    status = status ? status : perturb_inputs(&in);
    status = status ? status : run_stage(g->oracle, g->cfg, &in, RUN_BACKWARD, &after);
    status = status ? status : measure(id, &after.at[id], &before.at[id], change);
    *max_abs = 0;
    for (int64_t i = 0; !status && i < nsa_count(&after.at[id]); i++)
        *max_abs = fmax(*max_abs, fabs(tensor_get(&after.at[id], i)));
    tensors_free(&in);
    tensors_free(&before);
    tensors_free(&after);
    return status;
}

static int is_listed(const char *text) {
    for (int i = 0; i < case_count; i++) {
        if (!strcmp(text, cases[i].text))
            return 1;
    }
    return 0;
}

/* A gradient was missed, and `why` says how. Add a note if the case is ill-conditioned. `bound`:
 * the limit of max abs(a) for a gradient that is zero; else negative. */
static nsa_status report_miss(const gradient_units *g, nsa_id id, double entry, double bound,
                              const char *why) {
    char text[512], note[256] = "";
    difference change;
    double max_abs;
    snprintf(text, sizeof text, "%s", why); /* the oracle's runs overwrite it */
    if (g->oracle && !perturb_gradient(g, id, &change, &max_abs)) {
        const double by = bound < 0 ? change.rms / change.rms_b : max_abs / bound * entry;
        if (!(by <= entry / 5)) /* written so that NaN is noted too */
            snprintf(note, sizeof note,
                     "; %sill-conditioned: moving every input by 2^-24 of itself moves %s by "
                     "%.2g, more than a fifth of %.0e",
                     g->text && is_listed(g->text) ? "the list of cases has one that is " : "",
                     nsa_name(id), by, entry);
    }
    return nsa_fail(NSA_ERR_INPUT, "%s%s", text, note);
}

/* ---------------------------------------------------------------- judgement */

nsa_status compare_gradient(const tolerance *tol, nsa_id id, const nsa_tensor *a,
                            const nsa_tensor *b, const gradient_units *units) {
    difference d;
    char why[512];
    nsa_status status = measure(id, a, b, &d);
    if (status)
        return status;
    const int soft = id == NSA_DK_CMP || (id >= NSA_DPHI_K_PE && id <= NSA_DPHI_K_B2);
    const double allowed = soft ? tol->grad_soft : tol->grad_rms;
    const unit zero = unit_of(units, id);
    if (d.rms_b < 1e-9 * units->dout * zero.u) { /* zero by identity */
        const double bound = tol->zero * units->heads * units->dout * sqrt(units->tokens) * zero.m;
        double max_abs = 0;
        for (int64_t i = 0; i < nsa_count(a); i++)
            max_abs = fmax(max_abs, fabs(tensor_get(a, i)));
        if (max_abs <= bound)
            return NSA_OK;
        snprintf(why, sizeof why, "%s is zero, but up to %.3g was computed, allowed %.3g",
                 nsa_name(id), max_abs, bound);
        return report_miss(units, id, tol->zero, bound, why);
    }
    if (d.rms <= allowed * d.rms_b)
        return NSA_OK;
    snprintf(why, sizeof why,
             "%s is off by rms %.3g of rms %.3g, allowed %.0e of it; worst in row %lld",
             nsa_name(id), d.rms, d.rms_b, allowed, (long long)(d.index / tensor_row(a)));
    return report_miss(units, id, allowed, -1, why);
}
