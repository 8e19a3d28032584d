/** @file
 *  @brief Backward of a tile of query rows: dq, dgate, and its share of every dk and dv. */
#include "stage.h"

/* From scores to probabilities and their gradients, for head number `head` of all rows: p =
 * e^(scale (s - row_max)) inv_sum, with the forward's row_max and inv_sum;  ds = scale p (gate dp -
 * delta), delta = gate dgate. s becomes gate p, and dp becomes ds. */
static void softmax_backward(const stage *st, int branch, int64_t head, int64_t n, real *s,
                             real *dp) {
    const int64_t at = head * BRANCHES + branch;
    const real scale = (real)st->cfg.scale, gate = st->gate[at], delta = gate * st->dgate[at];
    const real row_max = st->stats[2 * at], inv_sum = st->stats[2 * at + 1];
    n = n / LANES * LANES; /* tells the compiler that there is no tail */
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        const real p = exp_bounded(scale * (s[j] - row_max)) * inv_sum;
        dp[j] = scale * p * (gate * dp[j] - delta);
        s[j] = gate * p;
    }
}

/* Softmax attention's gradient over one span of query i's group:
 *
 *   dp_s = dout.v_s,  ds_s = scale p_s (gate dp_s - delta),  dv_s += gate p_s dout,
 *   delta = sum_u p_u gate dp_u = gate dgate,  dq += ds_s k_s,  dk_s += ds_s q
 *
 * Five products of the group's G rows with one block, whose gradients stay in cache for the tile:
 *
 *   S  [G,keys]   = Q K^T           of transposed blocks: a column is a key
 *   dP [G,keys]   = dOut V^T        the same
 *   dQ [G,dk]    += dS K            of natural blocks
 *   dK [keys,dk] += dS^T Q          summed over the group's heads
 *   dV [keys,dv] += (gate P)^T dOut the same */
static void backward_span(const stage *st, work *w, const query_tile *qt, int branch, int64_t i,
                          span sp) {
    const kv_blocks *in = &qt->in[branch];
    const int64_t G = st->plan->group, dkp = st->dkp, dvp = st->dvp, dv = st->cfg.v_dim;
    const int64_t n0 = sp.lo / LANES * LANES, n1 = round_up(sp.hi, LANES), keys = sp.hi - sp.lo;
    const int64_t block = block_of(qt, branch, sp.block), key = block * BLOCK + sp.lo;
    const int64_t own = key + (int64_t)omp_get_thread_num() * st->cfg.kv_heads * in->stride * BLOCK;
    const int64_t head = first_head(st, qt, i);
    const matrix q = rows_of(st->q + head * dkp, dkp);
    const matrix dout = rows_of(st->dout + head * dvp, dvp);
    score(st, qt, i, branch, sp, w->s);
    matmul(G, n1 - n0, dv, dout, rows_of(in->transposed[VALUES] + block * dv * BLOCK + n0, BLOCK),
           rows_of(w->dp + n0, BLOCK));
    for (int64_t g = 0; g < G; g++)
        softmax_backward(st, branch, head + g, n1 - n0, w->s + g * BLOCK + n0,
                         w->dp + g * BLOCK + n0);
    matmul_add(G, dkp, keys, rows_of(w->dp + sp.lo, BLOCK),
               rows_of(in->natural[KEYS] + key * dkp, dkp), rows_of(st->dq + head * dkp, dkp));
    matmul_add(keys, dkp, G, columns_of(w->dp + sp.lo, BLOCK), q,
               rows_of(in->gradient[KEYS] + own * dkp, dkp));
    matmul_add(keys, dvp, G, columns_of(w->s + sp.lo, BLOCK), dout,
               rows_of(in->gradient[VALUES] + own * dvp, dvp));
}

/* dgate = <dout,o>, for one branch of the tile. */
static void gate_backward(stage *st, int branch, const query_tile *qt) {
    const int64_t G = st->plan->group, dv = st->cfg.v_dim;
    for (int64_t i = 0; i < qt->count * G; i++) {
        const int64_t head = first_head(st, qt, i / G) + i % G;
        st->dgate[head * BRANCHES + branch] =
            dot(st->dout + head * st->dvp, st->out_x[branch] + head * dv, dv);
    }
}

/* A tile: the blocks that forward selected are constants. */
void backward_tile(stage *st, work *w, const query_tile *qt) {
    for (int branch = CMP; branch <= WIN; branch++) {
        gate_backward(st, branch, qt);
        const block_range range = list_spans(st, w, qt, branch);
        for (int64_t block = range.first; block < range.end; block++) {
            for (int64_t i = 0; i < qt->count; i++) {
                for (; in_block(w, i, block); w->next_span[i]++)
                    backward_span(st, w, qt, branch, i, w->spans[w->next_span[i]]);
            }
        }
        nsa_timer_add(&w->timer, branch);
    }
}
