/** @file
 *  @brief Copy results to the host: out of the blocks, without the padding, in chunks. */
#include "load.cuh"

#include <string.h>

enum { THREADS = 256 }; /* of a CUDA block; grid_for() gives each element a thread */

/* g_dst [rows,D] = g_src [rows,padded] without the padding. One element a thread. */
static __global__ void unpad_kernel(const real *g_src, int64_t rows, int D, int padded,
                                    real *g_dst) {
    const int64_t threads = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < rows * D; i += threads)
        g_dst[i] = g_src[i / D * padded + i % D];
}

/* g_dst [count,Hkv,D]: keys s.. of a sequence whose first block is `first`, from natural blocks
 * [64][padded] or, if padded is 0, from transposed ones [D8][64]. One element a thread. */
static __global__ void unpack_keys_kernel(const real *g_src, int Hkv, int64_t stride, int64_t first,
                                          int64_t s, int64_t count, int D, int padded,
                                          real *g_dst) {
    const int64_t threads = (int64_t)gridDim.x * blockDim.x,
                  D8 = (D + DIM_ALIGN - 1) / DIM_ALIGN * DIM_ALIGN;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count * Hkv * D;
         i += threads) {
        const int64_t key = s + i / D / Hkv, col = i % D;
        const int64_t block = i / D % Hkv * stride + first + key / BLOCK;
        g_dst[i] = padded ? g_src[(block * BLOCK + key % BLOCK) * padded + col]
                          : g_src[(block * D8 + col) * BLOCK + key % BLOCK];
    }
}

static unsigned grid_for(int64_t count) {
    const int64_t blocks = (count + THREADS - 1) / THREADS;
    return (unsigned)(blocks < 1 << 20 ? blocks : 1 << 20);
}

static nsa_status copy_to_host(stage *st, void *dst, const void *src, size_t bytes) {
    if (bytes)
        NSA_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, st->stream));
    NSA_CUDA(cudaStreamSynchronize(st->stream));
    return NSA_OK;
}

static nsa_status read_rows(stage *st, real *dst, const real *src, int64_t rows, int64_t D,
                            int64_t padded) {
    const int64_t at_once = st->chunk / D;
    if (D == padded)
        return copy_to_host(st, dst, src, (size_t)(rows * D) * sizeof(real));
    for (int64_t r = 0; r < rows; r += at_once) {
        const int64_t count = rows - r < at_once ? rows - r : at_once;
        NSA_LAUNCH(unpad_kernel, grid_for(count * D), THREADS, 0, st->stream, src + r * padded,
                   count, (int)D, (int)padded, st->dev_staging);
        NSA_LAUNCHED("unpad");
        TRY(copy_to_host(st, dst + r * D, st->dev_staging, (size_t)(count * D) * sizeof(real)));
    }
    return NSA_OK;
}

/* Keys, values or their gradients, from blocks to dst [T or N,Hkv,D]. */
static nsa_status read_blocks(stage *st, int branch, real *dst, const real *src, int64_t D,
                              int64_t padded) {
    const int64_t token_size = st->c.Hkv * D, at_once = st->chunk / token_size;
    for (int64_t b = 0; b < st->batch.B; b++) {
        const sequence *sq = &st->host_seqs[b];
        const int64_t keys = branch == CMP ? sq->n_cmp : sq->len;
        const int64_t before = branch == CMP ? sq->cmp : sq->token;
        for (int64_t s = 0; s < keys; s += at_once) {
            const int64_t count = keys - s < at_once ? keys - s : at_once;
            NSA_LAUNCH(unpack_keys_kernel, grid_for(count * token_size), THREADS, 0, st->stream,
                       src, st->c.Hkv, st->in[branch].stride, sq->first[branch], s, count, (int)D,
                       (int)padded, st->dev_staging);
            NSA_LAUNCHED("unpack_keys");
            TRY(copy_to_host(st, dst + (before + s) * token_size, st->dev_staging,
                             (size_t)(count * token_size) * sizeof(real)));
        }
    }
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
    case NSA_DK_CMP:
    case NSA_DV_CMP: {
        const int pair = id == NSA_DK_CMP ? KEYS : VALUES;
        return copy_to_host(st, dst, st->draw[pair],
                            (size_t)(st->batch.T * c->kv_heads * width(st, pair)) * size);
    }
    case NSA_DK_SLC:
    case NSA_DK_WIN: {
        const int branch = id == NSA_DK_SLC ? SLC : WIN;
        return read_blocks(st, branch, dst, st->in[branch].dk, c->qk_dim, st->c.dkp);
    }
    default: {
        const int branch = id == NSA_DV_SLC ? SLC : WIN;
        return read_blocks(st, branch, dst, st->in[branch].dv, c->v_dim, st->c.dvp);
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
        return read_blocks(st, CMP, dst, st->in[CMP].kt, c->qk_dim, 0);
    case NSA_V_PHI:
        return read_blocks(st, CMP, dst, st->in[CMP].v, c->v_dim, st->c.dvp);
    default:
        return nsa_fail(NSA_ERR_UNSUPPORTED, "this stage keeps no %s", nsa_name(id));
    }
}
