/** @file open.c
 *  @brief Opening and closing a stage: make and check the plan, allocate all memory. */
#include "common/context.h"
#include "common/counts.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static nsa_status make_plan(nsa_context *ctx, const nsa_config *config, const nsa_setup *setup) {
    nsa_plan *plan = &ctx->plan;
    plan->cfg = *config;
    nsa_status status = nsa_config_resolve(&plan->cfg);
    if (status)
        return status;
    const nsa_config *c = &plan->cfg;
    int decodes = (setup->flags & NSA_DECODE) != 0;
    int64_t max_len = decodes && c->max_seq_len > c->seq_len ? c->max_seq_len : c->seq_len;
    plan->setup = *setup;
    if (setup->max_rows < 0 || setup->threads < 0)
        return nsa_fail(NSA_ERR_CONFIG, "max_rows %" PRId64 " or threads %d is negative",
                        setup->max_rows, setup->threads);
    if (setup->threads > NSA_MAX_THREADS)
        return nsa_fail(NSA_ERR_CONFIG, "threads %d is more than %d", setup->threads,
                        NSA_MAX_THREADS);
    if (setup->max_rows == 0 || setup->max_rows > c->seq_len)
        plan->setup.max_rows = c->seq_len;
    if (decodes && plan->setup.max_rows < c->max_seqs)
        plan->setup.max_rows = c->max_seqs; /* a step has up to max_seqs rows of results */
    ctx->max_seqs = c->max_seqs;
    if (!decodes && c->max_seqs > c->seq_len)
        plan->cfg.max_seqs = c->seq_len; /* fill_batch() drops empty sequences */
    plan->group = c->q_heads / c->kv_heads;
    plan->max_cmp = nsa_cmp_tokens(c, c->seq_len);
    plan->max_blocks = blocks_of(c, max_len);
    plan->pool = nsa_pool_new((setup->flags & NSA_DEBUG_MEMORY) != 0);
    return plan->pool ? NSA_OK : nsa_fail(NSA_ERR_MEMORY, "cannot make a memory pool");
}

static nsa_status alloc_context_memory(nsa_context *ctx) {
    nsa_pool *pool = ctx->plan.pool;
    const nsa_config *c = &ctx->plan.cfg;
    int64_t rows = ctx->plan.setup.max_rows, seqs = c->max_seqs,
            idx_stride = c->kv_heads * c->slc_count;
    ctx->seq = nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, seqs + 1, sizeof *ctx->seq);
    ctx->cmp = nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, seqs + 1, sizeof *ctx->cmp);
    ctx->row = nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, rows, sizeof *ctx->row);
    ctx->block_idx =
        nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, rows * idx_stride, sizeof *ctx->block_idx);
    if (ctx->seq && ctx->cmp)
        ctx->seq[0] = ctx->cmp[0] = 0;
    if (!(ctx->plan.setup.flags & NSA_DECODE))
        return nsa_pool_status(pool);
    ctx->len = nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, seqs, sizeof *ctx->len);
    ctx->load_slot = nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, seqs, sizeof *ctx->load_slot);
    ctx->slot = nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, seqs, sizeof *ctx->slot);
    ctx->pos = nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, seqs, sizeof *ctx->pos);
    ctx->step_idx =
        nsa_pool_alloc(pool, NSA_MEM_PERSISTENT, seqs * idx_stride, sizeof *ctx->step_idx);
    nsa_status status = nsa_pool_status(pool);
    if (!status)
        memset(ctx->len, 0, (size_t)seqs * sizeof *ctx->len);
    return status;
}

/* A half-written stage may lack backward, decode or prefill. */
static nsa_status check_exports(const nsa_stage *stage, const nsa_setup *setup) {
    if ((setup->flags & NSA_BACKWARD) && !stage->backward)
        return nsa_fail(NSA_ERR_UNSUPPORTED, "this stage has no backward");
    if ((setup->flags & NSA_DECODE) && !stage->prefill)
        return nsa_fail(NSA_ERR_UNSUPPORTED, "this stage has no prefill");
    return NSA_OK;
}

/* If memory is short for decode, add the number of slots to the error: the likeliest cause. */
static nsa_status explain_memory_error(const nsa_context *ctx, nsa_status status) {
    const nsa_config *c = &ctx->plan.cfg;
    if (status == NSA_ERR_MEMORY && (ctx->plan.setup.flags & NSA_DECODE))
        return nsa_fail(status,
                        "%s; max_seqs %" PRId64 " asks for as many slots of max_seq_len %" PRId64
                        " tokens",
                        nsa_last_error(), c->max_seqs, c->max_seq_len);
    return status;
}

nsa_status nsa_open(const nsa_stage *stage, const nsa_config *config, const nsa_setup *setup,
                    nsa_context **context) {
    *context = NULL;
    nsa_context *ctx = calloc(1, sizeof *ctx);
    if (!ctx)
        return nsa_fail(NSA_ERR_MEMORY, "cannot make a context");
    ctx->stage = stage;
    nsa_status status = make_plan(ctx, config, setup);
    status = status ? status : check_exports(stage, setup);
    status = status ? status : stage->available();
    status = status ? status : alloc_context_memory(ctx);
    status = status ? status : stage->open(&ctx->plan, &ctx->self);
    if (status) {
        status = explain_memory_error(ctx, status);
        nsa_pool_free(ctx->plan.pool);
        free(ctx);
        return status;
    }
    *context = ctx;
    return NSA_OK;
}

void nsa_close(nsa_context *ctx) {
    if (!ctx)
        return;
    ctx->stage->close(ctx->self);
    nsa_pool_free(ctx->plan.pool);
    free(ctx);
}

nsa_status nsa_check_memory(const nsa_context *ctx) {
    return nsa_pool_check(ctx->plan.pool);
}

size_t nsa_memory(const nsa_context *ctx) {
    return nsa_pool_bytes(ctx->plan.pool);
}
