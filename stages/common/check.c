/** @file check.c
 *  @brief The one validator of tensors: presence, type, shape and the values that are indices or
 * gates. */
#include "common/context.h"

#include <inttypes.h>
#include <stdio.h>

static const char *dtype_name(nsa_dtype dtype) {
    return dtype == NSA_F32    ? "float32"
           : dtype == NSA_F64  ? "float64"
           : dtype == NSA_BF16 ? "bfloat16"
                               : "int32";
}

/* "[97,4,8]" into a small buffer */
static const char *shape_text(const nsa_tensor *t, char *text, size_t capacity) {
    size_t used = (size_t)snprintf(text, capacity, "[");
    for (int i = 0; i < t->ndim && i < 3 && used < capacity; i++)
        used +=
            (size_t)snprintf(text + used, capacity - used, "%s%" PRId64, i ? "," : "", t->shape[i]);
    if (used < capacity)
        snprintf(text + used, capacity - used, "]");
    return text;
}

/* The host reads these: grids and tables follow from them. */
static int is_host_only(nsa_id id) {
    return id == NSA_CU_SEQLENS || id == NSA_ROWS || id == NSA_ACTIVE;
}

nsa_status nsa_check_place(const nsa_context *ctx, nsa_id id, const nsa_tensor *tensor) {
    const char *name = nsa_name(id);
    const size_t size = nsa_dtype_size(tensor->dtype);
    if (tensor->place == NSA_HOST)
        return NSA_OK;
    if (tensor->place != NSA_DEVICE)
        return nsa_fail(NSA_ERR_INPUT, "%s has place %d, which is unknown", name,
                        (int)tensor->place);
    if (!ctx->stage->check)
        return nsa_fail(NSA_ERR_INPUT, "%s is on a device, but this stage runs on the CPU", name);
    if (is_host_only(id))
        return nsa_fail(NSA_ERR_INPUT, "%s is on the device, but the host has to read it", name);
    if ((uintptr_t)tensor->data % size)
        return nsa_fail(NSA_ERR_INPUT,
                        "%s is at %p, which is no multiple of its element's %zu bytes", name,
                        tensor->data, size);
    return nsa_count(tensor) ? ctx->stage->check(ctx->self, id, tensor) : NSA_OK;
}

nsa_status nsa_check_tensor(const nsa_context *ctx, const nsa_lengths *lengths, nsa_id id,
                            const nsa_tensor *tensor) {
    const char *name = nsa_name(id);
    int is_int = is_host_only(id) || id == NSA_BLOCK_IDX;
    if (tensor->dtype == NSA_NONE)
        return nsa_fail(NSA_ERR_INPUT, "%s is missing", name);
    if ((unsigned)tensor->dtype > NSA_BF16)
        return nsa_fail(NSA_ERR_INPUT, "%s has element type %d, which is unknown", name,
                        (int)tensor->dtype);
    if (is_int != (tensor->dtype == NSA_I32))
        return nsa_fail(NSA_ERR_INPUT, "%s is %s, expected %s", name, dtype_name(tensor->dtype),
                        is_int ? "int32" : "float32, float64 or bfloat16");
    nsa_tensor expected;
    char got_text[96], expected_text[96];
    nsa_shape(&ctx->plan.cfg, lengths, id, 0, &expected);
    int same = expected.ndim == tensor->ndim;
    for (int i = 0; same && i < expected.ndim; i++)
        same = expected.shape[i] < 0 || expected.shape[i] == tensor->shape[i];
    if (!same && expected.shape[0] < 0)
        return nsa_fail(NSA_ERR_INPUT, "%s has %d dimensions, expected 1", name, tensor->ndim);
    if (!same)
        return nsa_fail(NSA_ERR_INPUT, "%s has shape %s, expected %s", name,
                        shape_text(tensor, got_text, sizeof got_text),
                        shape_text(&expected, expected_text, sizeof expected_text));
    int64_t count = nsa_count(tensor);
    if (count < 0)
        return nsa_fail(NSA_ERR_INPUT, "%s has shape %s, which overflows", name,
                        shape_text(tensor, got_text, sizeof got_text));
    if (count && !tensor->data)
        return nsa_fail(NSA_ERR_INPUT, "%s has no data", name);
    return nsa_check_place(ctx, id, tensor);
}

static nsa_status check_gate(const nsa_tensor *gate, int64_t heads) {
    for (int64_t i = 0, count = nsa_count(gate); i < count; i++) {
        double g;
        nsa_copy_f64(&g, gate, i, 1);
        if (!(g >= 0 && g <= 1))
            return nsa_fail(NSA_ERR_INPUT,
                            "gate[%" PRId64 ",%" PRId64 ",%" PRId64 "] = %g is not in [0,1]",
                            i / 3 / heads, i / 3 % heads, i % 3, g);
    }
    return NSA_OK;
}

static nsa_status check_cu_seqlens(const nsa_context *ctx, const nsa_tensor *t, nsa_batch *batch) {
    const int32_t *cu = t->data;
    int64_t max = ctx->max_seqs;
    batch->B = t->shape[0] - 1;
    if (batch->B < 1)
        return nsa_fail(NSA_ERR_INPUT, "cu_seqlens has %" PRId64 " entries, expected at least 2",
                        t->shape[0]);
    if (batch->B > max)
        return nsa_fail(NSA_ERR_INPUT,
                        "cu_seqlens packs %" PRId64 " sequences, max_seqs is %" PRId64, batch->B,
                        max);
    if (cu[0] != 0)
        return nsa_fail(NSA_ERR_INPUT, "cu_seqlens[0] = %d, expected 0", cu[0]);
    for (int64_t b = 0; b < batch->B; b++) {
        if (cu[b + 1] < cu[b])
            return nsa_fail(NSA_ERR_INPUT,
                            "cu_seqlens[%" PRId64 "] = %d is less than the entry before, %d", b + 1,
                            cu[b + 1], cu[b]);
    }
    if (cu[batch->B] != batch->T)
        return nsa_fail(NSA_ERR_INPUT, "cu_seqlens ends with %d, expected T = %" PRId64,
                        cu[batch->B], batch->T);
    return NSA_OK;
}

static nsa_status check_rows(const nsa_tensor *t, nsa_batch *batch) {
    const int32_t *rows = t->data;
    batch->R = t->shape[0];
    for (int64_t r = 0; r < batch->R; r++) {
        if (rows[r] < 0 || rows[r] >= batch->T)
            return nsa_fail(NSA_ERR_INPUT, "rows[%" PRId64 "] = %d is not in 0..%" PRId64, r,
                            rows[r], batch->T - 1);
        if (r && rows[r] <= rows[r - 1])
            return nsa_fail(NSA_ERR_INPUT,
                            "rows[%" PRId64 "] = %d does not come after the row before, %d", r,
                            rows[r], rows[r - 1]);
    }
    return NSA_OK;
}

nsa_status nsa_check_blocks(int32_t *dst, const int32_t *src, int64_t n, int64_t own_block,
                            const char *where, int64_t number) {
    int64_t used = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t pos = used;
        if (src[i] == -1)
            continue;
        if (src[i] < 0 || src[i] > own_block)
            return nsa_fail(NSA_ERR_INPUT,
                            "block_idx of %s %" PRId64 " holds %d, expected -1 or 0..%" PRId64,
                            where, number, src[i], own_block);
        for (; pos > 0 && dst[pos - 1] > src[i]; pos--)
            dst[pos] = dst[pos - 1];
        if (pos > 0 && dst[pos - 1] == src[i])
            return nsa_fail(NSA_ERR_INPUT, "block_idx of %s %" PRId64 " holds block %d twice",
                            where, number, src[i]);
        dst[pos] = src[i];
        used++;
    }
    for (; used < n; used++)
        dst[used] = -1;
    return NSA_OK;
}

/* An input that the call does not use is an error: ignoring it would hide a mistake. */
static nsa_status check_strays(const nsa_context *ctx, const nsa_tensors *in, int as_step) {
    const nsa_config *config = &ctx->plan.cfg;
    const int decodes = (ctx->plan.setup.flags & NSA_DECODE) != 0;
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        if (in->at[id].dtype == NSA_NONE)
            continue;
        nsa_tensor shape;
        nsa_shape(config, &(nsa_lengths){0}, (nsa_id)id, 0, &shape);
        int weight = id >= NSA_PHI_FIRST && id <= NSA_PHI_LAST;
        int of_load = weight || id == NSA_DOUT || id == NSA_CU_SEQLENS || id == NSA_ROWS;
        if (!shape.ndim)
            return nsa_fail(NSA_ERR_INPUT, "%s is a result, not an input", nsa_name((nsa_id)id));
        if (weight && !nsa_has(config, (nsa_id)id))
            return nsa_fail(NSA_ERR_INPUT, "%s is given, but phi \"%s\" has no such weight",
                            nsa_name((nsa_id)id), nsa_phi_name(config->phi));
        if (as_step ? of_load : id == NSA_ACTIVE && !decodes)
            return nsa_fail(NSA_ERR_INPUT, "%s is not an input of a %s", nsa_name((nsa_id)id),
                            as_step ? "decode step" : "load without NSA_DECODE");
    }
    return NSA_OK;
}

/* q, keys, values and the gate: the inputs that a load and a step share. A device's gates are for
 * the stage to check. */
static nsa_status check_tokens(const nsa_context *ctx, const nsa_tensors *in,
                               const nsa_lengths *lengths) {
    const nsa_tensor *gate = &in->at[NSA_GATE];
    nsa_status status = NSA_OK;
    for (int id = NSA_Q; id <= NSA_GATE && !status; id++)
        status = nsa_check_tensor(ctx, lengths, (nsa_id)id, &in->at[id]);
    if (!status && in->at[NSA_BLOCK_IDX].dtype)
        status = nsa_check_tensor(ctx, lengths, NSA_BLOCK_IDX, &in->at[NSA_BLOCK_IDX]);
    return status || gate->place ? status : check_gate(gate, ctx->plan.cfg.q_heads);
}

/* The slots that a load or a step names: distinct ones that exist. */
static nsa_status check_active(const nsa_context *ctx, const nsa_tensor *active) {
    const int64_t slots = ctx->plan.cfg.max_seqs;
    const int32_t *slot = active->data;
    const nsa_lengths lengths = {0};
    nsa_status status = nsa_check_tensor(ctx, &lengths, NSA_ACTIVE, active);
    for (int64_t a = 0; !status && a < active->shape[0]; a++) {
        if (slot[a] < 0 || slot[a] >= slots)
            return nsa_fail(NSA_ERR_INPUT, "active[%" PRId64 "] = %d is not in 0..%" PRId64, a,
                            slot[a], slots - 1);
        for (int64_t i = 0; i < a; i++) {
            if (slot[i] == slot[a])
                return nsa_fail(NSA_ERR_INPUT, "active names slot %d twice", slot[a]);
        }
    }
    return status;
}

/* The slots of a load: one for each sequence of the pack. */
static nsa_status check_load_slots(const nsa_context *ctx, const nsa_tensor *active, int64_t B) {
    nsa_status status = active->dtype ? check_active(ctx, active) : NSA_OK;
    if (!status && active->dtype && active->shape[0] != B)
        status = nsa_fail(NSA_ERR_INPUT,
                          "active names %" PRId64 " slots, the pack has %" PRId64 " sequences",
                          active->shape[0], B);
    return status;
}

nsa_status nsa_check_load(const nsa_context *ctx, const nsa_tensors *in, nsa_batch *batch) {
    const nsa_config *config = &ctx->plan.cfg;
    const nsa_tensor *q = &in->at[NSA_Q], *cu = &in->at[NSA_CU_SEQLENS], *rows = &in->at[NSA_ROWS];
    nsa_status status = check_strays(ctx, in, 0);
    if (status)
        return status;
    batch->T = q->dtype && q->ndim > 0 ? q->shape[0] : 0;
    batch->B = 1;
    if (batch->T < 0 || batch->T > config->seq_len)
        return nsa_fail(NSA_ERR_INPUT, "q holds %" PRId64 " tokens, seq_len is %" PRId64, batch->T,
                        config->seq_len);
    batch->R = batch->T;
    nsa_lengths lengths = {.T = batch->T};
    status = check_tokens(ctx, in, &lengths);
    for (int id = NSA_PHI_FIRST; id <= NSA_PHI_LAST && !status; id++) {
        if (nsa_has(config, (nsa_id)id))
            status = nsa_check_tensor(ctx, &lengths, (nsa_id)id, &in->at[id]);
    }
    if (!status && cu->dtype)
        status = nsa_check_tensor(ctx, &lengths, NSA_CU_SEQLENS, cu);
    if (!status && cu->dtype)
        status = check_cu_seqlens(ctx, cu, batch);
    status = status ? status : check_load_slots(ctx, &in->at[NSA_ACTIVE], batch->B);
    if (!status && rows->dtype)
        status = nsa_check_tensor(ctx, &lengths, NSA_ROWS, rows);
    if (!status && rows->dtype)
        status = check_rows(rows, batch);
    if (!status && batch->R > ctx->plan.setup.max_rows)
        status = nsa_fail(NSA_ERR_INPUT, "%" PRId64 " rows to compute, max_rows is %" PRId64,
                          batch->R, ctx->plan.setup.max_rows);
    return status;
}

nsa_status nsa_check_step(const nsa_context *ctx, const nsa_tensors *in, nsa_step *step) {
    const nsa_config *config = &ctx->plan.cfg;
    const nsa_tensor *active = &in->at[NSA_ACTIVE];
    nsa_lengths lengths = {0};
    nsa_status status = check_strays(ctx, in, 1);
    status = status ? status : check_active(ctx, active);
    if (status)
        return status;
    const int32_t *slot = active->data;
    step->A = lengths.T = active->shape[0];
    for (int64_t a = 0; a < step->A && !ctx->has_stream; a++) { /* else a kernel looks */
        if (ctx->len[slot[a]] >= config->max_seq_len)
            return nsa_fail(NSA_ERR_INPUT, "slot %d is full: max_seq_len is %" PRId64, slot[a],
                            config->max_seq_len);
    }
    return check_tokens(ctx, in, &lengths);
}
