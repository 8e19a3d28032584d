/** @file prop_memory.c
 *  @brief Property: everything is allocated in open, nothing in a call. */
#include "harness/properties.h"
#include "harness/tensor.h"

#include <string.h>

long (*harness_allocations)(void) = NULL;

static nsa_status check_count(long before, const char *call) {
    long count = harness_allocations() - before;
    if (count)
        return nsa_fail(NSA_ERR_MEMORY, "%s allocated %ld times; all memory is allocated in open",
                        call, count);
    return NSA_OK;
}

/* Count the allocations in load, forward and, where the stage has them, backward, prefill and a
 * decode step. */
static nsa_status count_calls(const nsa_stage *stage, nsa_context *ctx, const nsa_tensors *in,
                              nsa_tensors *step) {
    long before = harness_allocations();
    nsa_status status = nsa_load(ctx, in);
    status = status ? status : check_count(before, "load");
    status = status ? status : nsa_forward(ctx);
    status = status ? status : check_count(before, "forward");
    if (!status && stage->backward)
        status = nsa_backward(ctx);
    status = status ? status : check_count(before, "backward");
    if (!status && stage->prefill)
        status = nsa_prefill(ctx);
    status = status ? status : check_count(before, "prefill");
    if (status || !stage->decode)
        return status;
    status = nsa_load_step(ctx, step);
    status = status ? status : check_count(before, "load_step");
    status = status ? status : nsa_decode(ctx);
    return status ? status : check_count(before, "decode");
}

const char *no_malloc_cannot(const subject *s) {
    if (!harness_allocations)
        return "allocations are counted in build/judge only";
    if (s->stage->device) /* the device's library allocates in a launch */
        return "launches allocate where the stage cannot see it";
    return NULL;
}

nsa_status judge_no_malloc(const subject *s, const test_case *c) {
    nsa_setup setup = {.flags = (s->stage->backward ? NSA_BACKWARD : 0u) |
                                (s->stage->prefill ? NSA_DECODE : 0u) | NSA_WANT_BRANCHES |
                                NSA_WANT_IMPORTANCE};
    nsa_config cfg = c->cfg;
    nsa_tensors in, step = {0}, results = {0};
    nsa_context *ctx = NULL;
    int32_t active[16];
    int64_t A = case_sequences(c) < c->cfg.seq_len ? case_sequences(c) : c->cfg.seq_len;
    cfg.max_seq_len = case_max_len(c) + 1;
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    tensor_free(&in.at[NSA_BLOCK_IDX]);
    if (!s->stage->backward)
        tensor_free(&in.at[NSA_DOUT]);
    for (int id = NSA_Q; id <= NSA_GATE; id++) {
        step.at[id] = in.at[id];
        step.at[id].shape[0] = A;
    }
    for (int32_t a = 0; a < A; a++)
        active[a] = a;
    step.at[NSA_ACTIVE] = (nsa_tensor){active, NSA_I32, 1, {A}};
    status = status ? status : nsa_open(s->stage, &cfg, &setup, &ctx);
    status = status ? status : count_calls(s->stage, ctx, &in, &step);
    status = status ? status : nsa_load(ctx, &in);
    status = status ? status : nsa_forward(ctx); /* a stage that computes nothing must not pass */
    status = status ? status : read_result(ctx, NSA_OUT, &results.at[NSA_OUT]);
    status = status ? status : all_finite(&results);
    nsa_close(ctx);
    tensors_free(&results);
    tensors_free(&in);
    return status;
}
