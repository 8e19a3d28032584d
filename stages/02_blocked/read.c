/** @file
 *  @brief Reading results back: out of the blocks, without the padding. */
#include "stage.h"

/* Rows of D out of rows padded to more. */
static void unpack_rows(const nsa_tensor *to, const real *src, int64_t rows, int64_t D,
                        int64_t padded) {
    for (int64_t i = 0; i < rows; i++)
        store_result(to, i * D, src + i * padded, D);
}

/* Keys, values or their gradients: to [T or N,Hkv,D], out of natural blocks [BLOCK,D up to LANES],
 * or out of transposed ones [D,BLOCK]. */
static void unpack_blocks(const stage *st, int branch, int pair, const real *src,
                          const nsa_tensor *to) {
    const nsa_batch *batch = &st->batch;
    const int64_t *at = branch == CMP ? batch->cmp : batch->seq;
    const int64_t Hkv = st->cfg.kv_heads, D = width(st, pair);
    const int transposed = src == st->in[branch].transposed[pair];
    for (int64_t b = 0; b < batch->B; b++) {
        for (int64_t i = at[b] * Hkv * D; i < at[b + 1] * Hkv * D; i++) {
            const int64_t h = i / D % Hkv, t = i / D / Hkv - at[b], c = i % D;
            const int64_t key =
                (h * st->in[branch].stride + first_block(st, branch, b)) * BLOCK + t;
            store_result(to, i,
                         transposed ? &src[(key / BLOCK * D + c) * BLOCK + key % BLOCK]
                                    : &src[key * round_up(D, LANES) + c],
                         1);
        }
    }
}

nsa_status read(void *self, nsa_id id, const nsa_tensor *to) {
    const stage *st = self;
    const int branch = id == NSA_K_PHI || id == NSA_V_PHI     ? CMP
                       : id == NSA_DK_SLC || id == NSA_DV_SLC ? SLC
                                                              : WIN;
    const kv_blocks *in = &st->in[branch];
    switch (id) {
    case NSA_DQ:
        unpack_rows(to, st->dq, st->rows * st->cfg.q_heads, st->cfg.qk_dim, st->dkp);
        break;
    case NSA_DPHI_K_W1:
    case NSA_DPHI_V_W1: {
        const int pair = id == NSA_DPHI_K_W1 ? KEYS : VALUES;
        unpack_rows(to, st->dphi[pair][W1], st->cfg.phi_hidden, st->cfg.cmp_block * width(st, pair),
                    z_width(st, pair));
        break;
    }
    case NSA_K_PHI:
        unpack_blocks(st, branch, KEYS, in->transposed[KEYS], to);
        break;
    case NSA_V_PHI:
        unpack_blocks(st, branch, VALUES, in->natural[VALUES], to);
        break;
    case NSA_DK_SLC:
    case NSA_DK_WIN:
        unpack_blocks(st, branch, KEYS, in->gradient[KEYS], to);
        break;
    case NSA_DV_SLC:
    case NSA_DV_WIN:
        unpack_blocks(st, branch, VALUES, in->gradient[VALUES], to);
        break;
    default:
        return read_result(&st->cfg, &st->batch, st->rows, id, st->result[id], to);
    }
    return NSA_OK;
}
