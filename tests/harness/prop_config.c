/** @file prop_config.c
 *  @brief Properties of the contract: each rule broken is an error that names the value and the
 * rule. */
#include "common/counts.h"
#include "common/pool.h"
#include "harness/properties.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* A key, the illegal value to set, and a part of the expected error text. */
typedef struct broken_rule {
    const char *key;
    double value;
    const char *text;
} broken_rule;

/* Values are set without nsa_config_set(), as a C caller may: resolve must reject them. */
static const broken_rule broken[] = {
    {"seq_len", 0, "seq_len is required"},
    {"q_heads", 0, "q_heads is required"},
    {"kv_heads", 0, "kv_heads is required"},
    {"qk_dim", 0, "qk_dim is required"},
    {"v_dim", 0, "v_dim is required"},
    {"seq_len", -5, "seq_len -5 is not in 1..2147483647"},
    {"seq_len", 2147483648.0, "seq_len 2147483648 is not in"},
    {"q_heads", 5, "q_heads 5 is not a multiple of kv_heads 2"},
    {"q_heads", 258, "G 129 is more than 128"},
    {"qk_dim", 257, "qk_dim 257 is not in 1..256"},
    {"v_dim", 257, "v_dim 257 is not in 1..256"},
    {"v_dim", -1, "v_dim -1 is not in 1..256"},
    {"cmp_block", 0, "cmp_block 0 is not in 1..256"},
    {"cmp_block", 257, "cmp_block 257 is not in 1..256"},
    {"cmp_stride", 0, "cmp_stride 0 is not in 1..256"},
    {"cmp_stride", 16, "cmp_stride 16 is more than cmp_block 8"},
    {"cmp_stride", 3, "cmp_block 8 is not a multiple of cmp_stride 3"},
    {"slc_block", 18, "slc_block 18 is not a multiple of cmp_stride 4"},
    {"slc_block", 4, "cmp_block 8 is more than slc_block 4"},
    {"slc_block", 257, "slc_block 257 is not in 1..256"},
    {"slc_count", 2, "slc_count 2 is less than slc_init 1 + slc_local 2"},
    {"slc_count", 129, "slc_count 129 is not in 1..128"},
    {"slc_init", -1, "slc_init -1 is not in 0..128"},
    {"slc_local", 0, "slc_local 0 is not in 1..128"},
    {"window", 0, "window 0 is not in 1..2147483647"},
    {"phi_hidden", 0, "phi_hidden 0 is not in 1.."},
    {"max_seqs", 0, "max_seqs 0 is not in 1.."},
    {"max_seq_len", -7, "max_seq_len -7 is not in 1.."},
};

static void set_raw(nsa_config *cfg, const char *key, double value) {
    /* nsa_config_set() stores the value even if it returns an error. */
    (void)nsa_config_set(cfg, key, value, NULL);
}

static nsa_status expect_error(nsa_status is, nsa_status should, const char *text) {
    if (is == should && strstr(nsa_last_error(), text))
        return NSA_OK;
    char said[256];
    snprintf(said, sizeof said, "%s", is ? nsa_last_error() : "");
    return nsa_fail(NSA_ERR_STATE, "expected %s saying \"%s\", got %s \"%s\"",
                    nsa_status_name(should), text, nsa_status_name(is), said);
}

/* Opening with a broken rule fails and leaves no context. */
static nsa_status must_not_open(const subject *s, const nsa_config *cfg, const char *text) {
    nsa_setup setup = {0};
    nsa_context *ctx = (nsa_context *)(uintptr_t)1;
    nsa_status status = expect_error(nsa_open(s->stage, cfg, &setup, &ctx), NSA_ERR_CONFIG, text);
    if (!status && ctx)
        status = nsa_fail(NSA_ERR_STATE, "a failed open left a context");
    return status;
}

nsa_status judge_bad_config(const subject *s, const test_case *c) {
    nsa_status status = NSA_OK;
    for (size_t i = 0; i < sizeof broken / sizeof broken[0] && !status; i++) {
        nsa_config cfg = c->cfg;
        set_raw(&cfg, broken[i].key, broken[i].value);
        status = must_not_open(s, &cfg, broken[i].text);
    }
    static const double scales[] = {
        0, -2, 1e-46, 0x1.fffffffffffffp-101, NAN, INFINITY, 0x1.0000000000001p100, 1e39};
    for (int i = 0; i < 8 && !status; i++) {
        nsa_config cfg = c->cfg;
        cfg.scale = scales[i];
        status = must_not_open(s, &cfg, "is not in 2^-100..2^100");
    }
    if (!status) {
        nsa_config cfg = c->cfg;
        cfg.phi = (nsa_phi)7;
        status = must_not_open(s, &cfg, "phi 7 is not");
    }
    nsa_config cfg = c->cfg;
    cfg.seq_len = cfg.q_heads = cfg.kv_heads = INT32_MAX;
    status = status ? status : must_not_open(s, &cfg, "overflow 63-bit offsets");
    status = status ? status
                    : expect_error(nsa_config_set(&cfg, "windw", 1, NULL), NSA_ERR_CONFIG,
                                   "unknown key \"windw\"");
    status = status ? status
                    : expect_error(nsa_config_set(&cfg, "window", 1.5, NULL), NSA_ERR_CONFIG,
                                   "window 1.5 is not a whole number");
    status = status ? status
                    : expect_error(nsa_config_set(&cfg, "phi", 0, "max"), NSA_ERR_CONFIG,
                                   "phi \"max\" is not one of");
    status = status ? status
                    : expect_error(nsa_config_set(&cfg, "window", 0, "12"), NSA_ERR_CONFIG,
                                   "window \"12\" is not a number");
    return status;
}

/* ---------------------------------------------------------------- bad input */

/* One thing wrong with the inputs of a load, and a part of the expected error text. */
typedef struct broken_input {
    nsa_id id;
    enum { GONE, TYPE, SHAPE, NULL_DATA, VALUE, STRAY } how;
    double value; /* of VALUE, at element `index` */
    int64_t index;
    const char *text;
} broken_input;

static const broken_input wrong[] = {
    {NSA_Q, GONE, 0, 0, "q is missing"},
    {NSA_V_WIN, GONE, 0, 0, "v_win is missing"},
    {NSA_GATE, GONE, 0, 0, "gate is missing"},
    {NSA_PHI_K_PE, GONE, 0, 0, "phi_k_pe is missing"},
    {NSA_K_SLC, TYPE, 0, 0, "k_slc is int32, expected float32, float64 or bfloat16"},
    {NSA_Q, SHAPE, 0, 0, "q holds 101 tokens, seq_len is 100"},
    {NSA_V_CMP, SHAPE, 0, 0, "v_cmp has shape"},
    {NSA_PHI_V_PE, SHAPE, 0, 0, "phi_v_pe has shape"},
    {NSA_K_WIN, NULL_DATA, 0, 0, "k_win has no data"},
    {NSA_GATE, VALUE, 1.25, 5, "gate[0,1,2] = 1.25 is not in [0,1]"},
    {NSA_GATE, VALUE, NAN, 0, "gate[0,0,0] = nan is not in [0,1]"},
    {NSA_OUT, STRAY, 0, 0, "out is a result, not an input"},
    {NSA_PHI_K_W1, STRAY, 0, 0, "has no such weight"},
    {NSA_ACTIVE, STRAY, 0, 0, "active is not an input of a load"},
    {NSA_CU_SEQLENS, VALUE, 1, 0, "cu_seqlens[0] = 1, expected 0"},
    {NSA_CU_SEQLENS, VALUE, 99, 2, "cu_seqlens ends with 99, expected T = 100"},
    {NSA_CU_SEQLENS, VALUE, 101, 1, "cu_seqlens[2] = 100 is less than the entry before, 101"},
    {NSA_CU_SEQLENS, SHAPE, 0, 0, "cu_seqlens packs 3 sequences, max_seqs is 2"},
    {NSA_ROWS, VALUE, 100, 1, "rows[1] = 100 is not in 0..99"},
    {NSA_ROWS, VALUE, 0, 1, "rows[1] = 0 does not come after the row before, 0"},
    {NSA_BLOCK_IDX, VALUE, 1, 0, "block_idx of row 0 holds 1, expected -1 or 0..0"},
    {NSA_BLOCK_IDX, VALUE, -2, 0, "block_idx of row 0 holds -2, expected"},
    {NSA_BLOCK_IDX, VALUE, 0, 1, "holds block 0 twice"},
};

/* Add a legal optional input, to be broken next: two sequences, two rows, lists of block 0. */
static nsa_status add_optional(const test_case *c, nsa_id id, nsa_tensors *in) {
    nsa_tensor *t = &in->at[id];
    if (id != NSA_CU_SEQLENS && id != NSA_ROWS && id != NSA_BLOCK_IDX)
        return NSA_OK;
    t->dtype = NSA_I32;
    t->ndim = id == NSA_BLOCK_IDX ? 3 : 1;
    t->shape[0] = id == NSA_BLOCK_IDX ? c->cfg.seq_len : id == NSA_ROWS ? 2 : 4;
    t->shape[1] = c->cfg.kv_heads;
    t->shape[2] = c->cfg.slc_count;
    nsa_status status = tensor_alloc(t); /* all -1 */
    if (status)
        return status;
    if (id == NSA_BLOCK_IDX) {
        tensor_ints(t)[0] = 0;
    } else {
        const int32_t values[] = {0, 50, (int32_t)c->cfg.seq_len, (int32_t)c->cfg.seq_len};
        for (int64_t i = 0; i < t->shape[0]; i++)
            tensor_ints(t)[i] = values[i];
        t->shape[0] -= id == NSA_CU_SEQLENS;
    }
    return NSA_OK;
}

static void break_input(const broken_input *b, nsa_tensor *t) {
    static float something[1];
    switch (b->how) {
    case GONE:
        t->dtype = NSA_NONE;
        break;
    case TYPE:
        t->dtype = NSA_I32;
        break;
    case SHAPE:
        t->shape[0] += 1;
        break;
    case NULL_DATA:
        t->data = NULL;
        break;
    case VALUE:
        if (t->dtype == NSA_I32)
            tensor_ints(t)[b->index] = (int32_t)b->value;
        else
            tensor_set(t, b->index, b->value);
        break;
    case STRAY:
        *t = (nsa_tensor){something, NSA_F32, 1, {1}, NSA_HOST};
        break;
    }
}

static nsa_status try_broken(nsa_context *ctx, const test_case *c, nsa_arith arith,
                             const broken_input *b) {
    nsa_tensors in;
    nsa_status status = case_inputs(c, arith, &in);
    tensor_free(&in.at[NSA_DOUT]);
    status = status ? status : add_optional(c, b->id, &in);
    nsa_tensor kept = in.at[b->id];
    if (!status) {
        break_input(b, &in.at[b->id]);
        status = expect_error(nsa_load(ctx, &in), NSA_ERR_INPUT, b->text);
    }
    in.at[b->id] = kept;
    tensors_free(&in);
    return status;
}

/* Calls out of order: each must be refused, and the error must name the call. */
static nsa_status try_order(nsa_context *ctx, const test_case *c, const nsa_stage *stage) {
    nsa_tensors in;
    nsa_tensor out = {0};
    nsa_status status = case_inputs(c, stage->arith, &in);
    const nsa_tensor dout = in.at[NSA_DOUT];
    in.at[NSA_DOUT] = (nsa_tensor){0};
    status = status ? status : expect_error(nsa_forward(ctx), NSA_ERR_STATE, "needs a load");
    status = status ? status : expect_error(nsa_prefill(ctx), NSA_ERR_STATE, "NSA_DECODE");
    status = status ? status : expect_error(nsa_decode(ctx), NSA_ERR_STATE, "NSA_DECODE");
    status = status ? status : expect_error(nsa_causal(ctx, 0), NSA_ERR_STATE, "NSA_WANT_CAUSAL");
    status = status ? status : nsa_load(ctx, &in);
    status = status ? status : expect_error(nsa_result(ctx, NSA_OUT, &out), NSA_ERR_STATE, "out ");
    if (!status && stage->backward)
        status = nsa_load_dout(ctx, &dout);
    status = status ? status : expect_error(nsa_backward(ctx), NSA_ERR_STATE, "backward needs");
    status = status ? status : nsa_forward(ctx);
    status = status ? status : nsa_result(ctx, NSA_OUT, &out);
    status = status ? status : expect_error(nsa_result(ctx, NSA_DQ, &out), NSA_ERR_STATE, "dq ");
    status =
        status ? status : expect_error(nsa_result(ctx, NSA_K_CMP, &out), NSA_ERR_INPUT, "k_cmp");
    status = status ? status : nsa_result(ctx, NSA_OUT, &out);
    out.shape[0]--;
    status = status ? status : expect_error(nsa_read(ctx, NSA_OUT, &out), NSA_ERR_INPUT, "shape");
    if (!status && stage->backward)
        status = nsa_backward(ctx);
    in.at[NSA_DOUT] = dout;
    tensors_free(&in);
    return status;
}

nsa_status judge_bad_input(const subject *s, const test_case *c) {
    nsa_config cfg = c->cfg;
    nsa_setup setup = {.flags = (s->stage->backward ? NSA_BACKWARD : 0u) | NSA_WANT_BRANCHES |
                                NSA_DEBUG_MEMORY};
    nsa_context *ctx = NULL;
    cfg.max_seqs = 2;
    nsa_status status = nsa_open(s->stage, &cfg, &setup, &ctx);
    status = status ? status : try_order(ctx, c, s->stage);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0] && !status; i++)
        status = try_broken(ctx, c, s->stage->arith, &wrong[i]);
    status = status ? status : nsa_check_memory(ctx);
    nsa_close(ctx);
    return status;
}
