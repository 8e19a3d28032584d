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

/* What the calls read. */
typedef struct calls {
    nsa_tensors in, step;
} calls;

static nsa_status make_calls(const nsa_stage *stage, nsa_context *ctx, const calls *x) {
    nsa_status status = nsa_load(ctx, &x->in);
    status = status ? status : nsa_forward(ctx);
    if (!status && stage->backward)
        status = nsa_backward(ctx);
    if (!status && stage->prefill)
        status = nsa_prefill(ctx);
    if (status || !stage->decode)
        return status;
    status = nsa_load_step(ctx, &x->step);
    return status ? status : nsa_decode(ctx);
}

/* Count the allocations in load, forward and, where the stage has them, backward, prefill and a
 * decode step. */
static nsa_status count_calls(const nsa_stage *stage, nsa_context *ctx, const calls *x) {
    long before = harness_allocations();
    nsa_status status = nsa_load(ctx, &x->in);
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
    status = nsa_load_step(ctx, &x->step);
    status = status ? status : check_count(before, "load_step");
    status = status ? status : nsa_decode(ctx);
    return status ? status : check_count(before, "decode");
}

const char *no_malloc_cannot(const subject *s) {
    if (s->stage->device) /* its runtime's own host memory is not the stage's: device memory is */
        return s->stage->free_memory ? NULL : "the stage does not tell its device's free memory";
    return harness_allocations ? NULL : "allocations are counted in build/judge only";
}

/* A context of a device's stage makes all calls, twice. @return its use of device memory in
 * `taken`: free bytes before the first call less those after the last */
static nsa_status calls_take(const nsa_stage *stage, const nsa_config *cfg, const nsa_setup *setup,
                             const calls *x, int64_t *taken) {
    nsa_context *ctx = NULL;
    nsa_status status = nsa_open(stage, cfg, setup, &ctx);
    const size_t before = status ? 0 : stage->free_memory();
    for (int i = 0; i < 2 && !status; i++)
        status = make_calls(stage, ctx, x);
    *taken = status ? 0 : (int64_t)before - (int64_t)stage->free_memory();
    nsa_close(ctx);
    if (!status && !before)
        return nsa_fail(NSA_ERR_DEVICE, "free_memory() is 0 after open");
    return status;
}

/* Nothing is allocated on the device after open. A kernel's first launch takes memory too, so the
 * first context, which launches them all, does not count. Other programs may use the device, and
 * move its free memory either way: a stage that allocates takes some each time. */
static nsa_status take_nothing(const nsa_stage *stage, const nsa_config *cfg,
                               const nsa_setup *setup, const calls *x) {
    int64_t taken = 0;
    nsa_status status = calls_take(stage, cfg, setup, x, &taken);
    for (int i = 0; i < 20 && !status; i++) {
        status = calls_take(stage, cfg, setup, x, &taken);
        if (!status && taken == 0)
            return NSA_OK;
    }
    return status ? status
                  : nsa_fail(NSA_ERR_MEMORY,
                             "two rounds of calls took %lld bytes of device memory; all memory is "
                             "allocated in open",
                             (long long)taken);
}

nsa_status judge_no_malloc(const subject *s, const test_case *c) {
    nsa_setup setup = {.flags = (s->stage->backward ? NSA_BACKWARD : 0u) |
                                (s->stage->prefill ? NSA_DECODE : 0u) | NSA_WANT_BRANCHES |
                                NSA_WANT_IMPORTANCE};
    nsa_config cfg = c->cfg;
    calls x = {0};
    nsa_tensors results = {0};
    nsa_context *ctx = NULL;
    int32_t active[16];
    int64_t A = case_sequences(c) < c->cfg.seq_len ? case_sequences(c) : c->cfg.seq_len;
    cfg.max_seq_len = case_max_len(c) + 1;
    nsa_status status = case_inputs(c, s->stage->arith, &x.in);
    tensor_free(&x.in.at[NSA_BLOCK_IDX]);
    if (!s->stage->backward)
        tensor_free(&x.in.at[NSA_DOUT]);
    for (int id = NSA_Q; id <= NSA_GATE; id++) {
        x.step.at[id] = x.in.at[id];
        x.step.at[id].shape[0] = A;
    }
    for (int32_t a = 0; a < A; a++)
        active[a] = a;
    x.step.at[NSA_ACTIVE] = (nsa_tensor){active, NSA_I32, 1, {A}, NSA_HOST};
    if (s->stage->device)
        status = status ? status : take_nothing(s->stage, &cfg, &setup, &x);
    status = status ? status : nsa_open(s->stage, &cfg, &setup, &ctx);
    if (!s->stage->device)
        status = status ? status : count_calls(s->stage, ctx, &x);
    status = status ? status : nsa_load(ctx, &x.in);
    status = status ? status : nsa_forward(ctx); /* a stage that computes nothing must not pass */
    status = status ? status : read_result(ctx, NSA_OUT, &results.at[NSA_OUT]);
    status = status ? status : all_finite(&results);
    nsa_close(ctx);
    tensors_free(&results);
    tensors_free(&x.in);
    return status;
}
