/** @file context.c
 *  @brief The caller's side of the contract, once a stage is open (open.c): check every call, then
 * pass it to the stage. */
#include "common/context.h"
#include "common/counts.h"

#include <inttypes.h>
#include <string.h>

/* ------------------------------------------------------------------- loads */

/* The error that a kernel found since this was last asked, if any. */
static nsa_status pending(const nsa_context *ctx) {
    return ctx->stage->pending ? ctx->stage->pending(ctx->self) : NSA_OK;
}

nsa_status nsa_set_stream(nsa_context *ctx, void *stream) {
    if (!ctx->stage->set_stream)
        return nsa_fail(NSA_ERR_UNSUPPORTED, "this stage runs on the CPU, which has no streams");
    const nsa_status status = ctx->stage->set_stream(ctx->self, stream);
    ctx->has_stream |= !status;
    return status;
}

/* *at = value; `same` becomes 0 if it was another. */
static void keep(int64_t *at, int64_t value, int *same) {
    *same &= *at == value;
    *at = value;
}

/* Fill in the batch's offsets: seq from cu_seqlens, cmp from each sequence's number of compressed
 * tokens (Eq. 7). If the pack has more sequences than the plan's max_seqs, the empty ones are
 * dropped: they have no results, and at most T others remain. */
static void fill_batch(nsa_context *ctx, const nsa_tensors *in, nsa_batch *batch) {
    const int32_t *cu = in->at[NSA_CU_SEQLENS].dtype ? in->at[NSA_CU_SEQLENS].data : NULL;
    const int32_t *rows = in->at[NSA_ROWS].dtype ? in->at[NSA_ROWS].data : NULL;
    const int64_t given = batch->B;
    const int fits = given <= ctx->plan.cfg.max_seqs;
    batch->J = batch->B = 0;
    for (int64_t i = 0, b = 0; i < given; i++) {
        const int64_t end = cu ? cu[i + 1] : batch->T, len = end - ctx->seq[b];
        const int64_t blocks = blocks_of(&ctx->plan.cfg, len);
        if (!fits && len == 0)
            continue;
        keep(&ctx->seq[b + 1], end, &batch->same);
        keep(&ctx->cmp[b + 1], ctx->cmp[b] + nsa_cmp_tokens(&ctx->plan.cfg, len), &batch->same);
        batch->J = blocks > batch->J ? blocks : batch->J;
        batch->B = ++b;
    }
    if (!batch->B) { /* an empty pack is one empty sequence */
        keep(&ctx->seq[1], 0, &batch->same);
        keep(&ctx->cmp[1], 0, &batch->same);
        batch->B = 1;
    }
    for (int64_t r = 0; r < batch->R; r++)
        keep(&ctx->row[r], rows ? rows[r] : r, &batch->same);
    batch->N = ctx->cmp[batch->B];
    batch->seq = ctx->seq;
    batch->cmp = ctx->cmp;
    batch->row = ctx->row;
}

/* The slot of each sequence, should it be prefilled: as `active` says, or in the pack's order. */
static void fill_slots(nsa_context *ctx, const nsa_tensor *active, nsa_batch *batch) {
    const int32_t *slot = active->dtype ? active->data : NULL;
    batch->keeps_slots = slot != NULL;
    for (int64_t b = 0; ctx->load_slot && b < batch->B; b++)
        ctx->load_slot[b] = slot ? slot[b] : (int32_t)b;
    batch->slot = ctx->load_slot;
}

static nsa_status forced_rows(nsa_context *ctx, const int32_t *idx, nsa_batch *batch) {
    const nsa_config *c = &ctx->plan.cfg;
    nsa_status status = NSA_OK;
    for (int64_t r = 0, b = 0; r < batch->R && !status; r++) {
        int64_t t = batch->row[r];
        while (t >= batch->seq[b + 1])
            b++;
        int64_t own_block = (t - batch->seq[b]) / c->slc_block;
        for (int64_t h = 0; h < c->kv_heads && !status; h++)
            status = nsa_check_blocks(ctx->block_idx + (r * c->kv_heads + h) * c->slc_count,
                                      idx + (t * c->kv_heads + h) * c->slc_count, c->slc_count,
                                      own_block, "row", t);
    }
    batch->block_idx = ctx->block_idx;
    return status;
}

nsa_status nsa_load(nsa_context *ctx, const nsa_tensors *in) {
    nsa_batch batch = {0};
    nsa_status status = pending(ctx);
    status = status ? status : nsa_check_load(ctx, in, &batch);
    const nsa_tensor *dout = &in->at[NSA_DOUT], *idx = &in->at[NSA_BLOCK_IDX];
    if (!status && dout->dtype)
        status = nsa_check_tensor(ctx, &(nsa_lengths){.T = batch.T}, NSA_DOUT, dout);
    if (status)
        return status;
    ctx->done = 0; /* the previous load or step is no longer valid */
    batch.same = ctx->packed && batch.T == ctx->batch.T && batch.R == ctx->batch.R;
    fill_batch(ctx, in, &batch);
    fill_slots(ctx, &in->at[NSA_ACTIVE], &batch);
    batch.same &= batch.B == ctx->batch.B;
    if (idx->dtype && idx->place == NSA_HOST)
        status = forced_rows(ctx, idx->data, &batch);
    ctx->batch = batch;
    ctx->packed = 0;
    status = status ? status : ctx->stage->load(ctx->self, in, &ctx->batch);
    if (!status) {
        ctx->done |= WEIGHTS | LOADED;
        ctx->packed = 1;
    }
    return status || !dout->dtype ? status : nsa_load_dout(ctx, dout);
}

/* An error if `required` (LOADED | FORWARD | ...) has not been done yet, or a kernel found one. */
static nsa_status require_done(const nsa_context *ctx, unsigned required, const char *call,
                               const char *before) {
    if ((ctx->done & required) != required)
        return nsa_fail(NSA_ERR_STATE, "%s needs %s before it", call, before);
    return pending(ctx);
}

static nsa_status require_flag(const nsa_context *ctx, unsigned flag, const char *call,
                               const char *name) {
    if (!(ctx->plan.setup.flags & flag))
        return nsa_fail(NSA_ERR_STATE, "%s needs a context opened with %s", call, name);
    return NSA_OK;
}

nsa_status nsa_load_dout(nsa_context *ctx, const nsa_tensor *dout) {
    nsa_lengths lengths = {.T = ctx->batch.T};
    nsa_status status = require_flag(ctx, NSA_BACKWARD, "load_dout", "NSA_BACKWARD");
    status = status ? status : require_done(ctx, LOADED, "load_dout", "a load");
    status = status ? status : nsa_check_tensor(ctx, &lengths, NSA_DOUT, dout);
    status = status ? status : ctx->stage->load_dout(ctx->self, dout);
    if (!status)
        ctx->done |= DOUT;
    return status;
}

/* Lengths of the slots, of a stage that keeps them on its device; with a caller's stream the host
 * does not ask, for it would wait. */
static nsa_status ask_lens(nsa_context *ctx) {
    const int on_device = ctx->len && ctx->stage->slot_lens && !ctx->has_stream;
    return on_device ? ctx->stage->slot_lens(ctx->self, ctx->len) : NSA_OK;
}

/* Copy the slots of a step, whether they are those of the step before, and their positions, if the
 * host knows them. */
static void fill_step(nsa_context *ctx, const int32_t *slot, nsa_step *step) {
    step->same = ctx->stepped && step->A == ctx->step.A;
    for (int64_t a = 0; a < step->A; a++) {
        step->same &= ctx->slot[a] == slot[a];
        ctx->slot[a] = slot[a];
        ctx->pos[a] = ctx->len[slot[a]];
    }
    step->slot = ctx->slot;
    step->pos = ctx->has_stream ? NULL : ctx->pos;
}

/* Check and sort the block lists of a step, if they are on the host. */
static nsa_status forced_step(nsa_context *ctx, const nsa_tensor *idx, nsa_step *step) {
    const nsa_config *c = &ctx->plan.cfg;
    const int32_t *src = idx->data;
    nsa_status status = NSA_OK;
    if (!idx->dtype || idx->place == NSA_DEVICE)
        return NSA_OK;
    if (ctx->has_stream)
        return nsa_fail(NSA_ERR_INPUT, "block_idx of a step is on the host: with nsa_set_stream() "
                                       "only the device knows the positions to check it by");
    for (int64_t i = 0; i < step->A * c->kv_heads && !status; i++) {
        const int64_t a = i / c->kv_heads;
        status = nsa_check_blocks(ctx->step_idx + i * c->slc_count, src + i * c->slc_count,
                                  c->slc_count, ctx->pos[a] / c->slc_block, "slot", step->slot[a]);
    }
    step->block_idx = ctx->step_idx;
    return status;
}

nsa_status nsa_load_step(nsa_context *ctx, const nsa_tensors *in) {
    nsa_step step = {0};
    nsa_status status = require_flag(ctx, NSA_DECODE, "load_step", "NSA_DECODE");
    if (!status && !ctx->stage->decode)
        status = nsa_fail(NSA_ERR_UNSUPPORTED, "this stage has no decode");
    status =
        status ? status : require_done(ctx, WEIGHTS, "load_step", "a load (for the phi weights)");
    status = status ? status : ask_lens(ctx);
    status = status ? status : nsa_check_step(ctx, in, &step);
    if (status)
        return status;
    ctx->done &= WEIGHTS; /* the step replaces the load and all results */
    fill_step(ctx, in->at[NSA_ACTIVE].data, &step);
    status = forced_step(ctx, &in->at[NSA_BLOCK_IDX], &step);
    ctx->step = step;
    ctx->stepped = 0;
    status = status ? status : ctx->stage->load_step(ctx->self, in, &ctx->step);
    if (!status) {
        ctx->done |= STEP;
        ctx->stepped = 1;
    }
    return status;
}

/* -------------------------------------------------------------------- runs */

nsa_status nsa_forward(nsa_context *ctx) {
    nsa_status status = require_done(ctx, LOADED, "forward", "a load");
    if (status)
        return status;
    ctx->done &= WEIGHTS | LOADED | DOUT;
    nsa_pool_poison(ctx->plan.pool, NSA_MEM_FORWARD | NSA_MEM_SCRATCH);
    status = ctx->stage->forward(ctx->self);
    if (!status)
        ctx->done |= FORWARD;
    return status;
}

nsa_status nsa_backward(nsa_context *ctx) {
    nsa_status status = require_flag(ctx, NSA_BACKWARD, "backward", "NSA_BACKWARD");
    status = status ? status
                    : require_done(ctx, LOADED | FORWARD | DOUT, "backward",
                                   "load, forward and load_dout");
    if (status)
        return status;
    ctx->done &= ~(unsigned)BACKWARD;
    nsa_pool_poison(ctx->plan.pool, NSA_MEM_BACKWARD | NSA_MEM_SCRATCH);
    status = ctx->stage->backward(ctx->self);
    if (!status)
        ctx->done |= BACKWARD;
    return status;
}

nsa_status nsa_prefill(nsa_context *ctx) {
    const nsa_config *c = &ctx->plan.cfg;
    const int32_t *slot = ctx->load_slot;
    nsa_status status = require_flag(ctx, NSA_DECODE, "prefill", "NSA_DECODE");
    status = status ? status : require_done(ctx, LOADED, "prefill", "a load");
    for (int64_t b = 0; b < ctx->batch.B && !status; b++) {
        int64_t len = ctx->batch.seq[b + 1] - ctx->batch.seq[b];
        if (len > c->max_seq_len)
            status =
                nsa_fail(NSA_ERR_INPUT,
                         "sequence %" PRId64 " has %" PRId64 " tokens, max_seq_len is %" PRId64, b,
                         len, c->max_seq_len);
    }
    if (status)
        return status;
    ctx->done &= WEIGHTS | LOADED | DOUT;
    for (int64_t b = 0; b < ctx->batch.B; b++)
        ctx->len[slot[b]] = 0;
    if (!ctx->batch.keeps_slots)
        memset(ctx->len, 0, (size_t)c->max_seqs * sizeof *ctx->len);
    nsa_pool_poison(ctx->plan.pool, NSA_MEM_FORWARD | NSA_MEM_SCRATCH);
    status = ctx->stage->prefill(ctx->self);
    for (int64_t b = 0; b < ctx->batch.B && !status; b++)
        ctx->len[slot[b]] = ctx->batch.seq[b + 1] - ctx->batch.seq[b];
    if (!status)
        ctx->done |= FORWARD;
    return status;
}

nsa_status nsa_decode(nsa_context *ctx) {
    nsa_status status = require_flag(ctx, NSA_DECODE, "decode", "NSA_DECODE");
    status = status ? status : require_done(ctx, STEP, "decode", "load_step");
    if (status)
        return status;
    ctx->done &= WEIGHTS; /* results are now the step's; it cannot be decoded twice */
    nsa_pool_poison(ctx->plan.pool, NSA_MEM_FORWARD | NSA_MEM_SCRATCH);
    status = ctx->stage->decode(ctx->self);
    for (int64_t a = 0; a < ctx->step.A && !status; a++)
        ctx->len[ctx->step.slot[a]]++;
    if (!status)
        ctx->done |= DECODED;
    return status;
}

nsa_status nsa_causal(nsa_context *ctx, int pair) {
    nsa_status status = require_flag(ctx, NSA_WANT_CAUSAL, "causal", "NSA_WANT_CAUSAL");
    status = status ? status : require_done(ctx, LOADED, "causal", "a load");
    if (!status && !ctx->stage->causal)
        status = nsa_fail(NSA_ERR_UNSUPPORTED, "this stage has no plain causal attention");
    if (!status && (pair < 0 || pair > 2))
        status = nsa_fail(NSA_ERR_INPUT, "pair %d is not 0 (cmp), 1 (slc) or 2 (win)", pair);
    if (status)
        return status;
    ctx->done &= ~(unsigned)CAUSAL;
    nsa_pool_poison(ctx->plan.pool, NSA_MEM_SCRATCH);
    status = ctx->stage->causal(ctx->self, pair);
    if (!status)
        ctx->done |= CAUSAL;
    return status;
}

int64_t nsa_slot_len(nsa_context *ctx, int64_t slot) {
    if (slot < 0 || slot >= ctx->max_seqs)
        return -1;
    if (ctx->len && ctx->stage->slot_lens && ctx->stage->slot_lens(ctx->self, ctx->len))
        return -1; /* the device failed: nsa_last_error() */
    return ctx->len ? ctx->len[slot] : 0;
}

/* ----------------------------------------------------------------- results */

/* NSA_OK if a result exists: its call has run, and open was asked to keep it. */
static nsa_status exists(const nsa_context *ctx, nsa_id id) {
    unsigned flags = ctx->plan.setup.flags, done = ctx->done;
    const char *name = nsa_name(id);
    if (id >= NSA_OUT_CMP && id <= NSA_OUT_WIN && !(flags & NSA_WANT_BRANCHES))
        return nsa_fail(NSA_ERR_STATE, "%s needs a context opened with NSA_WANT_BRANCHES", name);
    if (id == NSA_IMPORTANCE && !(flags & NSA_WANT_IMPORTANCE))
        return nsa_fail(NSA_ERR_STATE, "%s needs a context opened with NSA_WANT_IMPORTANCE", name);
    if (id >= NSA_GRAD_FIRST && !nsa_has(&ctx->plan.cfg, id))
        return nsa_fail(NSA_ERR_INPUT, "phi \"%s\" has no %s", nsa_phi_name(ctx->plan.cfg.phi),
                        name);
    unsigned any = id >= NSA_GRAD_FIRST                      ? BACKWARD
                   : id == NSA_OUT_CAUSAL                    ? CAUSAL
                   : id >= NSA_IMPORTANCE && id <= NSA_V_PHI ? FORWARD
                   : id == NSA_BLOCK_IDX || id >= NSA_OUT    ? FORWARD | DECODED
                                                             : 0;
    if (!any)
        return nsa_fail(NSA_ERR_INPUT, "%s is an input, not a result", name);
    if (!(done & any))
        return nsa_fail(NSA_ERR_STATE, "%s does not exist yet: no %s since the last load", name,
                        any == BACKWARD  ? "backward"
                        : any == CAUSAL  ? "causal"
                        : any == FORWARD ? "forward or prefill"
                                         : "forward, prefill or decode");
    return NSA_OK;
}

nsa_status nsa_result(const nsa_context *ctx, nsa_id id, nsa_tensor *tensor) {
    if ((unsigned)id >= NSA_ID_COUNT)
        return nsa_fail(NSA_ERR_INPUT, "result %d is not a tensor's number", (int)id);
    nsa_status status = exists(ctx, id);
    if (status)
        return status;
    const nsa_batch *b = &ctx->batch;
    int step = (ctx->done & DECODED) && id != NSA_OUT_CAUSAL;
    nsa_lengths lengths = {.T = b->T, .R = step ? ctx->step.A : b->R, .N = b->N, .J = b->J};
    nsa_shape(&ctx->plan.cfg, &lengths, id, 1, tensor);
    tensor->dtype = id == NSA_BLOCK_IDX                ? NSA_I32
                    : ctx->stage->arith == NSA_FLOAT64 ? NSA_F64
                                                       : NSA_F32;
    return NSA_OK;
}

nsa_status nsa_read(nsa_context *ctx, nsa_id id, nsa_tensor *tensor) {
    nsa_tensor is;
    nsa_status status = nsa_result(ctx, id, &is);
    status = status ? status : pending(ctx);
    if (status)
        return status;
    const int as_bf16 = tensor->dtype == NSA_BF16 && is.dtype != NSA_I32;
    int same = (is.dtype == tensor->dtype || as_bf16) && is.ndim == tensor->ndim;
    for (int i = 0; same && i < is.ndim; i++)
        same = is.shape[i] == tensor->shape[i];
    if (!same)
        return nsa_fail(NSA_ERR_INPUT,
                        "%s: the tensor to read into is not of the result's type "
                        "and shape; ask nsa_result()",
                        nsa_name(id));
    int64_t count = nsa_count(&is);
    if (count && !tensor->data)
        return nsa_fail(NSA_ERR_INPUT, "%s: the tensor to read into has no data", nsa_name(id));
    status = nsa_check_place(ctx, id, tensor);
    return status || !count ? status : ctx->stage->read(ctx->self, id, tensor);
}

int nsa_phases(nsa_context *ctx, nsa_phase *list, int capacity) {
    return ctx->stage->phases ? ctx->stage->phases(ctx->self, list, capacity) : 0;
}
