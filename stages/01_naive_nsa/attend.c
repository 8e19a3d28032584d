/** @file
 *  @brief The three branches and their gate: each is a softmax over the keys its mask keeps. */
#include "stage.h"

#include <string.h>

/* Compressed branch: token i covers positions [i d, i d + l) and is seen once they are all past
 * (Eq. 8): i d + l - 1 <= t. Each visible_ function fills st->key_list and returns its length. */
int64_t visible_cmp(const stage *st, const sequence *sq, int64_t t) {
    int64_t n = 0;
    for (; n < sq->n_cmp && n * st->cfg.cmp_stride + st->cfg.cmp_block - 1 <= t; n++)
        st->key_list[n] = (int32_t)n;
    return n;
}

/* Selected branch: the tokens s <= t of the blocks in idx (Eq. 12). */
int64_t visible_slc(const stage *st, int64_t t, const int32_t *idx) {
    int64_t n = 0;
    for (int64_t i = 0; i < st->cfg.slc_count && idx[i] >= 0; i++) {
        int64_t first = idx[i] * st->cfg.slc_block, end = first + st->cfg.slc_block;
        for (int64_t s = first; s < end && s <= t; s++)
            st->key_list[n++] = (int32_t)s;
    }
    return n;
}

/* Window branch: t - w < s <= t, self included. */
int64_t visible_win(const stage *st, int64_t t) {
    int64_t n = 0;
    for (int64_t s = t - st->cfg.window + 1 > 0 ? t - st->cfg.window + 1 : 0; s <= t; s++)
        st->key_list[n++] = (int32_t)s;
    return n;
}

/* Plain causal attention: s <= t. */
int64_t visible_all(const stage *st, int64_t t) {
    int64_t n = 0;
    for (int64_t s = 0; s <= t; s++)
        st->key_list[n++] = (int32_t)s;
    return n;
}

/* Sums in two levels: a float32 sum over all compressed keys of a long text rounds once a key, at
 * the size of the whole sum. So every PARTIAL_KEYS keys a part begins from zero, and the parts are
 * added. Gradients hang on these digits: the dS of a row add up to zero only as far as o is exact,
 * and what is left over stands against sums that shrink as keys grow in number. */
enum { PARTIAL_KEYS = 2048 };

static int64_t partial_end(int64_t first, int64_t n) {
    return first + PARTIAL_KEYS < n ? first + PARTIAL_KEYS : n;
}

/* o [dv] = sum_s p_s v_s, p = softmax_s(scale q.k_s) over the n keys of st->key_list. Their
 * probabilities stay in st->p, in the list's order. With nothing listed o = 0. The difference of
 * score and maximum is taken before it is scaled: one rounding, however large both are. */
void attend(const stage *st, const real *q, const real *k, const real *v, int64_t n, real *o) {
    const int64_t dk = st->cfg.qk_dim, dv = st->cfg.v_dim, Hkv = st->cfg.kv_heads;
    const real scale = (real)st->cfg.scale;
    real *p = st->p, row_max = -INFINITY, row_sum = 0;
    for (int64_t i = 0; i < n; i++) {
        p[i] = dot(q, k + st->key_list[i] * Hkv * dk, dk);
        row_max = p[i] > row_max ? p[i] : row_max;
    }
    for (int64_t first = 0; first < n; first += PARTIAL_KEYS) {
        real partial = 0;
        for (int64_t i = first; i < partial_end(first, n); i++) {
            p[i] = real_exp(scale * (p[i] - row_max));
            partial += p[i];
        }
        row_sum += partial;
    }
    memset(o, 0, (size_t)dv * sizeof *o);
    for (int64_t first = 0; first < n; first += PARTIAL_KEYS) {
        memset(st->partial, 0, (size_t)dv * sizeof *o);
        for (int64_t i = first; i < partial_end(first, n); i++) {
            p[i] /= row_sum;
            add_scaled(st->partial, p[i], v + st->key_list[i] * Hkv * dv, dv);
        }
        add_scaled(o, 1, st->partial, dv);
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

/* One branch of one head; the n keys it sees are already in st->key_list. */
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
            const int64_t visible = visible_cmp(st, sq, t);
            attend_branch(st, sq, CMP, row, visible);
            /* st->p still holds this head's p_cmp */
            add_importance(c, st->p, visible, t / c->slc_block + 1, imp);
        }
        nsa_timer_add(&st->timer, CMP);
        if (forced)
            memcpy(idx, forced + kvh * n, (size_t)n * sizeof *idx);
        else
            select_blocks(c, imp, t, idx);
        nsa_timer_add(&st->timer, SELECT);
        for (int64_t row = first; row < first + G; row++) {
            attend_branch(st, sq, SLC, row, visible_slc(st, t, idx));
            nsa_timer_add(&st->timer, SLC);
            attend_branch(st, sq, WIN, row, visible_win(st, t));
            nsa_timer_add(&st->timer, WIN);
        }
    }
}
