/** @file emitted.c
 *  @brief Importance and selection from emitted compressed keys, written after the specification
 * alone: it shares no line with a stage. */
#include "harness/emitted.h"
#include "common/counts.h"
#include "harness/tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What scores a query, and where. */
typedef struct scorer {
    const nsa_config *cfg;
    const nsa_tensor *q, *k_phi;
    int64_t t, kvh;  /* position of the query in its sequence; its KV head */
    int64_t first_q; /* its group's first head, as a row of dk in q */
    int64_t first_k; /* the sequence's first compressed token */
    double *p;       /* [compressed tokens] of one head */
    char *selected;  /* [blocks] 1 for a selected one */
} scorer;

/* p [n] = softmax_i(scale q.k_phi[i]) of the group's head g (Eq. 8). One expression for every i:
 * keys of equal bits have equal p. */
static void probabilities(const scorer *x, int64_t g, int64_t n) {
    const int64_t dk = x->cfg->qk_dim, kv_heads = x->cfg->kv_heads;
    double row_max = -INFINITY, row_sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t key = ((x->first_k + i) * kv_heads + x->kvh) * dk;
        x->p[i] = 0;
        for (int64_t c = 0; c < dk; c++)
            x->p[i] += tensor_get(x->q, (x->first_q + g) * dk + c) * tensor_get(x->k_phi, key + c);
        row_max = x->p[i] > row_max ? x->p[i] : row_max;
    }
    for (int64_t i = 0; i < n; i++) {
        x->p[i] = exp(x->cfg->scale * (x->p[i] - row_max));
        row_sum += x->p[i];
    }
    for (int64_t i = 0; i < n; i++)
        x->p[i] /= row_sum;
}

/* Importance [J] of the group (Eq. 9, 10). Terms are added one p at a time, not each p times how
 * often it occurs: blocks that have the same terms in another order must tie exactly. */
static void importance_of(const scorer *x, nsa_tensor *importance, int64_t row) {
    const nsa_config *cfg = x->cfg;
    const int64_t J = importance->shape[2], n = nsa_cmp_visible(cfg, x->t);
    const int64_t strides = cfg->slc_block / cfg->cmp_stride;
    const int64_t overlap = cfg->cmp_block / cfg->cmp_stride;
    for (int64_t j = 0; j < J; j++)
        tensor_set(importance, row * J + j, 0);
    for (int64_t g = 0; g < cfg->q_heads / cfg->kv_heads; g++) {
        probabilities(x, g, n);
        for (int64_t j = 0; j <= x->t / cfg->slc_block; j++) {
            double sum = 0;
            for (int64_t term = 0; term < strides * overlap; term++) {
                const int64_t i = strides * j + term / overlap - term % overlap;
                sum += i >= 0 && i < n ? x->p[i] : 0;
            }
            tensor_set(importance, row * J + j, tensor_get(importance, row * J + j) + sum);
        }
    }
}

/* The free block of the largest importance that is not selected yet, the first of equals; NaN is
 * below every number. There is one. */
static int64_t next_free(const scorer *x, const nsa_tensor *importance, int64_t row) {
    const int64_t own_block = x->t / x->cfg->slc_block;
    int64_t best = -1;
    double largest = -INFINITY;
    for (int64_t j = 0; j <= own_block; j++) {
        const double value = tensor_get(importance, row * importance->shape[2] + j);
        const double rank = isnan(value) ? -1 : value; /* importance is a sum of probabilities */
        if (!x->selected[j] && rank > largest) {
            largest = rank;
            best = j;
        }
    }
    return best;
}

/* idx [n] (Eq. 11): the forced blocks and the free ones of the largest importance, ascending, -1
 * last. */
static void select_free(const scorer *x, const nsa_tensor *importance, int64_t row, int32_t *idx) {
    const nsa_config *cfg = x->cfg;
    const int64_t own_block = x->t / cfg->slc_block, n = cfg->slc_count;
    int64_t places = n < own_block + 1 ? n : own_block + 1, used = 0;
    for (int64_t j = 0; j <= own_block; j++) {
        x->selected[j] = j < cfg->slc_init || j > own_block - cfg->slc_local;
        places -= x->selected[j];
    }
    for (; places > 0; places--)
        x->selected[next_free(x, importance, row)] = 1;
    for (int64_t j = 0; j <= own_block; j++) {
        if (x->selected[j])
            idx[used++] = (int32_t)j;
    }
    for (; used < n; used++)
        idx[used] = -1;
}

/* All rows of the results, each in its sequence. */
static void score_rows(scorer *x, const nsa_tensors *in, nsa_tensors *results) {
    const nsa_config *cfg = x->cfg;
    const nsa_tensor *cu = &in->at[NSA_CU_SEQLENS], *rows = &in->at[NSA_ROWS];
    int64_t first_token = 0, b = 0;
    for (int64_t r = 0; r < row_count(in); r++) {
        const int64_t token = rows->dtype ? tensor_ints(rows)[r] : r;
        while (cu->dtype && token >= tensor_ints(cu)[b + 1]) {
            x->first_k += nsa_cmp_tokens(cfg, tensor_ints(cu)[b + 1] - first_token);
            first_token = tensor_ints(cu)[++b];
        }
        x->t = token - first_token;
        for (x->kvh = 0; x->kvh < cfg->kv_heads; x->kvh++) {
            const int64_t row = r * cfg->kv_heads + x->kvh;
            x->first_q = token * cfg->q_heads + x->kvh * (cfg->q_heads / cfg->kv_heads);
            importance_of(x, &results->at[NSA_IMPORTANCE], row);
            if (!in->at[NSA_BLOCK_IDX].dtype)
                select_free(x, &results->at[NSA_IMPORTANCE], row,
                            tensor_ints(&results->at[NSA_BLOCK_IDX]) + row * cfg->slc_count);
        }
    }
}

nsa_status select_by_keys(const nsa_config *cfg, const nsa_tensors *in, const nsa_tensor *k_phi,
                          nsa_tensors *results) {
    scorer x = {.cfg = cfg, .q = &in->at[NSA_Q], .k_phi = k_phi};
    x.p = calloc((size_t)k_phi->shape[0] + 1, sizeof *x.p);
    x.selected = calloc((size_t)results->at[NSA_IMPORTANCE].shape[2] + 1, sizeof *x.selected);
    nsa_status status = NSA_OK;
    if (x.p && x.selected)
        score_rows(&x, in, results);
    else
        status = nsa_fail(NSA_ERR_MEMORY, "no memory to score compressed keys");
    free(x.p);
    free(x.selected);
    return status;
}

nsa_status use_emitted_keys(const subject *s, const nsa_config *cfg, const nsa_tensors *in,
                            const nsa_tensors *mine, nsa_tensors *oracle) {
    return s->stage->arith == NSA_BFLOAT16 ? select_by_keys(cfg, in, &mine->at[NSA_K_PHI], oracle)
                                           : NSA_OK;
}
