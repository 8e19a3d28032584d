/** @file
 *  @brief The caller's stream, and what of his tensors is checked on the device. */
#include "load.cuh"

/* ----------------------------------------------------------------- streams */

nsa_status set_stream(void *self, void *stream) {
    stage *st = (stage *)self;
    /* an event and a stream of two devices do not go together: the runtime says so */
    if (cudaEventRecord(st->event[0], (cudaStream_t)stream) != cudaSuccess)
        return nsa_fail(NSA_ERR_INPUT, "the stream %p is not of device %d: %s", stream, st->device,
                        nsa_device_error(cudaErrorInvalidResourceHandle));
    st->stream = (cudaStream_t)stream;
    return NSA_OK;
}

nsa_status check(void *self, nsa_id id, const nsa_tensor *tensor) {
    return nsa_check_device_tensor(id, tensor, ((const stage *)self)->device);
}

nsa_status finish(stage *st) {
    if (st->stream == st->own_stream)
        NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

/* What has to wait cannot be part of a graph. */
static nsa_status not_in_capture(const stage *st) {
    if (nsa_capturing(st->stream))
        return nsa_fail(NSA_ERR_STATE,
                        "a graph holds device tensors only, and a pack or step whose cu_seqlens, "
                        "rows and active were loaded before the capture");
    return NSA_OK;
}

nsa_status copy_to_device(stage *st, void *to, const void *from, size_t bytes) {
    if (!bytes)
        return NSA_OK;
    TRY(not_in_capture(st));
    NSA_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, st->stream));
    NSA_CUDA(cudaStreamSynchronize(st->stream)); /* `from` may be reused */
    return NSA_OK;
}

nsa_status copy_to_host(stage *st, void *to, const void *from, size_t bytes) {
    if (!bytes)
        return NSA_OK;
    TRY(not_in_capture(st));
    NSA_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, st->stream));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

/* ------------------------------------------------------------ block lists */

/* The blocks of each row that exist, ascending, then -1: a block that is not in 0..t/l', or is
 * there already, is dropped, and bad[1] is the first row that has one. One row and head a thread.
 */
static __global__ void sort_blocks_kernel(dims c, const int32_t *g_idx, block_lists lists,
                                          int64_t rows, int32_t *g_sorted, uint64_t *g_bad) {
    for (int64_t i = first_of_thread(); i < rows * c.Hkv; i += threads_of_grid()) {
        const int64_t r = i / c.Hkv, token = lists.g_token ? lists.g_token[r] : r;
        const int32_t *g_from = g_idx + (token * c.Hkv + i % c.Hkv) * c.n;
        int32_t *g_to = g_sorted + i * c.n;
        int used = 0;
        for (int k = 0; k < c.n; k++) {
            const int block = g_from[k];
            int at = used;
            while (at > 0 && g_to[at - 1] >= block)
                at--;
            if (block < 0 || block > lists.g_t[r] / c.lb || (at < used && g_to[at] == block)) {
                if (block != -1)
                    atomicMin((unsigned long long *)&g_bad[1], (unsigned long long)r);
                continue;
            }
            for (int m = used++; m > at; m--)
                g_to[m] = g_to[m - 1];
            g_to[at] = block;
        }
        for (; used < c.n; used++)
            g_to[used] = -1;
    }
}

nsa_status load_block_lists(stage *st, block_lists lists, int64_t rows) {
    const int64_t count = rows * st->c.Hkv;
    st->forced = lists.x->dtype != NSA_NONE;
    NSA_CUDA(cudaMemsetAsync(st->bad, 0xff, 2 * sizeof *st->bad, st->stream));
    if (!st->forced || !count)
        return NSA_OK;
    if (lists.x->place == NSA_HOST)
        return copy_to_device(st, st->forced_idx, lists.checked,
                              (size_t)(count * st->c.n) * sizeof(int32_t));
    NSA_LAUNCH(sort_blocks_kernel, grid_for(count), THREADS, 0, st->stream, st->c,
               (const int32_t *)lists.x->data, lists, rows, st->forced_idx, st->bad);
    NSA_LAUNCHED("sort_blocks");
    return NSA_OK;
}

/* bad[0] = the first gate that is not in [0,1]. */
static __global__ void check_gates_kernel(const real *g_gate, int64_t count, uint64_t *g_bad) {
    for (int64_t i = first_of_thread(); i < count; i += threads_of_grid()) {
        if (!(g_gate[i] >= 0 && g_gate[i] <= 1))
            atomicMin((unsigned long long *)&g_bad[0], (unsigned long long)i);
    }
}

nsa_status check_values(stage *st, const nsa_tensors *in, int64_t rows) {
    const int64_t per_row = (int64_t)st->c.Hq * BRANCHES;
    uint64_t bad[2];
    real gate;
    if (!(st->plan->setup.flags & NSA_CHECK_VALUES) || !rows)
        return NSA_OK;
    NSA_LAUNCH(check_gates_kernel, grid_for(rows * per_row), THREADS, 0, st->stream, st->gate,
               rows * per_row, st->bad);
    NSA_LAUNCHED("check_gates");
    TRY(copy_to_host(st, bad, st->bad, sizeof bad));
    if (bad[0] != UINT64_MAX && in->at[NSA_GATE].place == NSA_DEVICE) {
        TRY(copy_to_host(st, &gate, st->gate + bad[0], sizeof gate));
        return nsa_fail(NSA_ERR_INPUT, "gate[%lld,%lld,%lld] = %g is not in [0,1] (of the rows)",
                        (long long)(bad[0] / per_row), (long long)(bad[0] % per_row / BRANCHES),
                        (long long)(bad[0] % BRANCHES), (double)gate);
    }
    if (bad[1] != UINT64_MAX)
        return nsa_fail(NSA_ERR_INPUT,
                        "block_idx of row %lld holds a block twice or one that its query does not "
                        "see; expected -1 or distinct blocks up to its own",
                        (long long)bad[1]);
    return NSA_OK;
}
