/** @file prop_device.c
 *  @brief Property: what a stage refuses of devices, streams, captures and values there. */
#include "harness/on_device.h"
#include "harness/properties.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* A result is read to the device only where kernels can write. */
static nsa_status refuse_reads(const nsa_stage *stage, nsa_context *ctx, const nsa_tensors *in,
                               const nsa_tensors *there) {
    nsa_tensor out = {0};
    void *memory = NULL;
    nsa_status status = nsa_load(ctx, there);
    status = status ? status : nsa_forward(ctx);
    status = status ? status : nsa_result(ctx, NSA_OUT, &out);
    status = status ? status : stage->calls->alloc(&memory, 16);
    out.place = NSA_DEVICE;
    out.data = in->at[NSA_Q].data;
    status = status ? status
                    : expect_error(nsa_read(ctx, NSA_OUT, &out), NSA_ERR_INPUT,
                                   "out says that it is on the device");
    out.data = memory;
    status = status ? status
                    : expect_error(nsa_read(ctx, NSA_OUT, &out), NSA_ERR_INPUT, "its last byte");
    stage->calls->free(memory);
    return status;
}

/* Memory and streams of another device, where there is one; the simulator has one on request. */
static nsa_status refuse_others(const nsa_stage *stage, nsa_context *ctx,
                                const nsa_tensors *there) {
    nsa_tensors bad = *there;
    nsa_tensor *q = &bad.at[NSA_Q];
    void *stream = NULL;
    if (setenv("NSA_SIMT_DEVICES", "2", 1) || stage->calls->use(1))
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

/* Rows that a capture refused are not taken for loaded after it: `all` is the output of all. */
static nsa_status rows_of_refused(nsa_context *ctx, const nsa_tensors *there,
                                  const nsa_tensor *all) {
    const size_t bytes = (size_t)tensor_row(all) * sizeof(float);
    const int64_t row = *tensor_ints(&there->at[NSA_ROWS]);
    nsa_tensor one = {0};
    nsa_status status = nsa_load(ctx, there);
    status = status ? status : nsa_forward(ctx);
    status = status ? status : read_result(ctx, NSA_OUT, &one);
    if (!status && memcmp(one.data, (char *)all->data + (size_t)row * bytes, bytes) != 0)
        status =
            nsa_fail(NSA_ERR_INPUT, "after a refused capture row %" PRId64 " has other bits", row);
    tensor_free(&one);
    return status;
}

/* A load without lists selects again: the last row has more blocks than the lists' one. */
static nsa_status select_again(nsa_context *ctx, const nsa_tensors *there) {
    nsa_tensors in = *there;
    nsa_tensor list = {0};
    in.at[NSA_BLOCK_IDX] = (nsa_tensor){0};
    nsa_status status = nsa_load(ctx, &in);
    status = status ? status : nsa_forward(ctx);
    status = status ? status : read_result(ctx, NSA_BLOCK_IDX, &list);
    if (!status && tensor_ints(&list)[nsa_count(&list) - list.shape[2] + 1] < 0)
        status = nsa_fail(NSA_ERR_INPUT, "a load without lists has those of the load before");
    tensor_free(&list);
    return status;
}

/* What would have to wait is no part of a graph. The pack `there` was loaded before. */
static nsa_status refuse_in_capture(const nsa_stage *stage, nsa_context *ctx, const nsa_tensors *in,
                                    const nsa_tensors *there) {
    static const char *const text = "a graph holds device tensors only";
    nsa_tensors host = *in, shorter = rows_from(there, 0, there->at[NSA_Q].shape[0] - 1);
    nsa_tensors other = *there;
    int32_t last = (int32_t)shorter.at[NSA_Q].shape[0];
    nsa_tensor out = {0};
    void *stream = NULL, *graph = NULL;
    host.at[NSA_BLOCK_IDX] = (nsa_tensor){0}; /* those of check_values() */
    nsa_status status = stage->calls->stream_new(&stream);
    status = status ? status : nsa_set_stream(ctx, stream);
    shorter.at[NSA_BLOCK_IDX] = (nsa_tensor){0};
    status = status ? status : nsa_load(ctx, there);
    status = status ? status : nsa_forward(ctx);
    status = status ? status : read_result(ctx, NSA_OUT, &out);
    status = status ? status : stage->calls->capture(stream);
    status = status ? status : expect_error(nsa_read(ctx, NSA_OUT, &out), NSA_ERR_STATE, text);
    status = status ? status : expect_error(nsa_load(ctx, &host), NSA_ERR_STATE, text);
    status = status ? status : expect_error(nsa_load(ctx, &shorter), NSA_ERR_STATE, text);
    other.at[NSA_ROWS] = (nsa_tensor){&last, NSA_I32, 1, {1}, NSA_HOST};
    status = status ? status : expect_error(nsa_load(ctx, &other), NSA_ERR_STATE, text);
    (void)stage->calls->capture_end(stream, &graph);
    stage->calls->graph_free(graph);
    status = status ? status : rows_of_refused(ctx, &other, &out);
    status = status ? status : stage->calls->wait(stream);
    tensor_free(&out);
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

/* The last gate above 1, and a list with a block twice, on the device: an error with
 * NSA_CHECK_VALUES. Without it the list loses what names no block; try_bad_gates() has the gate. */
static nsa_status check_values(const nsa_stage *stage, nsa_context *ctx, nsa_tensors *in,
                               nsa_tensors *there, int checked) {
    nsa_tensor *gate = &in->at[NSA_GATE], *idx = &in->at[NSA_BLOCK_IDX], list = {0};
    const int64_t heads = idx->shape[1], n = idx->shape[2], rows = nsa_count(idx) / n;
    const int64_t last = nsa_count(gate) - 1;
    char text[64];
    nsa_status status = NSA_OK;
    snprintf(text, sizeof text, "gate[%d,%d,2] = 1.5 is not in", (int)gate->shape[0] - 1,
             (int)gate->shape[1] - 1);
    tensor_set(gate, last, 1.5);
    status = device_fill(stage, in, there);
    if (checked)
        status = status ? status : refused(ctx, there, text);
    tensor_set(gate, last, 0.5);
    memset(idx->data, 0xFF, (size_t)nsa_count(idx) * sizeof(int32_t));
    for (int64_t i = 0; i < rows; i++)
        tensor_ints(idx)[i * n] = tensor_ints(idx)[i * n + (i < 2 * heads ? 0 : n - 1)] = 0;
    tensor_ints(idx)[(rows - 1) * n + 1] = 1 << 30;
    status = status ? status : device_fill(stage, in, there);
    if (checked)
        return status ? status : refused(ctx, there, "block_idx of row 2, counting rows");
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
            status = status ? status : select_again(ctx, &there);
        if (!checked)
            status = status ? status : refuse_reads(s->stage, ctx, &in, &there);
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
