/** @file
 *  @brief Backward of one query row: dq, dgate, and its share of every dk and dv. */
#include "stage.h"

/* Softmax attention's gradient, from the probabilities in st->p and d_o = g * dout in st->d_o:
 *   dv_s += p_s d_o,  dp_s = d_o.v_s,  ds_s = p_s (dp_s - sum_u p_u dp_u),
 *   dq += scale ds_s k_s,  dk_s += scale ds_s q;   and sum_u p_u dp_u = d_o.o. */
static void attend_backward(const stage *st, const real *q, const real *k, const real *v, int64_t n,
                            real *dq, real *dk, real *dv) {
    const int64_t Dk = st->cfg.qk_dim, Dv = st->cfg.v_dim, Hkv = st->cfg.kv_heads;
    const real scale = (real)st->cfg.scale, delta = dot(st->d_o, st->o, Dv);
    for (int64_t s = 0; s < n; s++) {
        if (!st->mask[s])
            continue;
        const real p = st->p[s], ds = p * (dot(st->d_o, v + s * Hkv * Dv, Dv) - delta);
        add_scaled(dv + s * Hkv * Dv, p, st->d_o, Dv);
        add_scaled(dq, scale * ds, k + s * Hkv * Dk, Dk);
        add_scaled(dk + s * Hkv * Dk, scale * ds, q, Dk);
    }
}

/* One branch of one head: run it forward again for p and o, then dgate = <dout,o> and the rest. */
static void branch_backward(stage *st, const sequence *sq, const gradient *g, int branch,
                            int64_t row, int64_t n) {
    const nsa_config *c = &st->cfg;
    const int64_t kvh = row % c->q_heads / st->plan->group;
    const int64_t k_offset = kvh * c->qk_dim, v_offset = kvh * c->v_dim;
    const real *q = st->q + row * c->qk_dim, *dout = st->dout + row * c->v_dim;
    const real gate = st->gate[row * BRANCHES + branch];
    attend(st, q, sq->k[branch] + k_offset, sq->v[branch] + v_offset, n, st->o);
    st->dgate[row * BRANCHES + branch] = dot(dout, st->o, c->v_dim);
    for (int64_t i = 0; i < c->v_dim; i++)
        st->d_o[i] = gate * dout[i];
    attend_backward(st, q, sq->k[branch] + k_offset, sq->v[branch] + v_offset, n,
                    st->dq + row * c->qk_dim, g->dk[branch] + k_offset, g->dv[branch] + v_offset);
}

/* Row r, for the query at position t: the blocks that forward chose are constants. */
void backward_row(stage *st, const sequence *sq, const gradient *g, int64_t t, int64_t r) {
    const nsa_config *c = &st->cfg;
    for (int64_t h = 0; h < c->q_heads; h++) {
        const int64_t row = r * c->q_heads + h, kvh = h / st->plan->group;
        const int32_t *idx = st->block_idx + (r * c->kv_heads + kvh) * c->slc_count;
        branch_backward(st, sq, g, CMP, row, visible_cmp(st, sq, t));
        nsa_timer_add(&st->timer, CMP);
        branch_backward(st, sq, g, SLC, row, visible_slc(st, sq, t, idx));
        nsa_timer_add(&st->timer, SLC);
        branch_backward(st, sq, g, WIN, row, visible_win(st, sq, t));
        nsa_timer_add(&st->timer, WIN);
    }
}
