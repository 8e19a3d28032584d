/** @file
 *  @brief The three branches and their gate: each branch is a softmax over all keys, masked. */
#include "stage.h"

#include <string.h>

/* Compressed branch: token i covers positions [i d, i d + l) and is seen once they are all past
 * (Eq. 8): i d + l - 1 <= t. Each visible_ function fills st->mask and returns how many keys it is
 * over. */
int64_t visible_cmp(const stage *st, const sequence *sq, int64_t t) {
    for (int64_t i = 0; i < sq->n_cmp; i++)
        st->mask[i] = i * st->cfg.cmp_stride + st->cfg.cmp_block - 1 <= t;
    return sq->n_cmp;
}

/* Selected branch: the tokens s <= t of the blocks in idx (Eq. 12). */
int64_t visible_slc(const stage *st, const sequence *sq, int64_t t, const int32_t *idx) {
    for (int64_t s = 0; s < sq->len; s++) {
        st->mask[s] = 0;
        for (int64_t i = 0; i < st->cfg.slc_count; i++)
            st->mask[s] |= idx[i] == s / st->cfg.slc_block && s <= t;
    }
    return sq->len;
}

/* Window branch: t - w < s <= t, self included. */
int64_t visible_win(const stage *st, const sequence *sq, int64_t t) {
    for (int64_t s = 0; s < sq->len; s++)
        st->mask[s] = t - st->cfg.window < s && s <= t;
    return sq->len;
}

/* Plain causal attention: s <= t. */
int64_t visible_all(const stage *st, const sequence *sq, int64_t t) {
    for (int64_t s = 0; s < sq->len; s++)
        st->mask[s] = s <= t;
    return sq->len;
}

/* o [dv] = sum_s p_s v_s, p = softmax_s(scale q.k_s) over the n keys, masked by st->mask. The
 * probabilities stay in st->p, 0 where masked. With nothing visible o = 0. The difference of score
 * and maximum is taken before it is scaled: one rounding, however large both are. */
void attend(const stage *st, const real *q, const real *k, const real *v, int64_t n, real *o) {
    const int64_t dk = st->cfg.qk_dim, dv = st->cfg.v_dim, Hkv = st->cfg.kv_heads;
    const real scale = (real)st->cfg.scale;
    real *p = st->p, row_max = -INFINITY, row_sum = 0;
    for (int64_t s = 0; s < n; s++) {
        p[s] = dot(q, k + s * Hkv * dk, dk);
        if (!st->mask[s])
            p[s] = -INFINITY; /* the mask */
        row_max = p[s] > row_max ? p[s] : row_max;
    }
    for (int64_t s = 0; s < n; s++) {
        p[s] = st->mask[s] ? real_exp(scale * (p[s] - row_max)) : 0;
        row_sum += p[s];
    }
    memset(o, 0, (size_t)dv * sizeof *o);
    for (int64_t s = 0; s < n; s++) {
        if (!st->mask[s])
            continue; /* 0 * NaN is NaN: a masked row must not even be multiplied */
        p[s] /= row_sum;
        add_scaled(o, p[s], v + s * Hkv * dv, dv);
    }
}

/* Row r's importance [J] of one group, zeroed: Eq. 10 sums over the group's heads into it. */
static real *importance_row(stage *st, int64_t r, int64_t kvh) {
    int64_t J = st->keep_importance ? st->batch.J : st->plan->max_blocks;
    real *imp = st->importance + (st->keep_importance ? (r * st->cfg.kv_heads + kvh) * J : 0);
    memset(imp, 0, (size_t)J * sizeof *imp);
    return imp;
}

/* One head's branch output goes, times its gate, into the sum of Eq. 5. */
static void accumulate_gated(stage *st, int branch, int64_t row) {
    const int64_t dv = st->cfg.v_dim;
    add_scaled(st->out + row * dv, st->gate[row * BRANCHES + branch], st->o, dv);
    if (st->out_x[branch])
        memcpy(st->out_x[branch] + row * dv, st->o, (size_t)dv * sizeof *st->o);
}

/* One branch of one head; the keys it sees are already in st->mask. */
static void attend_branch(stage *st, const sequence *sq, int branch, int64_t row, int64_t n) {
    const nsa_config *c = &st->cfg;
    int64_t kvh = row % c->q_heads / st->plan->group;
    attend(st, st->q + row * c->qk_dim, sq->k[branch] + kvh * c->qk_dim,
           sq->v[branch] + kvh * c->v_dim, n, st->o);
    accumulate_gated(st, branch, row);
}

/* Row r of the results, for the query at position t of its sequence: per group of heads the
 * compressed branch and its importance, the selection of blocks, then the other two branches (Eq.
 * 5, 8-12). `row` = r Hq + h is one head. `forced` [Hkv,n] replaces the selection; NULL selects. */
void attend_row(stage *st, const sequence *sq, int64_t t, int64_t r, const int32_t *forced) {
    const nsa_config *c = &st->cfg;
    const int64_t G = st->plan->group, n = c->slc_count;
    memset(st->out + r * c->q_heads * c->v_dim, 0,
           (size_t)(c->q_heads * c->v_dim) * sizeof *st->out);
    for (int64_t kvh = 0; kvh < c->kv_heads; kvh++) {
        const int64_t first = r * c->q_heads + kvh * G;
        int32_t *idx = st->block_idx + (r * c->kv_heads + kvh) * n;
        real *imp = importance_row(st, r, kvh);
        for (int64_t row = first; row < first + G; row++) {
            attend_branch(st, sq, CMP, row, visible_cmp(st, sq, t));
            /* st->p still holds this head's p_cmp */
            add_importance(c, st->p, sq->n_cmp, (sq->len + c->slc_block - 1) / c->slc_block, imp);
        }
        nsa_timer_add(&st->timer, CMP);
        if (forced)
            memcpy(idx, forced + kvh * n, (size_t)n * sizeof *idx);
        else
            select_blocks(c, imp, t, idx);
        nsa_timer_add(&st->timer, SELECT);
        for (int64_t row = first; row < first + G; row++) {
            attend_branch(st, sq, SLC, row, visible_slc(st, sq, t, idx));
            nsa_timer_add(&st->timer, SLC);
            attend_branch(st, sq, WIN, row, visible_win(st, sq, t));
            nsa_timer_add(&st->timer, WIN);
        }
    }
}
