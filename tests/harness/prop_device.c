/** @file prop_device.c
 *  @brief Properties of a device's stage: a decode step as a graph, and what is refused. */
#include "harness/on_device.h"
#include "harness/properties.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { STEPS = 3, SLOTS = 3 };

/* Rows first..first+count-1 of a case's one sequence. */
static nsa_tensors rows_from(const nsa_tensors *in, int64_t first, int64_t count) {
    nsa_tensors view = *in;
    for (int id = NSA_Q; id <= NSA_GATE; id++) {
        nsa_tensor *t = &view.at[id];
        t->data = (char *)t->data + (size_t)(first * tensor_row(t)) * nsa_dtype_size(t->dtype);
        t->shape[0] = count;
    }
    return view;
}

/* Two slots of three, filled from the same sequence, one with a token less. */
static int32_t slots[2] = {0, 2};

static nsa_status fill_slots(nsa_context *ctx, const nsa_tensors *in, int64_t T) {
    nsa_status status = NSA_OK;
    for (int a = 0; a < 2 && !status; a++) {
        nsa_tensors pack = rows_from(in, 0, T - STEPS - 1 + a);
        pack.at[NSA_ACTIVE] = (nsa_tensor){&slots[a], NSA_I32, 1, {1}, NSA_HOST};
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

/* What a graph of a step needs. */
typedef struct stepper {
    const nsa_stage *stage;
    nsa_context *ctx;
    void *stream, *graph;
    nsa_tensors there; /* the step's tokens, on the device */
    nsa_tensor out;    /* its output, there too */
} stepper;

static size_t output_bytes(const stepper *x) {
    return (size_t)nsa_count(&x->out) * nsa_dtype_size(x->out.dtype);
}

/* The slots of a step are loaded before its capture, which appends nothing.
 *  @param out  the shape and type of its output */
static nsa_status capture_step(stepper *x, const nsa_tensors *in, int64_t T,
                               const nsa_tensor *out) {
    const nsa_tensors first = step_at(in, T, 0);
    x->out = *out;
    x->out.place = NSA_DEVICE;
    x->out.data = NULL;
    nsa_status status = x->stage->calls->alloc(&x->out.data, output_bytes(x));
    status = status ? status : x->stage->calls->stream_new(&x->stream);
    status = status ? status : nsa_set_stream(x->ctx, x->stream);
    status = status ? status : fill_slots(x->ctx, in, T);
    status = status ? status : device_copy(x->stage, &first, &x->there);
    status = status ? status : nsa_load_step(x->ctx, &x->there);
    status = status ? status : x->stage->calls->capture(x->stream);
    status = status ? status : nsa_load_step(x->ctx, &x->there);
    status = status ? status : nsa_decode(x->ctx);
    status = status ? status : nsa_read(x->ctx, NSA_OUT, &x->out);
    const nsa_status ended = x->stage->calls->capture_end(x->stream, &x->graph);
    return status ? status : ended;
}

/* Launch the graph on the tokens of a step, and fetch its output. */
static nsa_status launch_step(stepper *x, const nsa_tensors *in, int64_t T, int step,
                              nsa_tensor *out) {
    const nsa_tensors next = step_at(in, T, step);
    nsa_status status = device_fill(x->stage, &next, &x->there);
    status = status ? status : x->stage->calls->launch(x->graph, x->stream);
    status = status ? status : x->stage->calls->wait(x->stream);
    if (status || !out)
        return status;
    *out = x->out;
    out->place = NSA_HOST;
    status = tensor_alloc(out);
    return status ? status : x->stage->calls->copy(out->data, x->out.data, output_bytes(x));
}

/* Load a pack of another geometry, and fill the slot that takes no part in the steps: a graph of a
 * step stays valid. */
static nsa_status prefill_beside(nsa_context *ctx, const nsa_tensors *in, int64_t T) {
    static int32_t slot = 1;
    nsa_tensors pack = rows_from(in, 0, T);
    pack.at[NSA_ACTIVE] = (nsa_tensor){&slot, NSA_I32, 1, {1}, NSA_HOST};
    const nsa_status status = nsa_load(ctx, &pack);
    return status ? status : nsa_prefill(ctx);
}

static nsa_status expect_len(nsa_context *ctx, int64_t slot, int64_t want) {
    const int64_t len = nsa_slot_len(ctx, slot);
    return len == want ? NSA_OK
                       : nsa_fail(NSA_ERR_INPUT,
                                  "slot %" PRId64 " has %" PRId64 " tokens, expected %" PRId64,
                                  slot, len, want);
}

/* An error of `status` whose text holds `text` must have come. */
static nsa_status expect_error(nsa_status got, nsa_status want, const char *text) {
    if (got == want && strstr(nsa_last_error(), text))
        return NSA_OK;
    return nsa_fail(NSA_ERR_INPUT, "expected %s saying \"%s\", got %s \"%.200s\"",
                    nsa_status_name(want), text, nsa_status_name(got), got ? nsa_last_error() : "");
}

/* After all steps slot 2 is full: one more launch leaves it alone, and a later call says so. */
static nsa_status overfill(stepper *x, const nsa_tensors *in, int64_t T) {
    nsa_status status = expect_len(x->ctx, 2, T);
    status = status ? status : expect_len(x->ctx, 0, T - 1);
    status = status ? status : launch_step(x, in, T, STEPS - 1, NULL);
    status = status ? status : expect_len(x->ctx, 2, T);
    status = status ? status : expect_len(x->ctx, 0, T);
    status = status ? status
                    : expect_error(nsa_load_step(x->ctx, &x->there), NSA_ERR_INPUT,
                                   "slot 2 was full in an earlier step");
    return status;
}

nsa_status judge_graph_step(const subject *s, const test_case *c) {
    nsa_config cfg = c->cfg;
    const int64_t T = c->cfg.seq_len;
    nsa_setup setup = {.flags = NSA_DECODE | NSA_DEBUG_MEMORY};
    nsa_tensors in;
    nsa_tensor want[STEPS] = {{0}}, got[STEPS] = {{0}};
    nsa_context *host = NULL;
    stepper x = {.stage = s->stage};
    cfg.max_seqs = SLOTS;
    cfg.max_seq_len = T;
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    tensor_free(&in.at[NSA_DOUT]);
    tensor_free(&in.at[NSA_CU_SEQLENS]);
    status = status ? status : nsa_open(s->stage, &cfg, &setup, &host);
    status = status ? status : decode_all(host, &in, T, want);
    status = status ? status : nsa_open(s->stage, &cfg, &setup, &x.ctx);
    status = status ? status : capture_step(&x, &in, T, &want[0]);
    for (int i = 0; i < STEPS && !status; i++) {
        status = launch_step(&x, &in, T, i, &got[i]);
        if (!status && !tensor_same(&got[i], &want[i]))
            status =
                nsa_fail(NSA_ERR_INPUT, "step %d of a graph has other bits than the host's", i);
        status = status || i ? status : prefill_beside(x.ctx, &in, T);
    }
    status = status ? status : overfill(&x, &in, T);
    for (int i = 0; i < STEPS; i++) {
        tensor_free(&want[i]);
        tensor_free(&got[i]);
    }
    s->stage->calls->graph_free(x.graph);
    device_free(s->stage, &x.there);
    s->stage->calls->free(x.out.data);
    nsa_close(host);
    nsa_close(x.ctx);
    s->stage->calls->stream_free(x.stream);
    tensors_free(&in);
    return status;
}

/* ------------------------------------------------------------------ refusals */

static nsa_status refused(nsa_context *ctx, const nsa_tensors *in, const char *text) {
    return expect_error(nsa_load(ctx, in), NSA_ERR_INPUT, text);
}

/* A stage of the CPU has no device and no streams. */
static nsa_status refuse_device(nsa_context *ctx, const nsa_tensors *in) {
    nsa_tensors bad = *in;
    bad.at[NSA_K_SLC].place = NSA_DEVICE;
    nsa_status status = refused(ctx, &bad, "k_slc is on a device, but this stage runs on the CPU");
    return status ? status
                  : expect_error(nsa_set_stream(ctx, NULL), NSA_ERR_UNSUPPORTED, "no streams");
}

/* Pointers that are not what they say. */
static nsa_status refuse_pointers(const nsa_stage *stage, nsa_context *ctx, const nsa_tensors *in,
                                  const nsa_tensors *there) {
    nsa_tensors bad = *there;
    nsa_tensor *k = &bad.at[NSA_K_SLC];
    void *memory = NULL;
    k->data = in->at[NSA_K_SLC].data;
    nsa_status status = refused(ctx, &bad, "k_slc says that it is on the device");
    k->data = (char *)there->at[NSA_K_SLC].data + 1;
    status = status ? status : refused(ctx, &bad, "no multiple of its element's 4 bytes");
    status = status ? status : stage->calls->alloc(&memory, 16);
    k->data = memory;
    status = status ? status : refused(ctx, &bad, "its last byte");
    stage->calls->free(memory);
    status = status ? status : refused(ctx, &bad, "its first byte");
    k->data = there->at[NSA_K_SLC].data;
    k->place = (nsa_place)7;
    status = status ? status : refused(ctx, &bad, "k_slc has place 7, which is unknown");
    k->place = NSA_DEVICE;
    bad.at[NSA_CU_SEQLENS] = (nsa_tensor){k->data, NSA_I32, 1, {2}, NSA_DEVICE};
    return status ? status : refused(ctx, &bad, "cu_seqlens is on the device, but the host has");
}

/* Memory and streams of another device, where there is one. */
static nsa_status refuse_others(const nsa_stage *stage, nsa_context *ctx,
                                const nsa_tensors *there) {
    nsa_tensors bad = *there;
    nsa_tensor *q = &bad.at[NSA_Q];
    void *stream = NULL;
    if (stage->calls->use(1))
        return NSA_OK;
    q->data = NULL;
    nsa_status status = stage->calls->alloc(&q->data, (size_t)nsa_count(q) * 4);
    status = status ? status : stage->calls->stream_new(&stream);
    stage->calls->use(0);
    status = status ? status : refused(ctx, &bad, "q is on device 1, this context is on device 0");
    status = status
                 ? status
                 : expect_error(nsa_set_stream(ctx, stream), NSA_ERR_INPUT, "is not of device 0");
    stage->calls->use(1);
    stage->calls->free(q->data);
    stage->calls->stream_free(stream);
    stage->calls->use(0);
    return status;
}

/* What would have to wait is no part of a graph. The pack `there` was loaded before. */
static nsa_status refuse_in_capture(const nsa_stage *stage, nsa_context *ctx, const nsa_tensors *in,
                                    const nsa_tensors *there) {
    static const char *const text = "a graph holds device tensors only";
    nsa_tensors host = *in, shorter = rows_from(there, 0, there->at[NSA_Q].shape[0] - 1);
    nsa_tensor out = {0};
    void *stream = NULL, *graph = NULL;
    host.at[NSA_BLOCK_IDX] = (nsa_tensor){0}; /* those of check_values() */
    nsa_status status = stage->calls->stream_new(&stream);
    status = status ? status : nsa_set_stream(ctx, stream);
    shorter.at[NSA_BLOCK_IDX] = (nsa_tensor){0};
    status = status ? status : nsa_load(ctx, there);
    status = status ? status : nsa_forward(ctx);
    status = status ? status : nsa_result(ctx, NSA_OUT, &out);
    status = status ? status : tensor_alloc(&out);
    status = status ? status : stage->calls->capture(stream);
    status = status ? status : expect_error(nsa_read(ctx, NSA_OUT, &out), NSA_ERR_STATE, text);
    status = status ? status : expect_error(nsa_load(ctx, &host), NSA_ERR_STATE, text);
    status = status ? status : expect_error(nsa_load(ctx, &shorter), NSA_ERR_STATE, text);
    (void)stage->calls->capture_end(stream, &graph);
    stage->calls->graph_free(graph);
    tensor_free(&out);
    status = status ? status : nsa_load(ctx, there); /* the context stays usable */
    status = status ? status : nsa_forward(ctx);
    status = status ? status : stage->calls->wait(stream);
    stage->calls->stream_free(stream);
    return status;
}

/* NSA_OK if the outputs `got` and `before` are the same bit by bit, but for head 1 of row 0, which
 * must have other bits. */
static nsa_status expect_one_head(const nsa_tensor *got, const nsa_tensor *before) {
    const size_t head = (size_t)got->shape[2] * nsa_dtype_size(got->dtype);
    const size_t all = (size_t)nsa_count(got) * nsa_dtype_size(got->dtype);
    const char *g = got->data, *b = before->data;
    if (memcmp(g, b, head) || memcmp(g + 2 * head, b + 2 * head, all - 2 * head))
        return nsa_fail(NSA_ERR_INPUT, "a bad gate changes the output of other heads or rows");
    return memcmp(g + head, b + head, head)
               ? NSA_OK
               : nsa_fail(NSA_ERR_INPUT, "a bad gate does not reach its own output");
}

/* NSA_OK if the device has the inputs q to gate that the host has. */
static nsa_status expect_inputs(const nsa_stage *stage, const nsa_tensors *in,
                                const nsa_tensors *there) {
    nsa_tensors after;
    nsa_status status = device_fetch(stage, there, &after);
    for (int id = NSA_Q; id <= NSA_GATE && !status; id++) {
        if (!tensor_same(&after.at[id], &in->at[id]))
            status = nsa_fail(NSA_ERR_INPUT, "a bad gate changes %s", nsa_name((nsa_id)id));
    }
    tensors_free(&after);
    return status;
}

/* Unchecked gates of the window branch, above 1 and NaN: they reach their own output alone, and
 * leave the inputs and the context as they were. */
static nsa_status try_bad_gates(const nsa_stage *stage, nsa_context *ctx, nsa_tensors *in,
                                nsa_tensors *there) {
    const int64_t own = 5; /* of row 0, head 1 */
    const double good = tensor_get(&in->at[NSA_GATE], own);
    const double gates[] = {good, 1.5, 3, NAN, good};
    nsa_tensor out[5] = {{0}};
    nsa_status status = NSA_OK;
    for (int i = 0; i < 5 && !status; i++) {
        tensor_set(&in->at[NSA_GATE], own, gates[i]);
        status = device_fill(stage, in, there);
        status = status ? status : nsa_load(ctx, there);
        status = status ? status : nsa_forward(ctx);
        status = status ? status : read_result(ctx, NSA_OUT, &out[i]);
        status = status || !i ? status : expect_one_head(&out[i], &out[i - 1]);
        status = status ? status : expect_inputs(stage, in, there);
    }
    if (!status && !tensor_same(&out[4], &out[0]))
        status = nsa_fail(NSA_ERR_INPUT, "a bad gate changes the next load's output");
    for (int i = 0; i < 5; i++)
        tensor_free(&out[i]);
    return status;
}

/* A gate above 1 and a list with a block twice, on the device: errors with NSA_CHECK_VALUES.
 * Without it the list loses what names no block; try_bad_gates() has the gate. */
static nsa_status check_values(const nsa_stage *stage, nsa_context *ctx, nsa_tensors *in,
                               nsa_tensors *there, int checked) {
    nsa_tensor *gate = &in->at[NSA_GATE], *idx = &in->at[NSA_BLOCK_IDX], list = {0};
    const int64_t n = idx->shape[2], rows = nsa_count(idx) / n;
    nsa_status status = NSA_OK;
    tensor_set(gate, 4, 1.5);
    status = device_fill(stage, in, there);
    if (checked)
        status = status ? status : refused(ctx, there, "gate[0,1,1] = 1.5 is not in [0,1]");
    tensor_set(gate, 4, 0.5);
    memset(idx->data, 0xFF, (size_t)nsa_count(idx) * sizeof(int32_t));
    for (int64_t i = 0; i < rows; i++)
        tensor_ints(idx)[i * n] = tensor_ints(idx)[i * n + n - 1] = 0;
    tensor_ints(idx)[(rows - 1) * n + 1] = 1 << 30;
    status = status ? status : device_fill(stage, in, there);
    if (checked)
        return status ? status : refused(ctx, there, "block_idx of row 0 holds a block twice");
    status = status ? status : nsa_load(ctx, there);
    status = status ? status : nsa_forward(ctx);
    status = status ? status : read_result(ctx, NSA_BLOCK_IDX, &list);
    for (int64_t i = 0; i < rows * n && !status; i++) {
        if (tensor_ints(&list)[i] != (i % n ? -1 : 0))
            status = nsa_fail(NSA_ERR_INPUT, "entry %" PRId64 " of row %" PRId64 " is %d", i % n,
                              i / n, tensor_ints(&list)[i]);
    }
    tensor_free(&list);
    return status;
}

nsa_status judge_bad_device(const subject *s, const test_case *c) {
    nsa_tensors in, there = {0};
    nsa_status status = case_inputs(c, NSA_FLOAT32, &in);
    tensor_free(&in.at[NSA_DOUT]);
    status = status ? status : draw_forced(c, &in);
    if (!status && s->stage->calls)
        status = device_copy(s->stage, &in, &there);
    for (int checked = 0; checked < 2 && !status; checked++) {
        const nsa_setup setup = {.flags = checked ? NSA_CHECK_VALUES : 0u};
        nsa_context *ctx = NULL;
        status = nsa_open(s->stage, &c->cfg, &setup, &ctx);
        if (!s->stage->calls) {
            status = status ? status : refuse_device(ctx, &in);
            nsa_close(ctx);
            continue;
        }
        status = status ? status : device_fill(s->stage, &in, &there);
        status = status ? status : refuse_pointers(s->stage, ctx, &in, &there);
        status = status ? status : refuse_others(s->stage, ctx, &there);
        status = status ? status : check_values(s->stage, ctx, &in, &there, checked);
        if (!checked)
            status = status ? status : try_bad_gates(s->stage, ctx, &in, &there);
        if (!checked)
            status = status ? status : refuse_in_capture(s->stage, ctx, &in, &there);
        nsa_close(ctx);
    }
    if (s->stage->calls)
        device_free(s->stage, &there);
    tensors_free(&in);
    return status;
}
