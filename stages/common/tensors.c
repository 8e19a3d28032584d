/** @file tensors.c
 *  @brief Names and shapes of all tensors, and their conversion. */
#include "common/tensors.h"

#include <string.h>

/* Shapes, one letter for each dimension: T R N J as in nsa_lengths; Q q_heads, H kv_heads, k
 * qk_dim, v v_dim, n slc_count, 3 gates, l cmp_block, m phi_hidden, K = l*k and V = l*v, * any
 * length. */
typedef struct tensor_row {
    const char *name, *input, *result;
} tensor_row;

/* clang-format off */
#define BOTH(shape) shape, shape
static const tensor_row table[NSA_ID_COUNT] = {
    [NSA_Q] = {"q", "TQk", NULL},
    [NSA_K_CMP] = {"k_cmp", "THk", NULL},           [NSA_V_CMP] = {"v_cmp", "THv", NULL},
    [NSA_K_SLC] = {"k_slc", "THk", NULL},           [NSA_V_SLC] = {"v_slc", "THv", NULL},
    [NSA_K_WIN] = {"k_win", "THk", NULL},           [NSA_V_WIN] = {"v_win", "THv", NULL},
    [NSA_GATE] = {"gate", "TQ3", NULL},             [NSA_DOUT] = {"dout", "TQv", NULL},
    [NSA_CU_SEQLENS] = {"cu_seqlens", "*", NULL},   [NSA_ROWS] = {"rows", "*", NULL},
    [NSA_ACTIVE] = {"active", "*", NULL},           [NSA_BLOCK_IDX] = {"block_idx", "THn", "RHn"},
    [NSA_PHI_K_PE] = {"phi_k_pe", "lk", NULL},      [NSA_PHI_V_PE] = {"phi_v_pe", "lv", NULL},
    [NSA_PHI_K_W] = {"phi_k_w", "k", NULL},         [NSA_PHI_V_W] = {"phi_v_w", "v", NULL},
    [NSA_PHI_K_B] = {"phi_k_b", "l", NULL},         [NSA_PHI_V_B] = {"phi_v_b", "l", NULL},
    [NSA_PHI_K_W1] = {"phi_k_w1", "mK", NULL},      [NSA_PHI_V_W1] = {"phi_v_w1", "mV", NULL},
    [NSA_PHI_K_B1] = {"phi_k_b1", "m", NULL},       [NSA_PHI_V_B1] = {"phi_v_b1", "m", NULL},
    [NSA_PHI_K_W2] = {"phi_k_w2", "km", NULL},      [NSA_PHI_V_W2] = {"phi_v_w2", "vm", NULL},
    [NSA_PHI_K_B2] = {"phi_k_b2", "k", NULL},       [NSA_PHI_V_B2] = {"phi_v_b2", "v", NULL},
    [NSA_OUT] = {"out", NULL, "RQv"},               [NSA_OUT_CMP] = {"out_cmp", NULL, "RQv"},
    [NSA_OUT_SLC] = {"out_slc", NULL, "RQv"},       [NSA_OUT_WIN] = {"out_win", NULL, "RQv"},
    [NSA_OUT_CAUSAL] = {"out_causal", NULL, "RQv"}, [NSA_IMPORTANCE] = {"importance", NULL, "RHJ"},
    [NSA_K_PHI] = {"k_phi", NULL, "NHk"},           [NSA_V_PHI] = {"v_phi", NULL, "NHv"},
    [NSA_DQ] = {"dq", NULL, "RQk"},                 [NSA_DGATE] = {"dgate", NULL, "RQ3"},
    [NSA_DK_CMP] = {"dk_cmp", NULL, "THk"},         [NSA_DV_CMP] = {"dv_cmp", NULL, "THv"},
    [NSA_DK_SLC] = {"dk_slc", NULL, "THk"},         [NSA_DV_SLC] = {"dv_slc", NULL, "THv"},
    [NSA_DK_WIN] = {"dk_win", NULL, "THk"},         [NSA_DV_WIN] = {"dv_win", NULL, "THv"},
    [NSA_DPHI_K_PE] = {"dphi_k_pe", NULL, "lk"},    [NSA_DPHI_V_PE] = {"dphi_v_pe", NULL, "lv"},
    [NSA_DPHI_K_W] = {"dphi_k_w", NULL, "k"},       [NSA_DPHI_V_W] = {"dphi_v_w", NULL, "v"},
    [NSA_DPHI_K_B] = {"dphi_k_b", NULL, "l"},       [NSA_DPHI_V_B] = {"dphi_v_b", NULL, "l"},
    [NSA_DPHI_K_W1] = {"dphi_k_w1", NULL, "mK"},    [NSA_DPHI_V_W1] = {"dphi_v_w1", NULL, "mV"},
    [NSA_DPHI_K_B1] = {"dphi_k_b1", NULL, "m"},     [NSA_DPHI_V_B1] = {"dphi_v_b1", NULL, "m"},
    [NSA_DPHI_K_W2] = {"dphi_k_w2", NULL, "km"},    [NSA_DPHI_V_W2] = {"dphi_v_w2", NULL, "vm"},
    [NSA_DPHI_K_B2] = {"dphi_k_b2", NULL, "k"},     [NSA_DPHI_V_B2] = {"dphi_v_b2", NULL, "v"},
};
/* clang-format on */

const char *nsa_name(nsa_id id) {
    return (unsigned)id < NSA_ID_COUNT ? table[id].name : NULL;
}

nsa_id nsa_id_named(const char *name) {
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        if (!strcmp(name, table[id].name))
            return (nsa_id)id;
    }
    return NSA_ID_COUNT;
}

size_t nsa_dtype_size(nsa_dtype dtype) {
    return dtype == NSA_F64                       ? 8
           : dtype == NSA_F32 || dtype == NSA_I32 ? 4
           : dtype == NSA_BF16                    ? 2
                                                  : 0;
}

int64_t nsa_count(const nsa_tensor *tensor) {
    int64_t count = 1;
    if (tensor->ndim < 0 || tensor->ndim > 3)
        return -1;
    for (int i = 0; i < tensor->ndim; i++) {
        if (tensor->shape[i] < 0 || __builtin_mul_overflow(count, tensor->shape[i], &count))
            return -1;
    }
    return count;
}

int nsa_has(const nsa_config *config, nsa_id id) {
    int weight = -1;
    if (id >= NSA_PHI_FIRST && id <= NSA_PHI_LAST)
        weight = (int)id - NSA_PHI_FIRST;
    else if (id >= NSA_DPHI_K_PE && id <= NSA_GRAD_LAST)
        weight = (int)id - NSA_DPHI_K_PE;
    if (weight < 0)
        return 1;
    switch (weight % NSA_PHI_EACH) {
    case 0: /* pe */
        return config->phi != NSA_PHI_MEAN;
    case 1: /* w, b */
    case 2:
        return config->phi == NSA_PHI_GATED;
    default: /* w1, b1, w2, b2 */
        return config->phi == NSA_PHI_MLP;
    }
}

nsa_id nsa_gradient_of(nsa_id id) {
    if (id < NSA_GRAD_FIRST || id > NSA_GRAD_LAST)
        return NSA_ID_COUNT;
    return nsa_id_named(table[id].name + 1); /* "dq" - "d" */
}

static int64_t dimension(const nsa_config *c, const nsa_lengths *n, char letter) {
    switch (letter) {
    case 'T':
        return n->T;
    case 'R':
        return n->R;
    case 'N':
        return n->N;
    case 'J':
        return n->J;
    case 'Q':
        return c->q_heads;
    case 'H':
        return c->kv_heads;
    case 'k':
        return c->qk_dim;
    case 'v':
        return c->v_dim;
    case 'n':
        return c->slc_count;
    case 'l':
        return c->cmp_block;
    case 'm':
        return c->phi_hidden;
    case 'K':
        return c->cmp_block * c->qk_dim;
    case 'V':
        return c->cmp_block * c->v_dim;
    case '3':
        return 3;
    default:
        return -1;
    }
}

void nsa_shape(const nsa_config *config, const nsa_lengths *lengths, nsa_id id, int as_result,
               nsa_tensor *tensor) {
    const char *letters = as_result ? table[id].result : table[id].input;
    tensor->ndim = 0;
    for (; letters && letters[tensor->ndim]; tensor->ndim++)
        tensor->shape[tensor->ndim] = dimension(config, lengths, letters[tensor->ndim]);
}

int64_t nsa_weight_count(const nsa_config *config, int pair, int weight) {
    nsa_tensor shape;
    nsa_shape(config, &(nsa_lengths){0}, (nsa_id)(NSA_PHI_FIRST + pair * NSA_PHI_EACH + weight), 0,
              &shape);
    return nsa_count(&shape);
}

float nsa_bf16_to_f32(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t nsa_bf16_from_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x)
        return (uint16_t)(bits >> 16 | 0x40); /* a quiet NaN: rounding could make it infinite */
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

void nsa_copy_f64(double *dst, const nsa_tensor *src, int64_t first, int64_t count) {
    if (src->dtype == NSA_F64 && count)
        memcpy(dst, (const double *)src->data + first, (size_t)count * sizeof *dst);
    for (int64_t i = 0; i < count && src->dtype == NSA_F32; i++)
        dst[i] = (double)((const float *)src->data)[first + i];
    for (int64_t i = 0; i < count && src->dtype == NSA_BF16; i++)
        dst[i] = (double)nsa_bf16_to_f32(((const uint16_t *)src->data)[first + i]);
}

void nsa_copy_f32(float *dst, const nsa_tensor *src, int64_t first, int64_t count) {
    if (src->dtype == NSA_F32 && count)
        memcpy(dst, (const float *)src->data + first, (size_t)count * sizeof *dst);
    for (int64_t i = 0; i < count && src->dtype == NSA_F64; i++)
        dst[i] = (float)((const double *)src->data)[first + i];
    for (int64_t i = 0; i < count && src->dtype == NSA_BF16; i++)
        dst[i] = nsa_bf16_to_f32(((const uint16_t *)src->data)[first + i]);
}
