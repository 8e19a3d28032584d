/** @file prop_backward.c
 *  @brief Properties of the backward pass. */
#include "harness/compare.h"
#include "harness/properties.h"
#include "harness/random.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* dgate = <dout, out_branch>, row for row (Eq. 5 differentiated). */
static nsa_status check_gate_gradient(const subject *s, const gradient_units *units,
                                      const nsa_tensors *mine) {
    const nsa_tensor *dout = &units->in->at[NSA_DOUT], *rows = &units->in->at[NSA_ROWS];
    const nsa_tensor *dgate = &mine->at[NSA_DGATE];
    nsa_tensor product = *dgate;
    nsa_status status = tensor_alloc(&product);
    int64_t heads = dgate->shape[1], dv = dout->shape[2];
    for (int64_t i = 0; !status && i < nsa_count(dgate); i++) {
        int64_t row = i / 3, r = row / heads;
        int64_t from = rows->dtype ? tensor_ints(rows)[r] * heads + row % heads : row;
        double sum = 0;
        for (int64_t k = 0; k < dv; k++)
            sum += tensor_get(dout, from * dv + k) *
                   tensor_get(&mine->at[NSA_OUT_CMP + i % 3], row * dv + k);
        tensor_set(&product, i, sum);
    }
    if (!status)
        status = compare_gradient(tolerance_of(s->stage->arith), NSA_DGATE, dgate, &product, units);
    tensor_free(&product);
    return status;
}

nsa_status note_gradient(const subject *s, nsa_id id, const gradient_units *units,
                         const nsa_tensors *a, const nsa_tensors *b) {
    if (!s->stage->backward)
        return NSA_OK;
    return parts_note(part_of(id), compare_gradient(tolerance_of(s->stage->arith), id, &a->at[id],
                                                    &b->at[id], units));
}

nsa_status note_gradients(const subject *s, const gradient_units *units, const nsa_tensors *a,
                          const nsa_tensors *b) {
    for (int id = NSA_GRAD_FIRST; id <= NSA_GRAD_LAST; id++) {
        if (nsa_has(units->cfg, (nsa_id)id))
            note_gradient(s, (nsa_id)id, units, a, b);
    }
    return NSA_OK;
}

nsa_status judge_backward(const subject *s, const test_case *c) {
    nsa_tensors in, mine = {0}, oracle = {0};
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_BACKWARD, &mine);
    status = status ? status : force_blocks(&c->cfg, &in, &mine.at[NSA_BLOCK_IDX]);
    status = status ? status : run_stage(s->oracle, &c->cfg, &in, RUN_BACKWARD, &oracle);
    const gradient_units units = units_for(s, c, &in);
    status = status ? status : note_gradients(s, &units, &mine, &oracle);
    if (!status)
        parts_note(PART_DGATE, check_gate_gradient(s, &units, &mine));
    tensors_free(&in);
    tensors_free(&mine);
    tensors_free(&oracle);
    return status;
}

/* ------------------------------------------------------ central differences */

/* L = <dout, out>, whose gradients backward computes. */
static nsa_status loss(nsa_context *ctx, const nsa_tensors *in, nsa_tensor *out, double *sum) {
    nsa_status status = nsa_load(ctx, in);
    status = status ? status : nsa_forward(ctx);
    status = status ? status : nsa_read(ctx, NSA_OUT, out);
    *sum = 0;
    for (int64_t i = 0; i < nsa_count(out) && !status; i++)
        *sum += tensor_get(out, i) * tensor_get(&in->at[NSA_DOUT], i);
    return status;
}

/* (8 (L(x+h) - L(x-h)) - (L(x+2h) - L(x-2h))) / 12h: the error is of order h^4. */
static nsa_status difference(nsa_context *ctx, nsa_tensors *in, nsa_id id, int64_t i,
                             nsa_tensor *out, double *slope) {
    static const double steps[] = {1, -1, 2, -2}, weights[] = {8, -8, -1, 1};
    const double h = 1e-3, x = tensor_get(&in->at[id], i);
    nsa_status status = NSA_OK;
    *slope = 0;
    for (int k = 0; k < 4 && !status; k++) {
        double sum;
        tensor_set(&in->at[id], i, x + steps[k] * h);
        status = loss(ctx, in, out, &sum);
        *slope += weights[k] * sum / (12 * h);
    }
    tensor_set(&in->at[id], i, x);
    return status;
}

/* One gradient: every element, or 48 seeded ones of a large tensor, to 1e-6 of its rms. */
static nsa_status check_gradient(nsa_context *ctx, const test_case *c, nsa_tensors *in, nsa_id grad,
                                 const nsa_tensor *mine, nsa_tensor *out) {
    nsa_id id = nsa_id_named(nsa_name(grad) + 1); /* "dq" is the gradient of "q" */
    uint64_t state = c->seed + (uint64_t)grad;
    int64_t count = nsa_count(mine), checks = count < 48 ? count : 48;
    double scale = rms_of(&in->at[NSA_DOUT]), rms = rms_of(mine);
    double allowed = 1e-6 * (rms < 1e-9 * scale ? scale : rms); /* zero by identity */
    nsa_status status = NSA_OK;
    for (int64_t k = 0; k < checks && !status; k++) {
        int64_t i = checks == count ? k : (int64_t)(random_next(&state) % (uint64_t)count);
        double slope, is = tensor_get(mine, i);
        status = difference(ctx, in, id, i, out, &slope);
        if (!status && !(fabs(slope - is) <= allowed))
            status = nsa_fail(NSA_ERR_INPUT,
                              "%s[%" PRId64 "] = %.12g, its central difference is %.12g, "
                              "allowed %.2g apart",
                              nsa_name(grad), i, is, slope, allowed);
    }
    return status;
}

nsa_status judge_differences(const subject *s, const test_case *c) {
    nsa_setup setup = {.flags = NSA_DEBUG_MEMORY};
    nsa_tensors in, mine = {0};
    nsa_tensor out = {0};
    nsa_context *ctx = NULL;
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    status = status ? status : tensors_widen(&in); /* so that x + h is not rounded to x */
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_BACKWARD, &mine);
    status = status ? status : force_blocks(&c->cfg, &in, &mine.at[NSA_BLOCK_IDX]);
    status = status ? status : tensor_copy(&out, &mine.at[NSA_OUT]);
    setup.flags |= NSA_BACKWARD; /* so that the inputs may contain dout */
    status = status ? status : nsa_open(s->stage, &c->cfg, &setup, &ctx);
    for (int id = NSA_GRAD_FIRST; id <= NSA_GRAD_LAST && !status; id++) {
        if (nsa_has(&c->cfg, (nsa_id)id))
            parts_note(part_of((nsa_id)id),
                       check_gradient(ctx, c, &in, (nsa_id)id, &mine.at[id], &out));
    }
    nsa_close(ctx);
    tensor_free(&out);
    tensors_free(&in);
    tensors_free(&mine);
    return status;
}
