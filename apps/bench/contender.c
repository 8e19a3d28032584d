/** @file contender.c
 *  @brief A stage, a dense baseline or a peer behind the same four calls. */
#include "bench/contender.h"
#include "common/pool.h"
#include "harness/on_device.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

static nsa_status open_dense(contender *c, const workload *w) {
    const int decodes = w->pass == BENCH_DECODE;
    nsa_status status = NSA_OK;
    if (blas_missing())
        return nsa_fail(NSA_ERR_UNSUPPORTED, "%s", blas_missing());
    c->dense =
        dense_open(&w->cfg, w->T + (decodes ? DECODE_STEPS : 0), w->B, c->threads, &c->row->memory);
    if (!c->dense)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for dense attention");
    for (int i = 0; i < 2 && decodes && !status; i++) /* caches of its own, as a stage has */
        status = slots_unroll(w, i ? NSA_V_WIN : NSA_K_WIN, &c->cache[i]);
    c->in = (dense_inputs){w->in.at[NSA_Q].data, /* of a step: prepare() */
                           decodes ? c->cache[0].data : w->in.at[NSA_K_WIN].data,
                           decodes ? c->cache[1].data : w->in.at[NSA_V_WIN].data};
    return status;
}

bench_device bench_device_of(const nsa_stage *stage) {
    if (!stage || !stage->device)
        return BENCH_ON_CPU;
    return strcmp(stage->device(), "simulator") ? BENCH_ON_GPU : BENCH_ON_SIMULATOR;
}

nsa_arith contender_arith(const contender *c) {
    return c->peer ? c->peer->arith : c->stage ? c->stage->arith : NSA_FLOAT32;
}

static nsa_status open_stage(contender *c, const workload *w) {
    static const unsigned needs[] = {0, NSA_BACKWARD, NSA_DECODE};
    const int gradients = w->pass == BENCH_BACKWARD;
    nsa_setup setup = {.flags = c->causal && !gradients ? NSA_WANT_CAUSAL : needs[w->pass],
                       .max_rows = w->pass == BENCH_DECODE, /* a prefill computes none */
                       .threads = c->threads};
    nsa_tensors in = w->in;
    nsa_tensor gate = {0};
    nsa_config cfg = w->cfg;
    const char *missing = NULL;
    nsa_status status = NSA_OK;
    if (c->device == BENCH_ON_GPU && !gpu(&missing))
        return nsa_fail(NSA_ERR_DEVICE, "no GPU clock: %s", missing);
    const int64_t before = c->device == BENCH_ON_GPU ? gpu(NULL)->memory() : 0;
    if (c->causal && gradients)
        status = workload_dense(w, &cfg, &gate, &in);
    in.at[NSA_DOUT] = (nsa_tensor){0}; /* loaded separately: first the sampled rows, then all */
    status = status ? status : nsa_open(c->stage, &cfg, &setup, &c->ctx);
    if (!status && w->pass != BENCH_DECODE) /* slots are filled one by one */
        status = nsa_load(c->ctx, &in);
    if (!status)
        c->row->memory =
            c->device == BENCH_ON_GPU ? gpu(NULL)->memory() - before : (int64_t)nsa_memory(c->ctx);
    tensor_free(&gate);
    return status;
}

nsa_status contender_open(contender *c, const workload *w) {
    return c->peer ? peers_open(c, w) : c->stage ? open_stage(c, w) : open_dense(c, w);
}

void contender_close(contender *c) {
    if (c->peer && c->peer_id >= 0)
        peers_close(c);
    device_free(c->stage, &c->given);
    device_free(c->stage, &c->got);
    if (c->graph)
        c->stage->calls->graph_free(c->graph);
    nsa_close(c->ctx);
    free(c->dense);
    tensor_free(&c->cache[0]);
    tensor_free(&c->cache[1]);
}

/* Exactly what is timed. */
static nsa_status run_once(contender *c, const workload *w) {
    static nsa_status (*const run[])(nsa_context *) = {nsa_forward, nsa_backward, nsa_decode};
    if (c->stage)
        return c->causal && w->pass == BENCH_FORWARD ? nsa_causal(c->ctx, 2) : run[w->pass](c->ctx);
    c->out = dense_run(c->dense, &c->in, w->pass == BENCH_DECODE ? w->T + c->steps : 0);
    return NSA_OK;
}

/* What is loaded before a pass: inputs; at first dout of the checked rows; or the next step, of all
 * slots. Views. */
static nsa_tensors wanted(contender *c, const workload *w) {
    if (w->pass == BENCH_FORWARD)
        return w->in;
    if (w->pass == BENCH_BACKWARD)
        return (nsa_tensors){.at[NSA_DOUT] = w->sparse};
    nsa_tensors step = rows_from(&w->step, c->steps * w->B, w->B);
    for (int32_t b = 0; b < w->B; b++)
        c->active[b] = b;
    step.at[NSA_ACTIVE] = (nsa_tensor){c->active, NSA_I32, 1, {w->B}, NSA_HOST};
    return step;
}

/* Before a run of decode: load the next step's tokens. */
static nsa_status prepare(contender *c, const workload *w) {
    if (w->pass != BENCH_DECODE)
        return NSA_OK;
    const nsa_tensors in = wanted(c, w);
    c->steps++;
    c->in.q = in.at[NSA_Q].data;
    return c->stage ? nsa_load_step(c->ctx, &in) : NSA_OK;
}

/* Keep the phases of the last call as those of the next run. A stage may leave out a phase that
 * took no time, so they are matched by name. @return their sum; 0 if it lists none */
static double read_phases(contender *c) {
    nsa_phase list[BENCH_MAX_PHASES];
    bench_row *row = c->row;
    const int count = nsa_phases(c->ctx, list, BENCH_MAX_PHASES);
    double sum = 0;
    for (int i = 0; i < count && i < BENCH_MAX_PHASES; i++) {
        int p = 0;
        while (p < row->phases && strncmp(row->phase[p].name, list[i].name, 15) != 0)
            p++;
        sum += list[i].seconds;
        if (p == BENCH_MAX_PHASES || c->causal)
            continue;
        row->phases += p == row->phases;
        snprintf(row->phase[p].name, sizeof row->phase[p].name, "%.15s", list[i].name);
        c->phase[p][c->runs] = list[i].seconds;
    }
    return sum;
}

static nsa_status timed(contender *c, const workload *w, double *seconds) {
    const double start = nsa_now();
    nsa_status status = run_once(c, w);
    if (c->device == BENCH_ON_GPU)
        gpu(NULL)->wait();
    *seconds = nsa_now() - start;
    const double phases = !status && c->stage ? read_phases(c) : 0;
    *seconds = c->device != BENCH_ON_CPU && phases > 0 ? phases : *seconds;
    return status;
}

/* Copy to the device, as bfloat16 for a stage that computes in it: to new memory, or with `fill` to
 * that of open_io(). What the host reads stays there. */
static nsa_status bring(contender *c, const nsa_tensors *from, int fill) {
    nsa_tensors rounded = {0}, *to = &c->given;
    const int rounds = c->stage->arith == NSA_BFLOAT16;
    nsa_status status = rounds ? tensors_to_bf16(from, &rounded) : NSA_OK;
    if (!status)
        status = (fill ? device_fill : device_copy)(c->stage, rounds ? &rounded : from, to);
    to->at[NSA_CU_SEQLENS] = from->at[NSA_CU_SEQLENS];
    to->at[NSA_ACTIVE] = from->at[NSA_ACTIVE];
    tensors_free(&rounded);
    return status;
}

/* Memory for what is read after a pass: the output, or all gradients. Bytes that load and read
 * move: the caller's, and as many numbers in the type that the stage computes in. */
static nsa_status open_results(contender *c, const workload *w) {
    const nsa_arith arith = c->stage->arith;
    const size_t own = arith == NSA_FLOAT64 ? 8 : arith == NSA_FLOAT32 ? 4 : 2;
    double *bytes = &c->row->bytes_io;
    nsa_status status = NSA_OK;
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        const nsa_tensor *in = &c->given.at[id];
        nsa_tensor *out = &c->got.at[id], t;
        if (in->dtype && in->place == NSA_DEVICE)
            *bytes += (double)nsa_count(in) * (double)(nsa_dtype_size(in->dtype) + own);
        if ((w->pass == BENCH_BACKWARD ? id < NSA_GRAD_FIRST : id != NSA_OUT) ||
            nsa_result(c->ctx, (nsa_id)id, &t))
            continue;
        const size_t result = nsa_dtype_size(t.dtype);
        t.dtype = arith == NSA_BFLOAT16 ? NSA_BF16 : t.dtype;
        t.place = NSA_DEVICE;
        t.data = NULL;
        const size_t size = nsa_dtype_size(t.dtype);
        status = c->stage->calls->alloc(&t.data, (size_t)nsa_count(&t) * size);
        *bytes += (double)nsa_count(&t) * (double)(result + size);
        *out = t;
    }
    return status;
}

static nsa_status open_io(contender *c, const workload *w) {
    c->has_io = 1;
    const nsa_tensors from = wanted(c, w);
    nsa_status status = bring(c, &from, 0);
    status = status ? status : open_results(c, w);
    if (status == NSA_ERR_MEMORY) { /* the pass alone is still timed */
        fprintf(stderr, "nsa bench: %s at T = %" PRId64 " without load and read: %s\n",
                c->row->name, w->T, nsa_last_error());
        device_free(c->stage, &c->given);
        device_free(c->stage, &c->got);
        c->has_io = 0;
        c->row->bytes_io = 0;
        return NSA_OK;
    }
    return status ? status : nsa_set_stream(c->ctx, NULL);
}

/* Load, the pass, and read. */
static nsa_status run_between(contender *c, const workload *w) {
    const nsa_tensors *in = &c->given;
    nsa_status status = w->pass == BENCH_FORWARD    ? nsa_load(c->ctx, in)
                        : w->pass == BENCH_BACKWARD ? nsa_load_dout(c->ctx, &in->at[NSA_DOUT])
                                                    : nsa_load_step(c->ctx, in);
    status = status ? status : run_once(c, w);
    return status ? status : device_read(c->ctx, &c->got);
}

static nsa_status time_with_io(contender *c, const workload *w, double *seconds) {
    const gpu_table *g = c->device == BENCH_ON_GPU ? gpu(NULL) : NULL;
    if (w->pass == BENCH_DECODE) {
        const nsa_tensors from = wanted(c, w);
        nsa_status brought = bring(c, &from, 1);
        c->steps++;
        if (brought)
            return brought;
    }
    if (g) {
        g->flush();
        g->start();
    }
    const double start = nsa_now();
    nsa_status status = run_between(c, w);
    const double stop = g ? g->stop() : 0;
    status = status ? status : c->stage->calls->wait(NULL);
    *seconds = g ? stop : nsa_now() - start;
    if (!status && !(*seconds > 0))
        status = nsa_fail(NSA_ERR_DEVICE, "the GPU's events gave no time of load and read");
    return status;
}

/* A step launched as a graph, which waits for the host nowhere; on the device only. */
static nsa_status time_graph(contender *c, const workload *w, double *seconds) {
    const nsa_device_calls *calls = c->stage->calls;
    void *stream = NULL;
    nsa_status status = prepare(c, w);
    if (!status && !c->graph) {
        status = calls->stream_new(&stream);
        status = status ? status : nsa_set_stream(c->ctx, stream);
        status = status ? status : calls->capture(stream);
        status = status ? status : nsa_decode(c->ctx);
        status = status ? status : calls->capture_end(stream, &c->graph);
        status = status ? status : nsa_set_stream(c->ctx, NULL);
        calls->stream_free(stream);
    }
    gpu(NULL)->flush();
    gpu(NULL)->start();
    status = status ? status : calls->launch(c->graph, NULL);
    *seconds = gpu(NULL)->stop();
    return status;
}

nsa_status contender_time(contender *c, const workload *w) {
    nsa_status status = c->peer ? peers_time(c, &c->sample[c->runs]) : prepare(c, w);
    if (!status && c->device == BENCH_ON_GPU && !c->peer) {
        gpu(NULL)->flush(); /* after prepare(), which brought the step's tokens into the cache */
        gpu(NULL)->start(); /* keeps the GPU busy while the host queues the pass */
    }
    if (!status && !c->peer)
        status = timed(c, w, &c->sample[c->runs]);
    if (!status && c->has_io && c->device == BENCH_ON_GPU && w->pass == BENCH_DECODE)
        status = time_graph(c, w, &c->sample[c->runs]); /* the phases are those of the call */
    if (!status && c->has_io)
        status = time_with_io(c, w, &c->with_io[c->runs]);
    c->runs += !status;
    return status;
}

/* A whole result: read from a stage, or of the baseline a view of its outputs. */
static nsa_status read_whole(const contender *c, const workload *w, nsa_id id, nsa_tensor *t) {
    /* for a backward plain causal attention is a window branch */
    const int is_causal_out = c->causal && w->pass == BENCH_FORWARD && id == NSA_OUT;
    if (c->has_io && c->got.at[id].dtype && c->stage->arith != NSA_BFLOAT16) {
        nsa_tensors one = {0}, mine; /* not rounded */
        one.at[id] = c->got.at[id];
        nsa_status status = device_fetch(c->stage, &one, &mine);
        *t = mine.at[id];
        return status;
    }
    if (c->stage)
        return read_result(c->ctx, is_causal_out ? NSA_OUT_CAUSAL : id, t);
    *t = (nsa_tensor){.dtype = NSA_F32, .ndim = 3, .data = c->out};
    t->shape[0] = w->pass == BENCH_DECODE ? w->B : w->B * w->T;
    t->shape[1] = w->cfg.q_heads, t->shape[2] = w->cfg.v_dim;
    return NSA_OK;
}

/* Gather the rows that an int32 list names from a result of all rows; all of it must be finite. */
static nsa_status gather(const nsa_tensor *rows, const nsa_tensor *all, nsa_tensor *sampled) {
    const size_t row = (size_t)tensor_row(all) * nsa_dtype_size(all->dtype);
    for (int64_t i = 0, count = nsa_count(all); i < count; i++) {
        if (!isfinite(tensor_get(all, i)))
            return nsa_fail(NSA_ERR_INPUT, "element %" PRId64 " of row %" PRId64 " is not finite",
                            i % tensor_row(all), i / tensor_row(all));
    }
    *sampled = *all;
    sampled->shape[0] = rows->shape[0];
    nsa_status status = tensor_alloc(sampled);
    for (int64_t r = 0; r < sampled->shape[0] && !status; r++)
        memcpy((char *)sampled->data + (size_t)r * row,
               (const char *)all->data + (size_t)tensor_ints(rows)[r] * row, row);
    return status;
}

/* Read what is compared, as the oracle has it: of results with a row a query, the sampled rows. */
static nsa_status read_mine(const contender *c, const workload *w, nsa_tensors *mine) {
    nsa_status status = NSA_OK;
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        const int sampled = id == NSA_OUT || id == NSA_BLOCK_IDX || id == NSA_DQ || id == NSA_DGATE;
        nsa_tensor whole = {0};
        if (!verify_wants(w, c->causal, (nsa_id)id))
            continue;
        status = read_whole(c, w, (nsa_id)id, sampled ? &whole : &mine->at[id]);
        if (sampled && !status)
            status = gather(&w->rows, &whole, &mine->at[id]);
        if (c->stage)
            tensor_free(&whole);
    }
    return status;
}

/* Forward before a backward, full caches before steps: not timed, but counted in `cost`. */
static nsa_status run_prerequisites(contender *c, const workload *w) {
    if (!c->stage || w->pass == BENCH_FORWARD)
        return NSA_OK;
    if (w->pass == BENCH_DECODE)
        return slots_fill(w, c->ctx);
    nsa_status status = nsa_forward(c->ctx);
    return status ? status : nsa_load_dout(c->ctx, &w->sparse);
}

/* One warm-up run; with `io` it has load and read with it, if there is memory for them. */
static nsa_status warm_up(contender *c, const workload *w, int io) {
    double seconds;
    nsa_status status = io ? open_io(c, w) : NSA_OK;
    if (!status && c->has_io)
        return time_with_io(c, w, &seconds);
    status = status ? status : prepare(c, w);
    return status ? status : timed(c, w, &c->first);
}

nsa_status contender_check(contender *c, const workload *w, const nsa_stage *oracle) {
    const nsa_arith arith = contender_arith(c);
    const int io = c->stage && c->stage->calls && !c->causal; /* its tensors may be on a device */
    nsa_tensors mine = {0};
    const double start = nsa_now();
    nsa_status status = run_prerequisites(c, w);
    for (int left = w->pass == BENCH_DECODE ? DECODE_WARM : 1 + io; left && !status;)
        status = warm_up(c, w, !--left && io);
    c->row->cost = nsa_now() - start;
    status = status ? status : read_mine(c, w, &mine);
    status = status ? status : verify(w, oracle, arith, c->causal, &mine);
    tensors_free(&mine);
    if (status || w->pass != BENCH_BACKWARD)
        return status;
    status = nsa_load_dout(c->ctx, &w->in.at[NSA_DOUT]); /* from now on it has all rows */
    const nsa_tensors all = {.at[NSA_DOUT] = w->in.at[NSA_DOUT]};
    return status || !c->has_io ? status : bring(c, &all, 1);
}
