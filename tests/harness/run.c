/** @file run.c
 *  @brief Running a stage on a case. */
#include "common/pool.h"
#include "harness/run.h"
#include "harness/tensor.h"

#include <math.h>
#include <string.h>

int64_t row_count(const nsa_tensors *in) {
    const nsa_tensor *rows = &in->at[NSA_ROWS];
    return rows->dtype ? rows->shape[0] : in->at[NSA_Q].shape[0];
}

void row_positions(const nsa_tensors *in, int64_t T, int64_t *position) {
    const nsa_tensor *cu = &in->at[NSA_CU_SEQLENS], *rows = &in->at[NSA_ROWS];
    for (int64_t r = 0, b = 0; r < row_count(in); r++) {
        int64_t t = rows->dtype ? tensor_ints(rows)[r] : r;
        while (cu->dtype && t < T && t >= tensor_ints(cu)[b + 1])
            b++;
        position[r] = t - (cu->dtype ? tensor_ints(cu)[b] : 0);
    }
}

nsa_status force_blocks(const nsa_config *cfg, nsa_tensors *in, const nsa_tensor *block_idx) {
    const nsa_tensor *rows = &in->at[NSA_ROWS];
    nsa_tensor *idx = &in->at[NSA_BLOCK_IDX];
    int64_t row = cfg->kv_heads * cfg->slc_count;
    tensor_free(idx);
    *idx = *block_idx;
    idx->shape[0] = in->at[NSA_Q].shape[0];
    nsa_status status = tensor_alloc(idx); /* all bits one: -1 */
    for (int64_t r = 0; r < block_idx->shape[0] && !status; r++) {
        int64_t t = rows->dtype ? tensor_ints(rows)[r] : r;
        memcpy(tensor_ints(idx) + t * row, tensor_ints(block_idx) + r * row,
               (size_t)row * sizeof(int32_t));
    }
    return status;
}

nsa_status read_result(nsa_context *ctx, nsa_id id, nsa_tensor *t) {
    nsa_status status = nsa_result(ctx, id, t);
    status = status ? status : tensor_alloc(t);
    if (!status && t->dtype == NSA_I32) /* as allocated it is -1: what a list may well end with */
        memset(t->data, 0x7F, (size_t)nsa_count(t) * sizeof(int32_t));
    status = status ? status : nsa_read(ctx, id, t);
    if (!status && !tensor_fences_intact(t))
        status = nsa_fail(NSA_ERR_MEMORY, "reading %s wrote outside its tensor", nsa_name(id));
    return status;
}

/* Every result that exists after a forward (and backward). */
static nsa_status read_all(nsa_context *ctx, const nsa_config *cfg, int flags, int backward,
                           nsa_tensors *results) {
    nsa_status status = NSA_OK;
    for (int id = NSA_BLOCK_IDX; id <= NSA_V_PHI && !status; id++) {
        if (!(flags & RUN_OUT_ONLY) || id < NSA_OUT_CMP || id > NSA_IMPORTANCE)
            status = read_result(ctx, (nsa_id)id, &results->at[id]);
    }
    for (int id = NSA_GRAD_FIRST; id <= NSA_GRAD_LAST && backward && !status; id++) {
        if (nsa_has(cfg, (nsa_id)id))
            status = read_result(ctx, (nsa_id)id, &results->at[id]);
    }
    return status;
}

static nsa_status run_once(nsa_context *ctx, const nsa_tensors *in, int backward) {
    nsa_status status = nsa_load(ctx, in);
    status = status ? status : nsa_forward(ctx);
    return status || !backward ? status : nsa_backward(ctx);
}

nsa_status other_values(const nsa_tensors *in, int64_t extra, nsa_tensors *others) {
    nsa_status status = NSA_OK;
    memset(others, 0, sizeof *others);
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        const nsa_tensor *from = &in->at[id];
        nsa_tensor *to = &others->at[id];
        if (!from->dtype)
            continue;
        *to = *from;
        to->shape[0] += id <= NSA_DOUT || id == NSA_BLOCK_IDX ? extra : 0;
        status = tensor_alloc(to); /* integers that are not copied stay -1: no block */
        for (int64_t i = 0; !status && to->dtype != NSA_I32 && i < nsa_count(to); i++)
            tensor_set(to, i,
                       id == NSA_GATE         ? 0.5
                       : i >= nsa_count(from) ? NAN
                                              : 1 - 3 * tensor_get(from, i));
        for (int64_t i = 0; !status && to->dtype == NSA_I32 && i < nsa_count(from); i++)
            tensor_ints(to)[i] = tensor_ints(from)[i];
    }
    const nsa_tensor *cu = &others->at[NSA_CU_SEQLENS];
    if (!status && cu->dtype)
        tensor_ints(cu)[cu->shape[0] - 1] += (int32_t)extra;
    return status;
}

static nsa_status run_others(nsa_context *ctx, const nsa_tensors *in, int64_t extra, int backward) {
    nsa_tensors others;
    nsa_status status = other_values(in, extra, &others);
    status = status ? status : run_once(ctx, &others, backward);
    tensors_free(&others);
    return status;
}

static nsa_status inputs_fenced(const nsa_tensors *in, const nsa_tensors *before) {
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        if (in->at[id].dtype &&
            (!tensor_fences_intact(&in->at[id]) || !tensor_same(&in->at[id], &before->at[id])))
            return nsa_fail(NSA_ERR_MEMORY, "the stage changed its input %s", nsa_name((nsa_id)id));
    }
    return NSA_OK;
}

/* A second context: one token, the smallest heads, every function that the stage has. */
static nsa_status open_tiny(const nsa_stage *stage, nsa_context **ctx) {
    nsa_config tiny = nsa_config_defaults();
    const nsa_setup setup = {.flags = (stage->backward ? NSA_BACKWARD : 0u) |
                                      (stage->prefill ? NSA_DECODE : 0u) | NSA_WANT_CAUSAL};
    tiny.seq_len = tiny.q_heads = tiny.kv_heads = tiny.qk_dim = tiny.v_dim = 1;
    return nsa_open(stage, &tiny, &setup, ctx);
}

nsa_status run_stage(const nsa_stage *stage, const nsa_config *cfg, const nsa_tensors *in,
                     int flags, nsa_tensors *results) {
    const int backward = (flags & RUN_BACKWARD) && stage->backward;
    const int fenced = !(flags & RUN_UNFENCED);
    const int64_t extra = flags & RUN_TWICE ? 7 : 0; /* the first run has more tokens */
    nsa_setup setup = {.flags =
                           (fenced ? NSA_DEBUG_MEMORY : 0u) | (backward ? NSA_BACKWARD : 0u) |
                           (flags & RUN_OUT_ONLY ? 0u : NSA_WANT_BRANCHES | NSA_WANT_IMPORTANCE),
                       .max_rows = row_count(in) + extra,
                       .threads = flags / RUN_THREADS};
    nsa_config larger = *cfg;
    nsa_tensors from = *in, used, before = {0};
    nsa_context *ctx = NULL, *second = NULL;
    nsa_status status = NSA_OK;
    larger.seq_len += extra;
    memset(results, 0, sizeof *results);
    if (!backward)
        from.at[NSA_DOUT] = (nsa_tensor){0};
    used = from;
    if (fenced)
        status = tensors_copy(&before, &from);
    if (fenced && !status)
        status = tensors_copy(&used, &from);
    status = status ? status : nsa_open(stage, &larger, &setup, &ctx);
    if (!status && (flags & RUN_TWO_CONTEXTS))
        status = open_tiny(stage, &second);
    if (!status && (flags & RUN_TWICE))
        status = run_others(ctx, &used, extra, backward);
    status = status ? status : run_once(ctx, &used, backward);
    status = status ? status : read_all(ctx, cfg, flags, backward, results);
    status = status ? status : nsa_check_memory(ctx);
    if (fenced && !status)
        status = inputs_fenced(&used, &before);
    nsa_close(ctx);
    nsa_close(second);
    if (fenced)
        tensors_free(&used);
    tensors_free(&before);
    return status;
}

nsa_status run_causal(const nsa_stage *stage, const nsa_config *cfg, const nsa_tensors *in,
                      int pair, nsa_tensor *result) {
    nsa_setup setup = {.flags = NSA_WANT_CAUSAL | NSA_DEBUG_MEMORY, .max_rows = row_count(in)};
    nsa_tensors used = *in;
    nsa_context *ctx = NULL;
    memset(result, 0, sizeof *result);
    memset(&used.at[NSA_DOUT], 0, sizeof used.at[NSA_DOUT]);
    nsa_status status = nsa_open(stage, cfg, &setup, &ctx);
    status = status ? status : nsa_load(ctx, &used);
    status = status ? status : nsa_causal(ctx, pair);
    status = status ? status : read_result(ctx, NSA_OUT_CAUSAL, result);
    nsa_close(ctx);
    return status;
}
