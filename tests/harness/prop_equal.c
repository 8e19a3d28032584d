/** @file prop_equal.c
 *  @brief Property: equal tokens are compressed to equal bits. Ties of the selection rest on it. */
#include "harness/properties.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <string.h>

/* Token t of every sequence gets the k_cmp and v_cmp of the pack's token t % l. So a compressed
 * token i of any sequence is made of the same rows as its token i % (l/d). */
static nsa_status repeat_tokens(const test_case *c, nsa_tensors *in) {
    for (int id = NSA_K_CMP; id <= NSA_V_CMP; id++) {
        nsa_tensor from = {0}, *to = &in->at[id];
        const nsa_status status = tensor_copy(&from, to);
        if (status)
            return status;
        for (int64_t b = 0, first = 0; b < case_sequences(c); first += case_length(c, (int)b++)) {
            for (int64_t i = 0; i < case_length(c, (int)b) * tensor_row(to); i++)
                tensor_set(to, first * tensor_row(to) + i,
                           tensor_get(&from, i % (c->cfg.cmp_block * tensor_row(to))));
        }
        tensor_free(&from);
    }
    return NSA_OK;
}

/* The first l tokens, as one sequence. */
static nsa_status first_tokens(const test_case *c, const nsa_tensors *in, nsa_tensors *few) {
    nsa_tensors view = *in;
    for (int id = NSA_Q; id <= NSA_GATE; id++)
        view.at[id].shape[0] = c->cfg.cmp_block;
    view.at[NSA_DOUT] = view.at[NSA_CU_SEQLENS] = view.at[NSA_ROWS] = (nsa_tensor){0};
    view.at[NSA_BLOCK_IDX] = (nsa_tensor){0};
    return tensors_copy(few, &view);
}

/* Rows of k_phi or v_phi of all sequences against those of the first l/d compressed tokens that are
 * long enough to have them, wherever they lie; row 0 of the few tokens' result too. */
static nsa_status compare_rows(const test_case *c, const nsa_tensor *all, const nsa_tensor *few) {
    const int64_t l = c->cfg.cmp_block, d = c->cfg.cmp_stride;
    const size_t bytes = (size_t)tensor_row(all) * nsa_dtype_size(all->dtype);
    const char *rows = all->data, *seen[256] = {few->data}; /* l/d <= l <= 256 */
    for (int64_t b = 0; b < case_sequences(c); b++) {
        const int64_t len = case_length(c, (int)b), N = len < l ? 0 : (len - l) / d + 1;
        for (int64_t i = 0; i < N; i++, rows += bytes) {
            const char **equal = &seen[i % (l / d)];
            *equal = *equal ? *equal : rows;
            if (memcmp(*equal, rows, bytes))
                return nsa_fail(NSA_ERR_INPUT,
                                "compressed token %" PRId64 " of sequence %" PRId64
                                " is not bitwise equal to one of equal tokens",
                                i, b);
        }
    }
    return NSA_OK;
}

/* The only compressed token that row l-1 of a sequence sees has probability 1, so that row's
 * out_cmp is v_phi: here as a decode step made it. A bfloat16 stage may get 1 + 2^-23 from
 * fma(scale, s, -m), which is not 0 for the maximum itself, and rounds it away in P, but not in the
 * row sum; it can hold v_phi as a bfloat16, so there it is compared as one. */
static nsa_status compare_step(const subject *s, const test_case *c, const nsa_tensors *few,
                               const nsa_tensor *v_phi) {
    const int64_t dv = c->cfg.v_dim, heads = c->cfg.q_heads, l = c->cfg.cmp_block;
    nsa_tensors step = {0};
    nsa_status status = run_decode(s->stage, &c->cfg, few, l - 1, 0, &step);
    const nsa_tensor *out = &step.at[NSA_OUT_CMP];
    for (int64_t i = 0; !status && i < heads * dv; i++) {
        const int64_t kvh = i / dv / (heads / c->cfg.kv_heads);
        double value = tensor_get(out, (l - 1) * heads * dv + i);
        double want = tensor_get(v_phi, kvh * dv + i % dv);
        if (s->stage->arith == NSA_BFLOAT16) {
            value = (double)round_bfloat16((float)value);
            want = (double)round_bfloat16((float)want);
        }
        if (value != want)
            status = nsa_fail(
                NSA_ERR_INPUT,
                "v_phi of a decode step is not bitwise equal to a load's, head %" PRId64, i / dv);
    }
    tensors_free(&step);
    return status;
}

/* k_phi and v_phi in a pack, in a load of l tokens, and v_phi in a decode step. (k_phi of a step
 * shows in the ties that property decode judges without slack.) */
nsa_status judge_equal(const subject *s, const test_case *c) {
    nsa_tensors in, few = {0}, of_all = {0}, of_few = {0};
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    status = status ? status : repeat_tokens(c, &in);
    status = status ? status : first_tokens(c, &in, &few);
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_FORWARD, &of_all);
    status = status ? status : run_stage(s->stage, &c->cfg, &few, RUN_FORWARD, &of_few);
    status = status ? status : all_finite(&of_all); /* NaN may equal NaN */
    status = status ? status : all_finite(&of_few);
    for (int id = NSA_K_PHI; id <= NSA_V_PHI && !status; id++)
        status = compare_rows(c, &of_all.at[id], &of_few.at[id]);
    if (!status && s->stage->decode)
        status = compare_step(s, c, &few, &of_few.at[NSA_V_PHI]);
    tensors_free(&in);
    tensors_free(&few);
    tensors_free(&of_all);
    tensors_free(&of_few);
    return status;
}
