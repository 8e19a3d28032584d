/* Tensors that live on the device: bfloat16 inputs there, a stream of the program's own, a forward
 * and a backward captured as a graph, results read there and copied once at the end.
 *
 * With CUDA, linked with its runtime:
 *   cc -std=c11 -DWITH_CUDA -Istages -I/usr/local/cuda/include docs/examples/device_tensors.c \
 *      -o build/device_tensors -Lbuild -lnsa -lm -L/usr/local/cuda/lib64 -lcudart \
 *      -Wl,-rpath,'$ORIGIN'
 * Without, on the simulator, by the calls that the stage lends:
 *   cc -std=c11 -Istages docs/examples/device_tensors.c -o build/device_tensors \
 *      -Lbuild -lnsa -lm -Wl,-rpath,'$ORIGIN'
 *   build/device_tensors 03 */
#include "nsa_find.h"
#include "nsa_stage.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef WITH_CUDA
#include <cuda_runtime_api.h>
#define DEVICE(stage, cuda, lent) ((void)(stage), (cuda) == cudaSuccess ? NSA_OK : NSA_ERR_DEVICE)
#else
#define DEVICE(stage, cuda, lent) ((stage)->calls->lent)
#endif

/* The nearest bfloat16 (ties away from zero: enough for made-up values). */
static uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x8000) >> 16);
}

static float from_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static size_t bytes_of(const nsa_tensor *t) {
    return (size_t)nsa_count(t) * nsa_dtype_size(t->dtype);
}

/* A bfloat16 tensor [a,b,c] on the device, filled from the host. */
static nsa_status make(const nsa_stage *stage, nsa_tensor *t, int64_t a, int64_t b, int64_t c,
                       float lo, float hi) {
    static unsigned state = 1;
    *t = (nsa_tensor){NULL, NSA_BF16, 3, {a, b, c}, NSA_DEVICE};
    uint16_t *host = malloc(bytes_of(t));
    if (!host)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for a tensor");
    for (int64_t i = 0; i < nsa_count(t); i++) {
        state = state * 1664525u + 1013904223u;
        host[i] = to_bf16(lo + (hi - lo) * (float)(state >> 8) / (1 << 24));
    }
    nsa_status status =
        DEVICE(stage, cudaMalloc(&t->data, bytes_of(t)), alloc(&t->data, bytes_of(t)));
    if (!status)
        status = DEVICE(stage, cudaMemcpy(t->data, host, bytes_of(t), cudaMemcpyHostToDevice),
                        copy(t->data, host, bytes_of(t)));
    free(host);
    return status;
}

/* q, six keys and values, gates and the gradient of the output. */
static nsa_status make_inputs(const nsa_stage *stage, const nsa_config *c, nsa_tensors *in) {
    const int64_t T = c->seq_len;
    nsa_status status = make(stage, &in->at[NSA_Q], T, c->q_heads, c->qk_dim, -1, 1);
    for (int id = NSA_K_CMP; id <= NSA_V_WIN && !status; id++)
        status = make(stage, &in->at[id], T, c->kv_heads,
                      (id - NSA_K_CMP) % 2 ? c->v_dim : c->qk_dim, -1, 1);
    status = status ? status : make(stage, &in->at[NSA_GATE], T, c->q_heads, 3, 0, 1);
    return status ? status : make(stage, &in->at[NSA_DOUT], T, c->q_heads, c->v_dim, -1, 1);
}

/* One training step's calls. Only the first run waits, to load the pack's geometry; later ones may
 * be captured. */
static nsa_status step(nsa_context *ctx, const nsa_tensors *in, nsa_tensor *out, nsa_tensor *dq) {
    nsa_status status = nsa_load(ctx, in);
    status = status ? status : nsa_forward(ctx);
    status = status ? status : nsa_backward(ctx);
    status = status ? status : nsa_read(ctx, NSA_OUT, out);
    return status ? status : nsa_read(ctx, NSA_DQ, dq);
}

/* The step as a graph, launched three times, after a run that was not captured. */
static nsa_status launch(const nsa_stage *stage, nsa_context *ctx, void *stream,
                         const nsa_tensors *in, nsa_tensor *out, nsa_tensor *dq) {
#ifdef WITH_CUDA
    cudaGraph_t captured = NULL;
    cudaGraphExec_t graph = NULL;
    (void)stage;
    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) != cudaSuccess)
        return NSA_ERR_DEVICE;
    nsa_status status = step(ctx, in, out, dq);
    if (cudaStreamEndCapture(stream, &captured) != cudaSuccess ||
        cudaGraphInstantiate(&graph, captured, 0) != cudaSuccess)
        return status ? status : NSA_ERR_DEVICE;
    for (int i = 0; i < 3 && !status; i++)
        status = cudaGraphLaunch(graph, stream) == cudaSuccess ? NSA_OK : NSA_ERR_DEVICE;
    cudaStreamSynchronize(stream);
    cudaGraphExecDestroy(graph);
    cudaGraphDestroy(captured);
    return status;
#else
    void *graph = NULL;
    nsa_status status = stage->calls->capture(stream);
    status = status ? status : step(ctx, in, out, dq);
    status = status ? status : stage->calls->capture_end(stream, &graph);
    for (int i = 0; i < 3 && !status; i++)
        status = stage->calls->launch(graph, stream);
    status = status ? status : stage->calls->wait(stream);
    stage->calls->graph_free(graph);
    return status;
#endif
}

/* The mean of the squares of a bfloat16 tensor on the device; NaN after an error. */
static double mean_square(const nsa_stage *stage, const nsa_tensor *t) {
    uint16_t *host = malloc(bytes_of(t));
    double sum = 0;
    if (!host || DEVICE(stage, cudaMemcpy(host, t->data, bytes_of(t), cudaMemcpyDeviceToHost),
                        copy(host, t->data, bytes_of(t))))
        sum = NAN;
    for (int64_t i = 0; host && i < nsa_count(t); i++)
        sum += pow((double)from_bf16(host[i]), 2);
    free(host);
    return sum / (double)nsa_count(t);
}

int main(int argc, char **argv) {
    nsa_config config = nsa_config_defaults();
    const nsa_setup setup = {.flags = NSA_BACKWARD};
    nsa_tensors in = {0};
    nsa_tensor out, dq;
    nsa_found found;
    nsa_context *ctx = NULL;
    void *stream = NULL;
    config.seq_len = 200, config.q_heads = 4, config.kv_heads = 2;
    config.qk_dim = 16, config.v_dim = 8, config.phi = NSA_PHI_MEAN;
    nsa_status status = nsa_find_stage(NULL, argc > 1 ? argv[1] : "03", &found);
    if (!status && !found.stage->device)
        status = nsa_fail(NSA_ERR_UNSUPPORTED, "%s runs on the CPU", found.name);
    status = status ? status : nsa_open(found.stage, &config, &setup, &ctx);
    if (!status)
        status =
            DEVICE(found.stage, cudaStreamCreate((cudaStream_t *)&stream), stream_new(&stream));
    status = status ? status : nsa_set_stream(ctx, stream);
    status = status ? status : make_inputs(found.stage, &config, &in);
    status = status ? status : make(found.stage, &out, 200, 4, 8, 0, 0);
    status = status ? status : make(found.stage, &dq, 200, 4, 16, 0, 0);
    status = status ? status : step(ctx, &in, &out, &dq);
    status = status ? status : launch(found.stage, ctx, stream, &in, &out, &dq);
    if (status) {
        fprintf(stderr, "%s: %s\n", nsa_status_name(status), nsa_last_error());
        return 1;
    }
    printf("on %s: mean square of out %.4f, of dq %.4f\n", found.stage->device(),
           mean_square(found.stage, &out), mean_square(found.stage, &dq));
    nsa_close(ctx); /* memory and the stream end with the program */
    return 0;
}
