/** @file
 *  @brief Reading results back: out of the blocks, without the padding. */
#include "stage.h"

#include <string.h>

/* Rows of D out of rows padded to more. */
static void unpad(real *dst, const real *src, int64_t rows, int64_t D, int64_t padded) {
    for (int64_t i = 0; i < rows; i++)
        memcpy(dst + i * D, src + i * padded, (size_t)D * sizeof *dst);
}

/* Keys or values, or their gradients, out of natural blocks [BLOCK,padded]: dst [T or N,Hkv,D]. */
static void unpack_rows(const stage *st, int branch, real *dst, const real *src, int64_t D,
                        int64_t padded) {
    const nsa_batch *batch = &st->batch;
    const int64_t *at = branch == CMP ? batch->cmp : batch->seq, Hkv = st->cfg.kv_heads;
    for (int64_t b = 0; b < batch->B; b++) {
        for (int64_t i = 0; i < at[b + 1] - at[b]; i++) {
            for (int64_t h = 0; h < Hkv; h++) {
                int64_t key = (h * st->in[branch].stride + st->first[branch][b]) * BLOCK + i;
                memcpy(dst + ((at[b] + i) * Hkv + h) * D, src + key * padded,
                       (size_t)D * sizeof *dst);
            }
        }
    }
}

/* k_phi [N,Hkv,dk] out of transposed blocks. */
static void unpack_keys(const stage *st, real *dst) {
    const nsa_batch *batch = &st->batch;
    const int64_t Hkv = st->cfg.kv_heads, dk = st->cfg.qk_dim;
    for (int64_t b = 0; b < batch->B; b++) {
        for (int64_t i = 0; i < (batch->cmp[b + 1] - batch->cmp[b]) * Hkv * dk; i++) {
            int64_t token = i / dk / Hkv, h = i / dk % Hkv;
            int64_t block = h * st->in[CMP].stride + st->first[CMP][b] + token / BLOCK;
            dst[batch->cmp[b] * Hkv * dk + i] =
                st->in[CMP].kt[(block * dk + i % dk) * BLOCK + token % BLOCK];
        }
    }
}

/* A compressor's gradient, out of padded rows of hidden units; W1's is transposed as well. */
static void read_weight(const stage *st, int pair, int w, real *dst) {
    const int64_t hidden = st->cfg.phi_hidden, padded = round_up(hidden, LANES);
    const int64_t z = st->cfg.cmp_block * width(st, pair), count = weight_count(st, pair, w);
    const real *d = st->dphi[pair][w];
    if (w == W1) {
        for (int64_t i = 0; i < count; i++)
            dst[i] = d[i % z * padded + i / z];
    } else if (w == W2) {
        unpad(dst, d, width(st, pair), hidden, padded);
    } else {
        memcpy(dst, d, (size_t)count * sizeof *dst);
    }
}

static void read_gradient(const stage *st, nsa_id id, real *dst) {
    const nsa_config *c = &st->cfg;
    if (id >= NSA_DPHI_K_PE) {
        read_weight(st, (id - NSA_DPHI_K_PE) / WEIGHTS, (id - NSA_DPHI_K_PE) % WEIGHTS, dst);
    } else if (id == NSA_DQ) {
        unpad(dst, st->dq, st->rows * c->q_heads, c->qk_dim, st->dkp);
    } else if (id == NSA_DGATE) {
        unpad(dst, st->dgate, st->rows * c->q_heads, BRANCHES, BRANCHES);
    } else if (id == NSA_DK_CMP || id == NSA_DV_CMP) {
        int pair = id == NSA_DK_CMP ? KEYS : VALUES;
        memcpy(dst, st->draw[pair],
               (size_t)(st->batch.T * c->kv_heads * width(st, pair)) * sizeof *dst);
    } else if (id == NSA_DK_SLC || id == NSA_DK_WIN) {
        int branch = id == NSA_DK_SLC ? SLC : WIN;
        unpack_rows(st, branch, dst, st->in[branch].dk, c->qk_dim, st->dkp);
    } else {
        int branch = id == NSA_DV_SLC ? SLC : WIN;
        unpack_rows(st, branch, dst, st->in[branch].dv, c->v_dim, st->dvp);
    }
}

nsa_status read(void *self, nsa_id id, void *dst) {
    const stage *st = self;
    const nsa_config *c = &st->cfg;
    const int64_t groups = st->rows * c->kv_heads, outputs = st->rows * c->q_heads * c->v_dim;
    if (id >= NSA_DQ) {
        read_gradient(st, id, dst);
        return NSA_OK;
    }
    switch (id) {
    case NSA_OUT:
        memcpy(dst, st->out, (size_t)outputs * sizeof(real));
        break;
    case NSA_OUT_CMP:
    case NSA_OUT_SLC:
    case NSA_OUT_WIN:
        memcpy(dst, st->out_x[id - NSA_OUT_CMP], (size_t)outputs * sizeof(real));
        break;
    case NSA_OUT_CAUSAL:
        memcpy(dst, st->out_causal, (size_t)(st->batch.R * c->q_heads * c->v_dim) * sizeof(real));
        break;
    case NSA_BLOCK_IDX:
        memcpy(dst, st->block_idx, (size_t)(groups * c->slc_count) * sizeof(int32_t));
        break;
    case NSA_IMPORTANCE:
        memcpy(dst, st->importance, (size_t)(groups * st->batch.J) * sizeof(real));
        break;
    case NSA_K_PHI:
        unpack_keys(st, dst);
        break;
    case NSA_V_PHI:
        unpack_rows(st, CMP, dst, st->in[CMP].v, c->v_dim, st->dvp);
        break;
    default:
        return nsa_fail(NSA_ERR_UNSUPPORTED, "this stage keeps no %s", nsa_name(id));
    }
    return NSA_OK;
}
