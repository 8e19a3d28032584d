/** @file prop_graph_step.c
 *  @brief Property of a device's stage: a decode step as a graph, of slots that get full. */
#include "harness/on_device.h"
#include "harness/properties.h"
#include "harness/tensor.h"

#include <inttypes.h>

enum { STEPS = 3, SLOTS = 3 };

/* Two slots of three, filled from the same sequence, one with a token less. The third is filled
 * too, but takes no steps: its load and the next differ in the slot alone. */
static int32_t slots[2] = {0, 2};

static nsa_status fill_slots(nsa_context *ctx, const nsa_tensors *in, int64_t T) {
    static int32_t all[SLOTS] = {0, 1, 2};
    nsa_status status = NSA_OK;
    for (int a = 0; a < SLOTS && !status; a++) {
        nsa_tensors pack = rows_from(in, 0, T - STEPS - (a == 0));
        pack.at[NSA_ACTIVE] = (nsa_tensor){&all[a], NSA_I32, 1, {1}, NSA_HOST};
        status = nsa_load(ctx, &pack);
        status = status ? status : nsa_prefill(ctx);
    }
    return status;
}

/* The next tokens of both slots, which are neighbours; no weights. */
static nsa_tensors step_at(const nsa_tensors *in, int64_t T, int step) {
    nsa_tensors next = {0};
    const nsa_tensors rows = rows_from(in, T - STEPS - 1 + step, 2);
    for (int id = NSA_Q; id <= NSA_GATE; id++)
        next.at[id] = rows.at[id];
    next.at[NSA_BLOCK_IDX] = rows.at[NSA_BLOCK_IDX];
    next.at[NSA_ACTIVE] = (nsa_tensor){slots, NSA_I32, 1, {2}, NSA_HOST};
    return next;
}

/* Steps one by one, from tensors of the host. */
static nsa_status decode_all(nsa_context *ctx, const nsa_tensors *in, int64_t T,
                             nsa_tensor out[STEPS]) {
    nsa_status status = fill_slots(ctx, in, T);
    for (int i = 0; i < STEPS && !status; i++) {
        const nsa_tensors next = step_at(in, T, i);
        status = nsa_load_step(ctx, &next);
        status = status ? status : nsa_decode(ctx);
        status = status ? status : read_result(ctx, NSA_OUT, &out[i]);
    }
    return status;
}

static nsa_status expect_len(nsa_context *ctx, int64_t slot, int64_t want) {
    const int64_t len = nsa_slot_len(ctx, slot);
    return len == want ? NSA_OK
                       : nsa_fail(NSA_ERR_INPUT,
                                  "slot %" PRId64 " has %" PRId64 " tokens, expected %" PRId64,
                                  slot, len, want);
}

/* What a graph of a step needs. */
typedef struct stepper {
    const nsa_stage *stage;
    nsa_context *ctx;
    void *stream, *graph;
    nsa_tensors there, results; /* the step's tokens and its output, on the device */
} stepper;

/* The first row of a step as one of a single slot. */
static nsa_tensors first_row(const nsa_tensors *there, void *slot) {
    nsa_tensors one = rows_from(there, 0, 1);
    one.at[NSA_ACTIVE] = (nsa_tensor){slot, NSA_I32, 1, {1}, NSA_HOST};
    return one;
}

/* A step of other slots than before is refused in a capture, and not taken for loaded by the same
 * step after it. */
static nsa_status refuse_other_slots(stepper *x, int64_t T) {
    const nsa_tensors one = first_row(&x->there, &slots[1]);
    nsa_status status = nsa_load_step(x->ctx, &x->there);
    status = status ? status : x->stage->calls->capture(x->stream);
    if (status)
        return status;
    status = expect_error(nsa_load_step(x->ctx, &one), NSA_ERR_STATE,
                          "a graph holds device tensors only");
    const nsa_status ended = x->stage->calls->capture_end(x->stream, &x->graph);
    x->stage->calls->graph_free(x->graph);
    x->graph = NULL;
    status = status ? status : ended;
    status = status ? status : nsa_load_step(x->ctx, &one);
    status = status ? status : nsa_decode(x->ctx);
    status = status ? status : expect_len(x->ctx, 0, T - STEPS - 1);
    return status ? status : expect_len(x->ctx, 2, T - STEPS + 1);
}

/* A prefill that names no slots empties those that it does not fill. */
static nsa_status empty_others(stepper *x, const nsa_tensors *in) {
    const nsa_tensors pack = rows_from(in, 0, 1);
    nsa_status status = nsa_load(x->ctx, &pack);
    status = status ? status : nsa_prefill(x->ctx);
    status = status ? status : expect_len(x->ctx, 0, 1);
    return status ? status : expect_len(x->ctx, 2, 0);
}

/* The slots of a step are loaded before its capture, which appends nothing, and times nothing: a
 * graph's events cannot be asked. */
static nsa_status capture_step(stepper *x, const nsa_tensors *in, int64_t T) {
    const nsa_tensors first = step_at(in, T, 0);
    nsa_tensor *out = &x->results.at[NSA_OUT];
    nsa_phase phase;
    nsa_status status = x->stage->calls->stream_new(&x->stream);
    status = status ? status : nsa_set_stream(x->ctx, x->stream);
    status = status ? status : fill_slots(x->ctx, in, T);
    status = status ? status : device_copy(x->stage, &first, &x->there);
    if (in->at[NSA_BLOCK_IDX].dtype) { /* once is enough */
        status = status ? status : refuse_other_slots(x, T);
        status = status ? status : empty_others(x, in);
        status = status ? status : fill_slots(x->ctx, in, T);
    }
    status = status ? status : nsa_load_step(x->ctx, &x->there);
    status = status ? status : x->stage->calls->capture(x->stream);
    if (status)
        return status;
    status = nsa_load_step(x->ctx, &x->there);
    status = status ? status : nsa_decode(x->ctx);
    status = status ? status : nsa_result(x->ctx, NSA_OUT, out);
    const nsa_status ended = x->stage->calls->capture_end(x->stream, &x->graph);
    status = status ? status : ended;
    if (!status && nsa_phases(x->ctx, &phase, 1))
        status = nsa_fail(NSA_ERR_STATE, "a captured step has the time of another");
    return status;
}

/* The read is no part of this graph: a host tensor is read between two launches. */
static nsa_status launch_step(stepper *x, const nsa_tensors *in, int64_t T, int step,
                              nsa_tensor *out) {
    const nsa_tensors next = step_at(in, T, step);
    nsa_status status = device_fill(x->stage, &next, &x->there);
    status = status ? status : x->stage->calls->launch(x->graph, x->stream);
    status = status ? status : x->stage->calls->wait(x->stream);
    return status || !out ? status : read_result(x->ctx, NSA_OUT, out);
}

/* After all steps slot 2 is full: one more launch leaves it alone, and a later call says so,
 * once. */
static nsa_status overfill(stepper *x, const nsa_tensors *in, int64_t T) {
    nsa_status status = expect_len(x->ctx, 2, T);
    status = status ? status : expect_len(x->ctx, 0, T - 1);
    status = status ? status : launch_step(x, in, T, STEPS - 1, NULL);
    status = status ? status : expect_len(x->ctx, 2, T);
    status = status ? status : expect_len(x->ctx, 0, T);
    status = status ? status
                    : expect_error(nsa_load_step(x->ctx, &x->there), NSA_ERR_INPUT,
                                   "slot 2 was full in an earlier step");
    return status ? status : nsa_load_step(x->ctx, &x->there);
}

/* With NSA_CHECK_VALUES: slot 2 is full, which is no fault of its block list, and slot 0 may have
 * neither a gate of 1.5 nor a block that is none. */
static nsa_status check_step(stepper *x, nsa_config cfg, const nsa_tensors *in) {
    static const float gate = 1.5f, half = 0.5f;
    static const int32_t block = 1 << 30;
    const nsa_device_calls *calls = x->stage->calls;
    const nsa_setup setup = {.flags = NSA_DECODE | NSA_CHECK_VALUES};
    const nsa_tensors one = first_row(&x->there, &slots[0]);
    /* the lists of later steps name blocks that slots just filled do not have yet */
    const nsa_tensors first = step_at(in, cfg.max_seq_len, 0);
    const size_t last = (size_t)tensor_row(&one.at[NSA_GATE]) - 1;
    const int64_t T = cfg.max_seq_len;
    nsa_context *ctx = NULL;
    cfg.max_seq_len -= STEPS;
    nsa_status status = nsa_open(x->stage, &cfg, &setup, &ctx);
    status = status ? status : nsa_set_stream(ctx, x->stream);
    status = status ? status : fill_slots(ctx, in, T);
    status = status ? status : device_fill(x->stage, &first, &x->there);
    status = status ? status : nsa_load_step(ctx, &x->there);
    status =
        status ? status : expect_error(nsa_decode(ctx), NSA_ERR_INPUT, "slot 2 was full in an");
    status = status ? status : calls->copy((float *)one.at[NSA_GATE].data + last, &gate, 4);
    status = status ? status : expect_error(nsa_load_step(ctx, &one), NSA_ERR_INPUT, "gate[0,");
    status = status ? status : calls->copy((float *)one.at[NSA_GATE].data + last, &half, 4);
    status = status ? status : calls->copy(one.at[NSA_BLOCK_IDX].data, &block, 4);
    status = status ? status
                    : expect_error(nsa_load_step(ctx, &one), NSA_ERR_INPUT, "block_idx of row 0");
    nsa_close(ctx);
    return status;
}

/* Steps as a graph give the host's bits. */
static nsa_status try_steps(const nsa_stage *stage, const nsa_config *cfg, const nsa_tensors *in) {
    const int64_t T = cfg->max_seq_len;
    const nsa_setup setup = {.flags = NSA_DECODE | NSA_DEBUG_MEMORY};
    nsa_tensor want[STEPS] = {{0}}, got[STEPS] = {{0}};
    nsa_context *host = NULL;
    stepper x = {.stage = stage};
    nsa_status status = nsa_open(stage, cfg, &setup, &host);
    status = status ? status : decode_all(host, in, T, want);
    status = status ? status : nsa_open(stage, cfg, &setup, &x.ctx);
    status = status ? status : capture_step(&x, in, T);
    for (int i = 0; i < STEPS && !status; i++) {
        status = launch_step(&x, in, T, i, &got[i]);
        if (!status && !tensor_same(&got[i], &want[i]))
            status =
                nsa_fail(NSA_ERR_INPUT, "step %d of a graph has other bits than the host's", i);
    }
    status = status ? status : overfill(&x, in, T);
    if (in->at[NSA_BLOCK_IDX].dtype)
        status = status ? status : check_step(&x, *cfg, in);
    for (int i = 0; i < STEPS; i++) {
        tensor_free(&want[i]);
        tensor_free(&got[i]);
    }
    stage->calls->graph_free(x.graph);
    device_free(stage, &x.there);
    nsa_close(host);
    nsa_close(x.ctx);
    stage->calls->stream_free(x.stream);
    return status;
}

/* Once with blocks selected, once with lists given, which lie on the device for the graph. */
nsa_status judge_graph_step(const subject *s, const test_case *c) {
    nsa_config cfg = c->cfg;
    nsa_tensors in;
    cfg.max_seqs = SLOTS;
    cfg.max_seq_len = c->cfg.seq_len;
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    tensor_free(&in.at[NSA_DOUT]);
    tensor_free(&in.at[NSA_CU_SEQLENS]);
    status = status ? status : try_steps(s->stage, &cfg, &in);
    status = status ? status : draw_forced(c, &in);
    status = status ? status : try_steps(s->stage, &cfg, &in);
    tensors_free(&in);
    return status;
}
