/** @file
 *  @brief Copy results to the host: out of the blocks, without the padding. */
#include "load.cuh"

static nsa_status copy_to_host(stage *st, void *dst, const void *src, size_t bytes) {
    if (bytes)
        NSA_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, st->stream));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

/* dst [rows,D] = src [rows,padded] without the padding. */
static nsa_status read_rows(stage *st, real *dst, const real *src, int64_t rows, int64_t D,
                            int64_t padded) {
    const size_t size = (size_t)D * sizeof *dst;
    NSA_CUDA(cudaMemcpy2DAsync(dst, size, src, (size_t)padded * sizeof *src, size, (size_t)rows,
                               cudaMemcpyDeviceToHost, st->stream));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

/* Keys, values or their gradients of one branch, from natural blocks to dst [T or N,Hkv,D]. A
 * head's keys of a sequence are contiguous rows. */
static nsa_status read_keys(stage *st, int branch, key_view from, real *dst) {
    const size_t size = (size_t)from.D * sizeof *dst;
    for (int64_t i = 0; i < st->batch.B * from.Hkv; i++) {
        const sequence *sq = &st->host_seqs[i / from.Hkv];
        const int64_t h = i % from.Hkv, first = branch == CMP ? sq->cmp : sq->token;
        const int64_t keys = branch == CMP ? sq->n_cmp : sq->len;
        if (keys)
            NSA_CUDA(cudaMemcpy2DAsync(
                dst + (first * from.Hkv + h) * from.D, (size_t)from.Hkv * size,
                natural_row(&from, h, sq->first[branch] * BLOCK), (size_t)from.Dp * sizeof *dst,
                size, (size_t)keys, cudaMemcpyDeviceToHost, st->stream));
    }
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

static nsa_status read_gradient(stage *st, nsa_id id, real *dst) {
    const nsa_config *c = &st->cfg;
    const size_t size = sizeof(real);
    if (id >= NSA_DPHI_K_PE) {
        const int pair = (id - NSA_DPHI_K_PE) / WEIGHTS, w = (id - NSA_DPHI_K_PE) % WEIGHTS;
        return copy_to_host(st, dst, st->dphi[pair][w], (size_t)weight_count(st, pair, w) * size);
    }
    switch (id) {
    case NSA_DQ:
        return read_rows(st, dst, st->dq, st->rows * c->q_heads, c->qk_dim, st->c.dkp);
    case NSA_DGATE:
        return copy_to_host(st, dst, st->dgate, (size_t)(st->rows * c->q_heads * BRANCHES) * size);
    default: { /* NSA_DK_CMP to NSA_DV_WIN, as the branches are ordered */
        const int branch = (id - NSA_DK_CMP) / PAIR == CMP ? RAW : (id - NSA_DK_CMP) / PAIR;
        return read_keys(st, branch, gradient_view(st, branch, (id - NSA_DK_CMP) % PAIR), dst);
    }
    }
}

nsa_status read(void *self, nsa_id id, void *to) {
    stage *st = (stage *)self;
    const nsa_config *c = &st->cfg;
    const int64_t heads = st->rows * c->q_heads, groups = st->rows * c->kv_heads;
    real *dst = (real *)to;
    if (id >= NSA_DQ)
        return read_gradient(st, id, dst);
    switch (id) {
    case NSA_OUT:
        return read_rows(st, dst, st->out, heads, c->v_dim, st->c.dvp);
    case NSA_OUT_CMP:
    case NSA_OUT_SLC:
    case NSA_OUT_WIN:
        return read_rows(st, dst, st->out_x[id - NSA_OUT_CMP], heads, c->v_dim, st->c.dvp);
    case NSA_OUT_CAUSAL:
        return read_rows(st, dst, st->out_causal, st->batch.R * c->q_heads, c->v_dim, st->c.dvp);
    case NSA_BLOCK_IDX:
        return copy_to_host(st, dst, st->block_idx,
                            (size_t)(groups * c->slc_count) * sizeof(int32_t));
    case NSA_IMPORTANCE:
        return copy_to_host(st, dst, st->importance, (size_t)(groups * st->batch.J) * sizeof(real));
    case NSA_K_PHI:
    case NSA_V_PHI:
        return read_keys(st, CMP, view_of(st, &st->in[CMP], id - NSA_K_PHI), dst);
    default:
        return nsa_fail(NSA_ERR_UNSUPPORTED, "this stage keeps no %s", nsa_name(id));
    }
}
