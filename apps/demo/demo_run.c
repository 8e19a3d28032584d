/** @file demo_run.c
 *  @brief Run a stage on rows of the text and convert the results to double. */
#include "demo/demo_run.h"
#include "demo/demo_progress.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

double demo_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Read one result in the stage's type and return it as int32 or double. */
static nsa_status read_result(nsa_context *ctx, nsa_id id, void **data, int64_t *last) {
    nsa_tensor t = {0};
    nsa_status status = nsa_result(ctx, id, &t);
    if (status)
        return status;
    size_t count = (size_t)nsa_count(&t);
    /* Allocate for doubles, so that floats can be widened in place. */
    t.data = malloc(count * sizeof(double) + 1);
    if (!t.data)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for %s", nsa_name(id));
    *data = t.data;
    if (last)
        *last = t.shape[t.ndim - 1];
    status = nsa_read(ctx, id, &t);
    if (status || t.dtype != NSA_F32)
        return status;
    for (size_t i = count;
         i-- > 0;) { /* from the end, so that no float is overwritten before it is read */
        float x;
        memcpy(&x, (const char *)t.data + i * sizeof x, sizeof x);
        double wide = x;
        memcpy((char *)t.data + i * sizeof wide, &wide, sizeof wide);
    }
    return NSA_OK;
}

/* Fill in the run's rows, and add the rows and forced blocks to the inputs. */
static nsa_status prepare(const demo_request *request, demo_run *run, nsa_tensors *in) {
    const nsa_config *c = &request->model->cfg;
    *in = request->model->in;
    run->R = request->R;
    run->J = (c->seq_len + c->slc_block - 1) / c->slc_block;
    run->row = malloc((size_t)request->R * sizeof *run->row + 1);
    if (!run->row)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for %lld rows", (long long)request->R);
    for (int64_t r = 0; r < request->R; r++)
        run->row[r] = request->row ? request->row[r] : (int32_t)r;
    if (request->row)
        in->at[NSA_ROWS] = (nsa_tensor){run->row, NSA_I32, 1, {request->R}, NSA_HOST};
    if (request->forced)
        in->at[NSA_BLOCK_IDX] = (nsa_tensor){
            request->forced, NSA_I32, 3, {c->seq_len, c->kv_heads, c->slc_count}, NSA_HOST};
    return NSA_OK;
}

nsa_status demo_run_stage(const demo_request *request, demo_run *run) {
    nsa_context *ctx = NULL;
    nsa_tensors in;
    nsa_setup setup = {.flags = request->importance ? NSA_WANT_IMPORTANCE : 0,
                       .max_rows = request->R};
    *run = (demo_run){0};
    nsa_status status = prepare(request, run, &in);
    status = status ? status : nsa_open(request->stage, &request->model->cfg, &setup, &ctx);
    status = status ? status : nsa_load(ctx, &in);
    if (!status) {
        demo_progress *progress = demo_progress_start(request->label, request->seconds);
        double start = demo_now();
        status = nsa_forward(ctx);
        run->seconds = demo_now() - start;
        demo_progress_stop(progress);
    }
    void *out = NULL, *idx = NULL, *importance = NULL, *k_phi = NULL;
    status = status ? status : read_result(ctx, NSA_OUT, &out, NULL);
    status = status ? status : read_result(ctx, NSA_BLOCK_IDX, &idx, NULL);
    if (!status && request->importance)
        status = read_result(ctx, NSA_IMPORTANCE, &importance, &run->J);
    if (!status && request->k_phi)
        status = read_result(ctx, NSA_K_PHI, &k_phi, NULL);
    run->out = out;
    run->block_idx = idx;
    run->importance = importance;
    run->k_phi = k_phi;
    nsa_close(ctx);
    if (status)
        demo_run_free(run);
    return status;
}

void demo_run_free(demo_run *run) {
    free(run->row);
    free(run->out);
    free(run->block_idx);
    free(run->importance);
    free(run->k_phi);
    *run = (demo_run){0};
}

int64_t demo_run_find(const demo_run *run, int64_t t) {
    int64_t low = 0, high = run->R;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (run->row[middle] < t)
            low = middle + 1;
        else
            high = middle;
    }
    return low < run->R && run->row[low] == t ? low : -1;
}

/* --------------------------------------------------------------------- rows */

nsa_status demo_rows_new(demo_rows *rows, int64_t T) {
    *rows = (demo_rows){.T = T};
    rows->in_set = calloc((size_t)T, 1);
    return rows->in_set ? NSA_OK : nsa_fail(NSA_ERR_MEMORY, "no memory for a list of rows");
}

void demo_rows_spread(demo_rows *rows, int64_t from, int64_t to, int64_t count) {
    if (count > to - from)
        count = to - from;
    for (int64_t i = 0; i < count; i++) {
        int64_t t = from + (count > 1 ? i * (to - from - 1) / (count - 1) : 0);
        rows->count += !rows->in_set[t];
        rows->in_set[t] = 1;
    }
}

nsa_status demo_rows_list(demo_rows *rows) {
    free(rows->list);
    rows->list = malloc((size_t)rows->count * sizeof *rows->list + 1);
    if (!rows->list)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for %lld rows", (long long)rows->count);
    for (int64_t t = 0, n = 0; t < rows->T; t++) {
        if (rows->in_set[t])
            rows->list[n++] = (int32_t)t;
    }
    return NSA_OK;
}

void demo_rows_free(demo_rows *rows) {
    free(rows->in_set);
    free(rows->list);
    *rows = (demo_rows){0};
}
