/**
 * @file config_rules.h
 * @brief The rules of docs/specification.md, "Letters", written a second time in another way, to
 * check what nsa_config_resolve() accepts.
 */
#ifndef FUZZ_CONFIG_RULES_H
#define FUZZ_CONFIG_RULES_H

#include "nsa.h"

#include <math.h>

/** @return 1 if a resolved config keeps every rule. */
static inline int config_is_legal(const nsa_config *c) {
    const int64_t lengths[] = {c->seq_len,  c->q_heads,     c->kv_heads,  c->window,
                               c->max_seqs, c->max_seq_len, c->phi_hidden};
    const int64_t blocks[] = {c->qk_dim, c->v_dim, c->cmp_block, c->cmp_stride, c->slc_block};
    for (int i = 0; i < 7; i++) {
        if (lengths[i] < 1 || lengths[i] > INT32_MAX)
            return 0;
    }
    for (int i = 0; i < 5; i++) {
        if (blocks[i] < 1 || blocks[i] > 256)
            return 0;
    }
    int64_t group = c->q_heads / c->kv_heads;
    return group * c->kv_heads == c->q_heads && group <= 128 && c->cmp_stride <= c->cmp_block &&
           c->cmp_block <= c->slc_block && c->cmp_block % c->cmp_stride == 0 &&
           c->slc_block % c->cmp_stride == 0 && c->slc_init >= 0 && c->slc_local >= 1 &&
           c->slc_init + c->slc_local <= c->slc_count && c->slc_count <= 128 &&
           c->phi >= NSA_PHI_MEAN && c->phi <= NSA_PHI_MLP && fabs(log2(c->scale)) <= 100;
}

#endif
