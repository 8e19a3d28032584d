/** @file io.c
 *  @brief A pass together with the load and the read of its caller's tensors, which lie on the
 * device. */
#include "bench/contender.h"
#include "harness/on_device.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <stdlib.h>

struct bench_io {
    nsa_tensors in, out;             /* the caller's, [T,H,D] */
    int32_t active[BENCH_MAX_BATCH]; /* slots of a step */
};

int io_wants(const contender *c) {
    return c->stage && c->stage->calls && !c->causal;
}

/* Copy to the device, as bfloat16 for a stage that computes in it: to new memory, or with `fill` to
 * that of io_open(). What the host reads stays there. */
static nsa_status bring(contender *c, const nsa_tensors *from, int fill) {
    nsa_tensors half = {0}, *to = &c->io->in;
    const int rounds = c->stage->arith == NSA_BFLOAT16;
    nsa_status status = rounds ? tensors_halve(from, &half) : NSA_OK;
    if (!status)
        status = (fill ? device_fill : device_copy)(c->stage, rounds ? &half : from, to);
    to->at[NSA_CU_SEQLENS] = from->at[NSA_CU_SEQLENS];
    to->at[NSA_ACTIVE] = from->at[NSA_ACTIVE];
    tensors_free(&half);
    return status;
}

/* What is loaded before a pass: all inputs; at first dout of the sampled rows, which is checked; or
 * the next step. */
static nsa_tensors wanted(const contender *c, const workload *w) {
    nsa_tensors from = {0};
    if (w->pass == BENCH_FORWARD)
        from = w->in;
    else if (w->pass == BENCH_BACKWARD)
        from.at[NSA_DOUT] = w->sparse;
    else
        slots_step(w, c->steps, c->io->active, &from);
    return from;
}

/* Memory for what is read after a pass: the output, or all gradients. Bytes that load and read
 * move: the caller's, and as many numbers in the type that the stage computes in. */
static nsa_status open_results(contender *c, const workload *w) {
    const nsa_arith arith = c->stage->arith;
    const size_t own = arith == NSA_FLOAT64 ? 8 : arith == NSA_FLOAT32 ? 4 : 2;
    double *bytes = &c->row->bytes_io;
    nsa_status status = NSA_OK;
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        const nsa_tensor *in = &c->io->in.at[id];
        nsa_tensor t = {.dtype = NSA_NONE}, *out = &c->io->out.at[id];
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

nsa_status io_open(contender *c, const workload *w) {
    c->io = calloc(1, sizeof *c->io);
    if (!c->io)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for a caller's tensors");
    const nsa_tensors from = wanted(c, w);
    nsa_status status = bring(c, &from, 0);
    status = status ? status : open_results(c, w);
    if (status == NSA_ERR_MEMORY) { /* the pass alone is still timed */
        fprintf(stderr, "nsa bench: %s at T = %" PRId64 " without load and read: %s\n",
                c->row->name, w->T, nsa_last_error());
        io_close(c);
        c->row->bytes_io = 0;
        return NSA_OK;
    }
    return status ? status : nsa_set_stream(c->ctx, NULL);
}

void io_close(contender *c) {
    if (!c->io)
        return;
    device_free(c->stage, &c->io->in);
    device_free(c->stage, &c->io->out);
    free(c->io);
    c->io = NULL;
}

nsa_status io_set_dout(contender *c, const nsa_tensor *dout) {
    const nsa_tensors from = {.at[NSA_DOUT] = *dout};
    return c->io ? bring(c, &from, 1) : NSA_OK;
}

/* Exactly what is timed. */
static nsa_status run_between(contender *c, const workload *w) {
    static nsa_status (*const run[])(nsa_context *) = {nsa_forward, nsa_backward, nsa_decode};
    const nsa_tensors *in = &c->io->in;
    nsa_status status = w->pass == BENCH_FORWARD    ? nsa_load(c->ctx, in)
                        : w->pass == BENCH_BACKWARD ? nsa_load_dout(c->ctx, &in->at[NSA_DOUT])
                                                    : nsa_load_step(c->ctx, in);
    status = status ? status : run[w->pass](c->ctx);
    return status ? status : device_read(c->ctx, &c->io->out);
}

nsa_status io_time(contender *c, const workload *w, double *seconds) {
    const gpu_table *g = c->device == BENCH_ON_GPU ? gpu(NULL) : NULL;
    nsa_status status = NSA_OK;
    if (w->pass == BENCH_DECODE) {
        const nsa_tensors from = wanted(c, w);
        status = bring(c, &from, 1);
        c->steps++;
    }
    if (status)
        return status;
    if (g) {
        g->flush();
        g->start();
    }
    const double start = bench_now();
    status = run_between(c, w);
    const double stop = g ? g->stop() : 0;
    status = status ? status : c->stage->calls->wait(NULL);
    *seconds = g ? stop : bench_now() - start;
    if (!status && !(*seconds > 0))
        status = nsa_fail(NSA_ERR_DEVICE, "the GPU's events gave no time of load and read");
    return status;
}

nsa_status io_fetch(const contender *c, nsa_id id, nsa_tensor *t) {
    *t = c->io->out.at[id];
    t->place = NSA_HOST;
    nsa_status status = tensor_alloc(t);
    const size_t bytes = (size_t)nsa_count(t) * nsa_dtype_size(t->dtype);
    return status ? status : c->stage->calls->copy(t->data, c->io->out.at[id].data, bytes);
}

int io_has(const contender *c, nsa_id id) {
    return c->io && c->io->out.at[id].dtype && c->stage->arith != NSA_BFLOAT16;
}
