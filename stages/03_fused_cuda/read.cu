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
            NSA_CUDA(cudaMemcpy2DAsync(dst + (first * from.Hkv + h) * from.D,
                                       (size_t)from.Hkv * size,
                                       natural_row(&from, h, sq->first_block[branch] * BLOCK),
                                       (size_t)from.Dp * sizeof *dst, size, (size_t)keys,
                                       cudaMemcpyDeviceToHost, st->stream));
    }
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

nsa_status read(void *self, nsa_id id, void *to) {
    stage *st = (stage *)self;
    const dims *c = &st->c;
    const int64_t heads = st->rows * c->Hq, groups = st->rows * c->Hkv;
    const int kv = (int)id - NSA_DK_CMP, phi = (int)id - NSA_DPHI_K_PE; /* among such gradients */
    real *dst = (real *)to;
    switch (id) {
    case NSA_OUT:
        return read_rows(st, dst, st->out, heads, c->dv, c->dvp);
    case NSA_OUT_CMP:
    case NSA_OUT_SLC:
    case NSA_OUT_WIN:
        return read_rows(st, dst, st->out_x[id - NSA_OUT_CMP], heads, c->dv, c->dvp);
    case NSA_OUT_CAUSAL:
        return read_rows(st, dst, st->out_causal, st->batch.R * c->Hq, c->dv, c->dvp);
    case NSA_BLOCK_IDX:
        return copy_to_host(st, to, st->block_idx, (size_t)(groups * c->n) * sizeof(int32_t));
    case NSA_IMPORTANCE:
        return copy_to_host(st, to, st->importance, (size_t)(groups * st->batch.J) * sizeof(real));
    case NSA_K_PHI:
    case NSA_V_PHI:
        return read_keys(st, CMP, view_of(st, &st->in[CMP], id - NSA_K_PHI), dst);
    case NSA_DQ:
        return read_rows(st, dst, st->dq, heads, c->dk, c->dkp);
    case NSA_DGATE:
        return copy_to_host(st, to, st->dgate, (size_t)(heads * BRANCHES) * sizeof(real));
    default:
        break;
    }
    if (phi >= 0)
        return copy_to_host(st, to, st->dphi[phi / WEIGHTS][phi % WEIGHTS],
                            (size_t)weight_count(st, phi / WEIGHTS, phi % WEIGHTS) * sizeof(real));
    if (kv >= 0)
        return read_keys(st, kv < PAIR ? RAW : kv / PAIR,
                         gradient_view(st, kv < PAIR ? RAW : kv / PAIR, kv % PAIR), dst);
    return nsa_fail(NSA_ERR_UNSUPPORTED, "this stage keeps no %s", nsa_name(id));
}
