/** @file
 *  @brief Backward of a tile of query rows: dq, dgate, and its share of every dk and dv. */
#include "stage.h"

/* Softmax attention's gradient over one span, the probabilities recomputed from the saved maximum
 * and sum of their row, d_o = g dout: dv_s += p_s d_o,  dp_s = d_o.v_s,  ds_s = p_s (dp_s - sum_u
 * p_u dp_u), dq += scale ds_s k_s,  dk_s += scale ds_s q;   and sum_u p_u dp_u = d_o.o = g dgate.
 * Five matrix products of the group with one block; a block's gradients stay in cache for the tile.
 */
static void backward_span(const stage *st, work *w, const sequence *sq, int branch, int thread,
                          int64_t kvh, int64_t row, span sp) {
    const nsa_config *c = &st->cfg;
    const int64_t G = st->plan->group, dkp = st->dkp, dvp = st->dvp, keys = sp.hi - sp.lo;
    const int64_t n0 = sp.lo / LANES * LANES, n1 = round_up(sp.hi, LANES);
    const kv_blocks *in = sq->in[branch];
    const int64_t block = kvh * in->stride + sq->first[branch] + sp.block;
    const int64_t key = block * BLOCK + sp.lo, all = c->kv_heads * in->stride * BLOCK;
    const int64_t head = row * c->q_heads + kvh * G;
    const real *q = st->q + head * dkp, *dout = st->dout + head * dvp, scale = (real)c->scale;
    const real log2e_scale = log2_scale(st);
    score(st, q, in->kt + block * c->qk_dim * BLOCK, sp.lo, sp.hi, w->s, NULL);
    matmul(G, n1 - n0, c->v_dim, (operand){dout, dvp, 1}, in->vt + block * c->v_dim * BLOCK + n0,
           BLOCK, w->dp + n0, BLOCK, 0);
    for (int64_t g = 0; g < G; g++) {
        const int64_t at = (head + g) * BRANCHES + branch;
        const real gate = st->gate[at], delta = gate * st->dgate[at];
        const real row_max = st->stats[2 * at], inv_sum = st->stats[2 * at + 1];
        real *p = w->s + g * BLOCK, *dp = w->dp + g * BLOCK;
#pragma omp simd
        for (int64_t j = n0; j < n1; j++) {
            const real pj = exp2_bounded(log2e_scale * (p[j] - row_max)) * inv_sum;
            dp[j] = scale * pj * (gate * dp[j] - delta); /* dp is ds from here on */
            p[j] = gate * pj;
        }
    }
    matmul(G, dkp, keys, (operand){w->dp + sp.lo, BLOCK, 1}, in->k + key * dkp, dkp,
           st->dq + head * dkp, dkp, 1);
    matmul(keys, dkp, G, (operand){w->dp + sp.lo, 1, BLOCK}, q, dkp,
           in->dk + (thread * all + key) * dkp, dkp, 1);
    matmul(keys, dvp, G, (operand){w->s + sp.lo, 1, BLOCK}, dout, dvp,
           in->dv + (thread * all + key) * dvp, dvp, 1);
}

/* dgate = <dout,o>, for one branch of the tile. */
static void gate_backward(stage *st, int branch, const tile_of_rows *rows, int64_t kvh) {
    const int64_t G = st->plan->group, dv = st->cfg.v_dim;
    for (int64_t i = 0; i < rows->count * G; i++) {
        const int64_t head = (rows->first + i / G) * st->cfg.q_heads + kvh * G + i % G;
        st->dgate[head * BRANCHES + branch] =
            dot(st->dout + head * st->dvp, st->out_x[branch] + head * dv, dv);
    }
}

/* The rows of a tile, for one group of heads: the blocks that forward chose are constants. */
void backward_tile(stage *st, work *w, int thread, const sequence *sq, const tile_of_rows *rows,
                   int64_t kvh) {
    const nsa_config *c = &st->cfg;
    for (int branch = CMP; branch <= WIN; branch++) {
        gate_backward(st, branch, rows, kvh);
        for (int64_t i = 0; i < rows->count; i++) {
            const int64_t row = rows->first + i;
            const int64_t t = st->batch.row[row] - st->batch.seq[rows->sequence];
            const int32_t *idx = st->block_idx + (row * c->kv_heads + kvh) * c->slc_count;
            w->next_span[i] = i ? w->end_span[i - 1] : 0;
            span *spans = w->spans + w->next_span[i];
            w->end_span[i] = w->next_span[i] + (branch == CMP   ? visible_cmp(st, t, spans)
                                                : branch == SLC ? visible_slc(st, t, idx, spans)
                                                                : visible_win(st, t, spans));
        }
        for (block_iter iter = block_iter_init(w, rows->count); next_block(w, &iter);) {
            for (uint32_t queries = w->query_mask[iter.block]; queries; queries &= queries - 1) {
                const int64_t i = __builtin_ctz(queries); /* the lowest bit */
                for (; in_block(w, i, iter.block); w->next_span[i]++)
                    backward_span(st, w, sq, branch, thread, kvh, rows->first + i,
                                  w->spans[w->next_span[i]]);
            }
        }
        nsa_timer_add(&w->timer, branch);
    }
}
