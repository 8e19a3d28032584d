/** @file attention.c
 *  @brief The NSA context of a layer: its tensors, and the five kinds of attention. */
#include "train/attention.h"
#include "common/tensors.h"
#include "harness/random.h"
#include "nsa_stage.h"

#include <stdlib.h>
#include <string.h>

const char *attention_name(attention_kind kind) {
    static const char *const names[] = {"nsa", "full", "window", "cmp+win", "random"};
    return kind < ATTENTION_KINDS ? names[kind] : NULL;
}

/* Branches whose gate is 0 cannot be left out of the operator, but they can be small: about
 * sqrt(T) compressed tokens, and one selected block of as many. */
static void shrink(nsa_config *c, int64_t longest) {
    int64_t block = 1;
    while (block < 256 && block * block < longest)
        block *= 2;
    c->cmp_block = c->cmp_stride = c->slc_block = block;
    c->phi = NSA_PHI_MEAN;
}

nsa_status attention_plan(attention *a, attention_kind kind, const nsa_config *cfg,
                          int64_t longest) {
    *a = (attention){.kind = kind, .cfg = *cfg, .pairs = 3, .pair = {0, 1, 2}, .used = 7};
    if (kind == ATTENTION_FULL || kind == ATTENTION_WINDOW) {
        shrink(&a->cfg, longest);
        a->pairs = 1, a->used = 0;
        a->pair[0] = a->pair[1] = a->pair[2] = 0;
    }
    if (kind == ATTENTION_FULL)
        a->cfg.window = longest;
    if (kind == ATTENTION_CMP_WIN) {
        a->pairs = 2, a->used = 5;
        a->pair[1] = a->pair[2] = 1;
    }
    if (a->used != 7) {
        a->cfg.slc_init = 0;
        a->cfg.slc_count = a->cfg.slc_local = 1;
    }
    return nsa_config_resolve(&a->cfg);
}

nsa_status attention_open(attention *a, const nsa_stage *stage, int threads) {
    const nsa_config *c = &a->cfg;
    const nsa_setup setup = {.flags = NSA_BACKWARD, .threads = threads};
    if ((stage->arith == NSA_FLOAT64) != (REAL_DTYPE == NSA_F64))
        return nsa_fail(NSA_ERR_UNSUPPORTED, "the stage computes in %s, this trainer does not",
                        stage->arith == NSA_FLOAT64 ? "float64" : "float32");
    a->block_idx = malloc((size_t)(c->seq_len * c->kv_heads * c->slc_count) * sizeof(int32_t));
    if (!a->block_idx)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for lists of blocks");
    return nsa_open(stage, c, &setup, &a->ctx);
}

void attention_close(attention *a) {
    nsa_close(a->ctx);
    free(a->block_idx);
    *a = (attention){0};
}

/* ----------------------------------------------------------- random blocks */

/* One row of a query in block b: the forced blocks, then draws without replacement (Floyd's would
 * be shorter to run; drawing again until a block is new is shorter to read). */
static void random_row(const nsa_config *c, int64_t b, int32_t *idx, uint64_t *state) {
    int64_t count = 0;
    for (int64_t j = 0; j <= b; j++) {
        if (j < c->slc_init || j > b - c->slc_local)
            idx[count++] = (int32_t)j;
    }
    const int64_t all = c->slc_count < b + 1 ? c->slc_count : b + 1;
    while (count < all) {
        const int32_t j = (int32_t)(random_next(state) % (uint64_t)(b + 1));
        int64_t seen = 0;
        while (seen < count && idx[seen] != j)
            seen++;
        if (seen == count)
            idx[count++] = j;
    }
    while (count < c->slc_count)
        idx[count++] = -1;
}

void attention_random_blocks(attention *a, const pack *p, uint64_t *state) {
    const nsa_config *c = &a->cfg;
    for (int64_t s = 0; s < p->B; s++) {
        for (int64_t t = p->cu_seqlens[s]; t < p->cu_seqlens[s + 1]; t++) {
            const int64_t b = (t - p->cu_seqlens[s]) / c->slc_block;
            for (int64_t h = 0; h < c->kv_heads; h++)
                random_row(c, b, a->block_idx + (t * c->kv_heads + h) * c->slc_count, state);
        }
    }
}

/* ---------------------------------------------------- forward and backward */

static nsa_tensor rows_of(real *data, int64_t N, int64_t heads, int64_t width) {
    return (nsa_tensor){data, REAL_DTYPE, 3, {N, heads, width}, memory_place()};
}

static nsa_tensor blocks_of(const attention *a, const pack *p) {
    return (nsa_tensor){
        a->block_idx, NSA_I32, 3, {p->N, a->cfg.kv_heads, a->cfg.slc_count}, NSA_HOST};
}

/* A compressor's weight or its gradient, in the shape of the specification. */
static nsa_tensor phi_of(const attention *a, int weight, const param *p, int gradient) {
    nsa_tensor t = {.dtype = REAL_DTYPE, .place = memory_place()};
    const nsa_lengths none = {0};
    nsa_shape(&a->cfg, &none, (nsa_id)(NSA_PHI_FIRST + weight), 0, &t);
    t.data = gradient ? p->grad : p->value;
    return t;
}

nsa_status attention_forward(attention *a, const pack *p, const attention_io *io,
                             attention_blocks blocks) {
    const nsa_config *c = &a->cfg;
    nsa_tensors in = {0};
    in.at[NSA_Q] = rows_of(io->q, p->N, c->q_heads, c->qk_dim);
    for (int b = 0; b < BRANCHES; b++) {
        in.at[NSA_K_CMP + 2 * b] = rows_of(io->k[a->pair[b]], p->N, c->kv_heads, c->qk_dim);
        in.at[NSA_V_CMP + 2 * b] = rows_of(io->v[a->pair[b]], p->N, c->kv_heads, c->v_dim);
    }
    in.at[NSA_GATE] = rows_of(io->gate, p->N, c->q_heads, BRANCHES);
    for (int w = 0; w < PHI_WEIGHTS; w++) {
        if (io->phi[w])
            in.at[NSA_PHI_FIRST + w] = phi_of(a, w, io->phi[w], 0);
    }
    in.at[NSA_CU_SEQLENS] = (nsa_tensor){(void *)p->cu_seqlens, NSA_I32, 1, {p->B + 1}, NSA_HOST};
    if (blocks != BLOCKS_SELECTED)
        in.at[NSA_BLOCK_IDX] = blocks_of(a, p);
    nsa_tensor out = rows_of(io->out, p->N, c->q_heads, c->v_dim);
    nsa_status status = nsa_load(a->ctx, &in);
    status = status ? status : nsa_forward(a->ctx);
    return status ? status : nsa_read(a->ctx, NSA_OUT, &out);
}

/* Which branch's gradient is pair i's: the last one that reads it. The others read it with their
 * gate at 0, and their gradients are 0. */
static int branch_of(const attention *a, int i) {
    int branch = 0;
    for (int b = 0; b < BRANCHES; b++)
        branch = a->pair[b] == i ? b : branch;
    return branch;
}

nsa_status attention_backward(attention *a, const pack *p, const attention_io *io) {
    const nsa_config *c = &a->cfg;
    nsa_tensor dout = rows_of(io->dout, p->N, c->q_heads, c->v_dim);
    nsa_tensor dq = rows_of(io->dq, p->N, c->q_heads, c->qk_dim);
    nsa_tensor dgate = rows_of(io->dgate, p->N, c->q_heads, BRANCHES);
    nsa_status status = nsa_load_dout(a->ctx, &dout);
    status = status ? status : nsa_backward(a->ctx);
    status = status ? status : nsa_read(a->ctx, NSA_DQ, &dq);
    if (a->used)
        status = status ? status : nsa_read(a->ctx, NSA_DGATE, &dgate);
    for (int i = 0; i < a->pairs && !status; i++) {
        nsa_tensor dk = rows_of(io->dk[i], p->N, c->kv_heads, c->qk_dim);
        nsa_tensor dv = rows_of(io->dv[i], p->N, c->kv_heads, c->v_dim);
        const int b = branch_of(a, i);
        status = nsa_read(a->ctx, (nsa_id)(NSA_DK_CMP + 2 * b), &dk);
        status = status ? status : nsa_read(a->ctx, (nsa_id)(NSA_DV_CMP + 2 * b), &dv);
    }
    for (int w = 0; w < PHI_WEIGHTS && !status; w++) {
        if (!io->phi[w])
            continue;
        nsa_tensor d = phi_of(a, w, io->phi[w], 1);
        status = nsa_read(a->ctx, (nsa_id)(NSA_DPHI_K_PE + w), &d);
    }
    return status;
}

nsa_status attention_read_blocks(attention *a, const pack *p) {
    nsa_tensor t = blocks_of(a, p);
    return nsa_read(a->ctx, NSA_BLOCK_IDX, &t);
}
