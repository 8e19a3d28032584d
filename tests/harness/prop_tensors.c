/** @file prop_tensors.c
 *  @brief Properties: bfloat16 tensors, tensors on a device, a caller's stream and graphs give the
 *  bits that float32 tensors of the host give. */
#include "common/pool.h"
#include "harness/on_device.h"
#include "harness/properties.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A context as run_stage() opens it, so that its results are the same. */
static nsa_status open_all(const nsa_stage *stage, const nsa_config *cfg, const nsa_tensors *in,
                           nsa_context **ctx) {
    const nsa_setup setup = {.flags = NSA_DEBUG_MEMORY | (stage->backward ? NSA_BACKWARD : 0u) |
                                      NSA_WANT_BRANCHES | NSA_WANT_IMPORTANCE,
                             .max_rows = row_count(in)};
    return nsa_open(stage, cfg, &setup, ctx);
}

static nsa_status run_all(const nsa_stage *stage, nsa_context *ctx, const nsa_tensors *in) {
    nsa_status status = nsa_load(ctx, in);
    status = status ? status : nsa_forward(ctx);
    return status || !stage->backward ? status : nsa_backward(ctx);
}

/* The results `got` against `want`, bit by bit; bfloat16 ones against the nearest of `want`'s. */
static nsa_status compare_bits(const char *what, const nsa_tensors *got, const nsa_tensors *want) {
    int compared = 0;
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        const nsa_tensor *g = &got->at[id], *w = &want->at[id];
        if (!w->dtype)
            continue;
        int same = g->dtype == NSA_BF16 ? nsa_count(g) == nsa_count(w) : tensor_same(g, w);
        for (int64_t i = 0; g->dtype == NSA_BF16 && same && i < nsa_count(g); i++) {
            nsa_tensor one = {.dtype = NSA_BF16};
            uint16_t bits;
            one.data = &bits;
            tensor_set(&one, 0, tensor_get(w, i));
            same = bits == ((const uint16_t *)g->data)[i];
        }
        if (!same)
            return nsa_fail(NSA_ERR_INPUT,
                            "%s: %s has other bits than from float32 tensors of the "
                            "host",
                            what, nsa_name((nsa_id)id));
        compared++;
    }
    return compared > 1 ? NSA_OK : nsa_fail(NSA_ERR_INPUT, "%s: no results", what);
}

/* Float inputs that bfloat16 can hold, the same as bfloat16 tensors, and what comes of them. */
typedef struct bf16_pair {
    nsa_tensors in, bf16, want;
} bf16_pair;

static nsa_status make_bf16_pair(const subject *s, const test_case *c, bf16_pair *h) {
    memset(h, 0, sizeof *h);
    nsa_status status = case_inputs(c, NSA_BFLOAT16, &h->in); /* weights are not rounded */
    if (!s->stage->backward)
        tensor_free(&h->in.at[NSA_DOUT]);
    status = status ? status : tensors_to_bf16(&h->in, &h->bf16);
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        nsa_tensor *t = &h->in.at[id];
        for (int64_t i = 0; t->dtype == NSA_F32 && i < nsa_count(t); i++)
            tensor_set(t, i, tensor_get(&h->bf16.at[id], i));
    }
    return status ? status : run_stage(s->stage, &c->cfg, &h->in, RUN_BACKWARD, &h->want);
}

static void free_bf16_pair(bf16_pair *h) {
    tensors_free(&h->in);
    tensors_free(&h->bf16);
    tensors_free(&h->want);
}

/* Read every result as bfloat16, to the host. */
static nsa_status read_as_bf16(nsa_context *ctx, const nsa_tensors *want, nsa_tensors *got) {
    nsa_status status = NSA_OK;
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        nsa_tensor *t = &got->at[id];
        if (!want->at[id].dtype)
            continue;
        *t = want->at[id];
        t->dtype = t->dtype == NSA_I32 ? NSA_I32 : NSA_BF16;
        status = tensor_alloc(t);
        status = status ? status : nsa_read(ctx, (nsa_id)id, t);
        if (!status && !tensor_fences_intact(t))
            status = nsa_fail(NSA_ERR_MEMORY, "reading %s as bfloat16 wrote outside its tensor",
                              nsa_name((nsa_id)id));
    }
    return status;
}

nsa_status judge_bfloat16(const subject *s, const test_case *c) {
    bf16_pair h;
    nsa_tensors got = {0};
    nsa_context *ctx = NULL;
    nsa_status status = make_bf16_pair(s, c, &h);
    status = status ? status : open_all(s->stage, &c->cfg, &h.bf16, &ctx);
    status = status ? status : run_all(s->stage, ctx, &h.bf16);
    status = status ? status : read_as_bf16(ctx, &h.want, &got);
    status = status ? status : compare_bits("bfloat16 tensors", &got, &h.want);
    status = status ? status : nsa_check_memory(ctx);
    nsa_close(ctx);
    tensors_free(&got);
    free_bf16_pair(&h);
    return status;
}

/* Run with device tensors on a stream of ours, read to the device, compare. */
static nsa_status run_there(const nsa_stage *stage, nsa_context *ctx, const nsa_tensors *in,
                            const nsa_tensors *want, int bf16) {
    nsa_tensors there = {0}, results = {0}, got = {0};
    void *stream = NULL;
    nsa_status status = stage->calls->stream_new(&stream);
    status = status ? status : nsa_set_stream(ctx, stream);
    status = status ? status : device_copy(stage, in, &there);
    status = status ? status : run_all(stage, ctx, &there);
    status = status ? status : device_results(stage, ctx, bf16, &results);
    status = status ? status : device_read(ctx, &results);
    status = status ? status : stage->calls->wait(stream);
    status = status ? status : device_fetch(stage, &results, &got);
    status = status ? status
                    : compare_bits(bf16 ? "bfloat16 on the device" : "on the device", &got, want);
    device_free(stage, &there);
    device_free(stage, &results);
    tensors_free(&got);
    stage->calls->stream_free(stream);
    return status;
}

/* Some of the inputs as float64, so that both types and bfloat16 are read on the device. */
static nsa_status widen_some(nsa_tensors *in) {
    nsa_tensors some = {0};
    for (int id = 0; id < NSA_ID_COUNT; id += 3)
        some.at[id] = in->at[id];
    const nsa_status status = tensors_widen(&some);
    for (int id = 0; id < NSA_ID_COUNT; id += 3)
        in->at[id] = some.at[id];
    return status;
}

nsa_status judge_device(const subject *s, const test_case *c) {
    bf16_pair h;
    nsa_status status = make_bf16_pair(s, c, &h);
    status = status ? status : widen_some(&h.in);
    for (int bf16 = 0; bf16 < 2 && !status; bf16++) {
        nsa_context *ctx = NULL;
        status = open_all(s->stage, &c->cfg, &h.in, &ctx);
        status = status ? status : run_there(s->stage, ctx, bf16 ? &h.bf16 : &h.in, &h.want, bf16);
        nsa_close(ctx);
    }
    free_bf16_pair(&h);
    return status;
}

/* ------------------------------------------------------------------- graphs */

/* Capture a load, all passes and all reads. The pack was loaded before. */
static nsa_status capture_all(const nsa_stage *stage, nsa_context *ctx, void *stream,
                              const nsa_tensors *in, nsa_tensors *results, void **graph) {
    nsa_status status = stage->calls->capture(stream);
    status = status ? status : run_all(stage, ctx, in);
    status = status ? status : device_read(ctx, results);
    const nsa_status ended = stage->calls->capture_end(stream, graph);
    return status ? status : ended;
}

/* Launch a graph on the values of `in`, in memory that holds others, and compare. */
static nsa_status replay(const nsa_stage *stage, void *graph, void *stream, const nsa_tensors *in,
                         nsa_tensors *there, nsa_tensors *results, const nsa_tensors *want) {
    nsa_tensors got = {0};
    nsa_status status = device_fill(stage, in, there);
    status = status ? status : stage->calls->launch(graph, stream);
    status = status ? status : stage->calls->wait(stream);
    status = status ? status : device_fetch(stage, results, &got);
    status = status ? status : compare_bits("launched as a graph", &got, want);
    tensors_free(&got);
    return status;
}

/* Free memory after many launches is that before. Other programs may use the device, and move it
 * either way: what leaks takes some each time. */
static nsa_status launches_take_nothing(const nsa_stage *stage, void *graph, void *stream) {
    const char *given = getenv("NSA_REPEATS"); /* sanitizers are slow, as the simulator is */
    const int launches = given || !strcmp(stage->device(), "simulator") ? 2 : 100;
    nsa_status status = NSA_OK;
    int64_t taken = 1;
    for (int i = 0; i < 20 && taken && !status; i++) {
        const size_t before = stage->free_memory();
        for (int k = 0; k < launches && !status; k++)
            status = stage->calls->launch(graph, stream);
        status = status ? status : stage->calls->wait(stream);
        taken = (int64_t)before - (int64_t)stage->free_memory();
    }
    return status || !taken
               ? status
               : nsa_fail(NSA_ERR_MEMORY, "%d launches took %" PRId64 " bytes", launches, taken);
}

/* A graph captured on one set of values computes another's, and the first's again. */
static nsa_status try_graph(const nsa_stage *stage, nsa_context *ctx, const nsa_tensors *in,
                            const nsa_tensors *others, const nsa_tensors *want) {
    nsa_tensors there = {0}, results = {0};
    void *stream = NULL, *graph = NULL;
    nsa_status status = stage->calls->stream_new(&stream);
    status = status ? status : nsa_set_stream(ctx, stream);
    status = status ? status : device_copy(stage, in, &there);
    status = status ? status : run_all(stage, ctx, &there);
    status = status ? status : device_results(stage, ctx, 0, &results);
    status = status ? status : capture_all(stage, ctx, stream, &there, &results, &graph);
    status = status ? status : replay(stage, graph, stream, others, &there, &results, &want[1]);
    for (int i = 0; i < 2 && !status; i++)
        status = replay(stage, graph, stream, in, &there, &results, &want[0]);
    status = status ? status : launches_take_nothing(stage, graph, stream);
    stage->calls->graph_free(graph);
    device_free(stage, &there);
    device_free(stage, &results);
    stage->calls->stream_free(stream);
    return status;
}

nsa_status judge_graph(const subject *s, const test_case *c) {
    nsa_tensors in = {0}, others = {0}, want[2] = {{{{0}}}};
    nsa_context *ctx = NULL;
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    if (!s->stage->backward)
        tensor_free(&in.at[NSA_DOUT]);
    status = status ? status : other_values(&in, 0, &others);
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_BACKWARD, &want[0]);
    status = status ? status : run_stage(s->stage, &c->cfg, &others, RUN_BACKWARD, &want[1]);
    status = status ? status : open_all(s->stage, &c->cfg, &in, &ctx);
    status = status ? status : try_graph(s->stage, ctx, &in, &others, want);
    nsa_close(ctx);
    tensors_free(&in);
    tensors_free(&others);
    tensors_free(&want[0]);
    tensors_free(&want[1]);
    return status;
}
