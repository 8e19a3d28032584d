/** @file
 *  @brief The three branches and their gate: the keys that a mask keeps are spans of blocks, and
 * each block is given to all G heads of its group, query after query of a tile. */
#include "stage.h"

#include <string.h>

/* The tokens [from,to) as spans, a span a block; returns how many. */
static int64_t split(int64_t from, int64_t to, span *spans) {
    int64_t n = 0;
    for (int64_t s = from; s < to; s = (s / BLOCK + 1) * BLOCK) {
        int64_t first = s / BLOCK * BLOCK, end = to < first + BLOCK ? to : first + BLOCK;
        spans[n++] = (span){(int32_t)(s / BLOCK), (int16_t)(s - first), (int16_t)(end - first)};
    }
    return n;
}

/* Compressed branch: token i covers positions [i d, i d + l) and is seen once they are all past
 * (Eq. 8): the first N(t) tokens. Each visible_ function fills spans and returns how many. */
int64_t visible_cmp(const stage *st, int64_t t, span *spans) {
    return split(0, nsa_cmp_visible(&st->cfg, t), spans);
}

/* Selected branch: the tokens s <= t of the blocks in idx (Eq. 12). */
int64_t visible_slc(const stage *st, int64_t t, const int32_t *idx, span *spans) {
    int64_t n = 0;
    for (int64_t i = 0; i < st->cfg.slc_count && idx[i] >= 0; i++) {
        int64_t first = idx[i] * st->cfg.slc_block, end = first + st->cfg.slc_block;
        n += split(first, end < t + 1 ? end : t + 1, spans + n);
    }
    return n;
}

/* Window branch: t - w < s <= t, self included. */
int64_t visible_win(const stage *st, int64_t t, span *spans) {
    return split(t - st->cfg.window + 1 > 0 ? t - st->cfg.window + 1 : 0, t + 1, spans);
}

/* Plain causal attention: s <= t. */
int64_t visible_all(const stage *st, int64_t t, span *spans) {
    (void)st;
    return split(0, t + 1, spans);
}

/* Scores q_g.k_j of a group's G queries against columns [lo,hi) of one block; -inf in the lanes
 * around them. Whole vectors are computed always: there is no other code for a tail. `next` is the
 * block that is wanted next, or NULL. */
void score(const stage *st, const real *q, const real *kt, int64_t lo, int64_t hi, real *s,
           const real *next) {
    const int64_t G = st->plan->group, n0 = lo / LANES * LANES, n1 = round_up(hi, LANES);
    matmul_prefetch(G, n1 - n0, st->cfg.qk_dim, (operand){q, st->dkp, 1}, kt + n0, BLOCK, s + n0,
                    BLOCK, 0, next ? next + n0 : NULL);
    for (int64_t g = 0; g < G && (n0 < lo || hi < n1); g++) {
        for (int64_t j = n0; j < lo; j++)
            s[g * BLOCK + j] = -INFINITY;
        for (int64_t j = hi; j < n1; j++)
            s[g * BLOCK + j] = -INFINITY;
    }
}

/* max(row[n0..n1)), the columns a whole number of vectors */
static inline real max_of(const real *row, int64_t n0, int64_t n1) {
    const int64_t n = (n1 - n0) / LANES * LANES; /* tells the compiler that there is no tail */
    real lane_max = -INFINITY;
#pragma omp simd reduction(max : lane_max)
    for (int64_t j = 0; j < n; j++)
        lane_max = row[n0 + j] > lane_max ? row[n0 + j] : lane_max;
    return lane_max;
}

/* top [LANES] = max(top, row[0..n)) in every lane */
static inline void update_lane_max(const real *row, int64_t n, real *lane_max) {
    for (int64_t j = 0; j < n; j += LANES) {
#pragma omp simd
        for (int i = 0; i < LANES; i++)
            lane_max[i] = row[j + i] > lane_max[i] ? row[j + i] : lane_max[i];
    }
}

/* Whether some row[n0..n1) is more than `room` above `most`; only this is asked of most spans. */
static inline int exceeds(const real *row, int64_t n0, int64_t n1, real row_max, real capacity) {
    const int64_t n = (n1 - n0) / LANES * LANES;
    int any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t j = 0; j < n; j++)
        any |= row[n0 + j] - row_max > capacity;
    return any;
}

/* row = 2^(scale (row - most)), in place; sum += its LANES partial sums. One expression for every
 * column, and one rounding of the difference: large scores lose no digits here. */
static inline void exp_scores(real *row, int64_t n0, int64_t n1, real scale, real row_max,
                              real *row_sum) {
    real lane[LANES] = {0};
#pragma GCC unroll 4
    for (int64_t j = n0; j < n1; j += LANES) {
        for (int i = 0; i < LANES; i++) {
            const real e = exp2_bounded(scale * (row[j + i] - row_max));
            row[j + i] = e;
            lane[i] += e;
        }
    }
    for (int i = 0; i < LANES; i++)
        row_sum[i] += lane[i];
}

/* One head's sums and outputs so far, times `by`: its maximum has been raised. */
static inline void rescale(real by, real *row_sum, real *o, int64_t dvp) {
    for (int lane = 0; lane < LANES; lane++)
        row_sum[lane] *= by;
    for (int64_t c = 0; c < dvp; c++)
        o[c] *= by;
}

/* Halves onto halves: LANES - 1 additions in a row would each wait for the one before. */
static inline real sum_lanes(const real *lane) {
    real half[LANES / 2];
    for (int i = 0; i < LANES / 2; i++)
        half[i] = lane[i] + lane[i + LANES / 2];
    for (int n = LANES / 4; n > 0; n /= 2) {
        for (int i = 0; i < n; i++)
            half[i] += half[i + n];
    }
    return half[0];
}

/* From scores to units of log2: softmax over 2^(scale log2(e) q.k). */
real log2_scale(const stage *st) {
    return (real)(st->cfg.scale * 1.4426950408889634);
}

/* Online softmax (Milakov and Gimelshein 2018), one span of one query's group. With the largest
 * score so far m and m' after the span: o = o 2^(m-m') + sum_j 2^(s_j-m') v_j, and the same for the
 * sum; the differences times log2_scale(). Any m serves that keeps 2^(s-m) in range, so it follows
 * lazily, once RESCALE_THRESHOLD is exceeded: the exponentials then wait for no maximum. `ask`: the
 * block that is wanted next, -1 for none. */
static void softmax_step(const stage *st, work *w, const sequence *sq, int branch, int64_t kvh,
                         int64_t row, int64_t i, span sp, int64_t prefetch) {
    const int64_t G = st->plan->group, dvp = st->dvp;
    const int64_t n0 = sp.lo / LANES * LANES, n1 = round_up(sp.hi, LANES);
    const kv_blocks *in = sq->in[branch];
    const int64_t block = kvh * in->stride + sq->first[branch] + sp.block;
    const int64_t next = block + prefetch - sp.block, dk = st->cfg.qk_dim;
    const real scale = log2_scale(st);
    real *o = w->o + i * G * dvp;
    score(st, st->q + (row * st->cfg.q_heads + kvh * G) * st->dkp, in->kt + block * dk * BLOCK,
          sp.lo, sp.hi, w->s, prefetch < 0 ? NULL : in->kt + next * dk * BLOCK);
    for (int64_t g = 0; g < G; g++) {
        real *s = w->s + g * BLOCK, *row_max = w->row_max + i * G + g,
             *row_sum = w->row_sum + (i * G + g) * LANES;
        if (exceeds(s, n0, n1, *row_max,
                    RESCALE_THRESHOLD / scale)) { /* a first span, and seldom after */
            const real now = max_of(s, n0, n1);
            if (*row_max > -INFINITY) /* else o and sum are 0 still, or NaN for good */
                rescale(exp2_bounded(scale * (*row_max - now)), row_sum, o + g * dvp, dvp);
            *row_max = now;
        }
        exp_scores(s, n0, n1, scale, *row_max, row_sum);
    }
    /* Masked columns are left out, not multiplied: 0 * NaN is NaN. */
    matmul_prefetch(G, dvp, sp.hi - sp.lo, (operand){w->s + sp.lo, BLOCK, 1},
                    in->v + (block * BLOCK + sp.lo) * dvp, dvp, o, dvp, 1,
                    prefetch < 0 ? NULL : in->v + (next * BLOCK + sp.lo) * dvp);
}

/* Begin the walk of a tile's queries over the blocks of their spans, which ascend. Far into a text
 * few queries want the same block, so to ask each of them at every block would mostly hear no.
 * Instead wanted[block] has bit i set if query i has a span there, and the walk goes from one word
 * that is not zero to the next. */
block_iter block_iter_init(work *w, int64_t count) {
    block_iter iter = {.next = INT64_MAX};
    for (int64_t i = 0; i < count; i++) {
        if (w->next_span[i] == w->end_span[i])
            continue;
        const int64_t first = w->spans[w->next_span[i]].block,
                      end = w->spans[w->end_span[i] - 1].block + 1;
        iter.next = first < iter.next ? first : iter.next;
        iter.end = end > iter.end ? end : iter.end;
    }
    for (int64_t block = iter.next; block < iter.end; block++)
        w->query_mask[block] = 0;
    for (int64_t i = 0; i < count; i++) {
        for (int64_t at = w->next_span[i]; at < w->end_span[i]; at++)
            w->query_mask[w->spans[at].block] |= UINT32_C(1) << i;
    }
    return iter;
}

/* On to the next block; 0 behind the last. */
int next_block(const work *w, block_iter *iter) {
    if (iter->next >= iter->end)
        return 0;
    iter->block = iter->next++;
    while (iter->next < iter->end && !w->query_mask[iter->next])
        iter->next++;
    return 1;
}

/* The softmax's sums, each from its lanes; outputs stay unnormalised until they are taken. */
static void softmax_finalize(const real *lanes, real *inv_sum, int64_t heads) {
    for (int64_t i = 0; i < heads; i++) {
        const real row_sum = sum_lanes(lanes + i * LANES);
        inv_sum[i] = row_sum != 0 ? 1 / row_sum : 0; /* nothing kept: o = 0 */
    }
}

/* One branch of `count` neighbouring queries from result row `row` on, whose spans are listed:
 * block after block in the outer loop, so that a block is fetched once for all the queries that
 * want it, and the first of them asks for the next one. */
void attend_blocks(const stage *st, work *w, const sequence *sq, int branch, int64_t row,
                   int64_t count, int64_t kvh) {
    const int64_t G = st->plan->group, dvp = st->dvp;
    memset(w->o, 0, (size_t)(count * G * dvp) * sizeof *w->o);
    memset(w->row_sum, 0, (size_t)(count * G * LANES) * sizeof *w->row_sum);
    for (int64_t i = 0; i < count * G; i++)
        w->row_max[i] = -INFINITY;
    for (block_iter iter = block_iter_init(w, count); next_block(w, &iter);) {
        int64_t prefetch = iter.next < iter.end ? iter.next : -1;
        for (uint32_t queries = w->query_mask[iter.block]; queries; queries &= queries - 1) {
            const int64_t i = __builtin_ctz(queries); /* the lowest bit */
            for (; in_block(w, i, iter.block); w->next_span[i]++, prefetch = -1)
                softmax_step(st, w, sq, branch, kvh, row + i, i, w->spans[w->next_span[i]],
                             prefetch);
        }
    }
    softmax_finalize(w->row_sum, w->inv_sum, count * G);
}

/* The group's branch outputs, times 1/sum, go, times their gates, into the sum of Eq. 5, which the
 * first branch begins. */
static void accumulate_gated(stage *st, const work *w, int branch, int64_t row, int64_t count,
                             int64_t kvh) {
    const int64_t G = st->plan->group, dv = st->cfg.v_dim;
    for (int64_t i = 0; i < count * G; i++) {
        const int64_t head = (row + i / G) * st->cfg.q_heads + kvh * G + i % G;
        const real *o = w->o + i * st->dvp, inv_sum = w->inv_sum[i];
        const real gate = st->gate[head * BRANCHES + branch];
        real *out = st->out + head * dv, *out_x = st->out_x[branch];
        for (int64_t c = 0; c < dv; c++)
            out[c] = (branch == CMP ? 0 : out[c]) + gate * (inv_sum * o[c]);
        for (int64_t c = 0; c < dv && out_x; c++)
            out_x[head * dv + c] = inv_sum * o[c];
        if (st->stats) {
            st->stats[(head * BRANCHES + branch) * 2] = w->row_max[i];
            st->stats[(head * BRANCHES + branch) * 2 + 1] = inv_sum;
        }
    }
}

/* First pass of the compressed branch: all scores, block after block as attend_blocks() would have
 * them, and the largest of each head. */
static void score_cmp(const stage *st, work *w, const sequence *sq, int64_t row, int64_t i,
                      int64_t n, int64_t kvh, const int64_t *visible) {
    const int64_t G = st->plan->group, first = kvh * sq->in[CMP]->stride + sq->first[CMP];
    const int64_t query = st->cfg.q_heads * st->dkp, dk = st->cfg.qk_dim;
    const real *kt = sq->in[CMP]->kt + first * dk * BLOCK;
    for (int64_t j = 0; j < n * G * LANES; j++)
        w->lane_max[j] = -INFINITY;
    for (int64_t k = 0; k < visible[n - 1]; k += BLOCK) {
        for (int64_t x = 0; x < n; x++) {
            real *s = w->scores + x * w->score_stride + k * G;
            const int64_t hi = visible[x] - k < BLOCK ? visible[x] - k : BLOCK;
            if (hi <= 0)
                continue;
            score(st, st->q + (row + x) * query + kvh * G * st->dkp, kt + k * dk, 0, hi, s,
                  n == 1 && k + BLOCK < visible[x] ? kt + (k + BLOCK) * dk : NULL);
            for (int64_t g = 0; g < G; g++)
                update_lane_max(s + g * BLOCK, round_up(hi, LANES),
                                w->lane_max + (x * G + g) * LANES);
        }
    }
    for (int64_t g = 0; g < n * G; g++)
        w->row_max[i * G + g] = max_of(w->lane_max + g * LANES, 0, LANES);
}

/* Sums in two levels: a float32 sum over all compressed keys of a long text rounds once a key, at
 * the size of the whole sum. So every FLUSH_EVERY blocks what there is goes aside and o begins
 * again from zero. Gradients hang on these digits: the dS of a row add up to zero only as far as o
 * is exact, and what is left over stands against sums that shrink as keys grow in number. */
static void flush_partial(real *partial, real *o, int64_t count, int first) {
    for (int64_t c = 0; c < count; c++) {
        partial[c] = first ? o[c] : partial[c] + o[c];
        o[c] = 0;
    }
}

/* Compressed branch of queries i..i+n-1 of the tile, in two passes: all scores first, for
 * importance needs the probabilities themselves and an online softmax would only have them up to a
 * factor (Eq. 8-10). n queries share each block. */
static void attend_cmp(const stage *st, work *w, const sequence *sq, int64_t row, int64_t i,
                       int64_t n, int64_t kvh, const int64_t *visible) {
    const int64_t G = st->plan->group, dvp = st->dvp;
    const int64_t first = kvh * sq->in[CMP]->stride + sq->first[CMP];
    const real *v = sq->in[CMP]->v + first * BLOCK * dvp;
    real *o = w->o + i * G * dvp, *row_sum = w->row_sum + i * G * LANES;
    memset(o, 0, (size_t)(n * G * dvp) * sizeof *o);
    memset(row_sum, 0, (size_t)(n * G * LANES) * sizeof *row_sum);
    score_cmp(st, w, sq, row, i, n, kvh, visible);
    for (int64_t k = 0; k < visible[n - 1]; k += BLOCK) {
        if (k && k % (FLUSH_EVERY * BLOCK) == 0)
            flush_partial(w->partial, o, n * G * dvp, k == FLUSH_EVERY * BLOCK);
        for (int64_t x = 0; x < n; x++) {
            real *p = w->scores + x * w->score_stride + k * G;
            const int64_t keys = visible[x] - k < BLOCK ? visible[x] - k : BLOCK;
            for (int64_t g = 0; g < G && keys > 0; g++)
                exp_scores(p + g * BLOCK, 0, round_up(keys, LANES), log2_scale(st),
                           w->row_max[(i + x) * G + g], row_sum + (x * G + g) * LANES);
            if (keys > 0)
                matmul_prefetch(G, dvp, keys, (operand){p, BLOCK, 1}, v + k * dvp, dvp,
                                o + x * G * dvp, dvp, 1,
                                n == 1 && k + BLOCK < visible[x] ? v + (k + BLOCK) * dvp : NULL);
        }
    }
    for (int64_t c = 0; c < n * G * dvp && visible[n - 1] > FLUSH_EVERY * BLOCK; c++)
        o[c] += w->partial[c];
}

/* From the group's probabilities to its blocks, for row r, which is query i of its tile and x of
 * those whose scores are kept: importance (summed over the heads first), then the choice, or the
 * forced list. */
static void select_row(stage *st, work *w, int64_t r, int64_t i, int64_t x, int64_t kvh, int64_t t,
                       const int32_t *forced) {
    const nsa_config *c = &st->cfg;
    const int64_t group = r * c->kv_heads + kvh, n = c->slc_count, G = st->plan->group;
    const int64_t blocks = t / c->slc_block + 1, visible = nsa_cmp_visible(c, t);
    int32_t *idx = st->block_idx + group * n;
    int64_t J = st->keep_importance ? st->batch.J : blocks;
    real *imp = st->keep_importance ? st->importance + group * J : w->importance;
    real *p = w->group_p + ZERO_PAD;
    for (int64_t k = 0; k < visible; k += BLOCK)
        matmul(1, visible - k < BLOCK ? round_up(visible - k, LANES) : BLOCK, G,
               (operand){w->inv_sum + i * G, 0, 1}, w->scores + x * w->score_stride + k * G, BLOCK,
               p + k, BLOCK, 0);
    for (int64_t k = visible; k < blocks * (c->slc_block / c->cmp_stride); k++)
        p[k] = 0;
    memset(p - ZERO_PAD, 0, ZERO_PAD * sizeof *p);
    memset(imp, 0, (size_t)J * sizeof *imp);
    add_importance(c, p, w->strides, blocks, imp);
    if (forced)
        memcpy(idx, forced + group * n, (size_t)n * sizeof *idx);
    else
        select_blocks(c, imp, t, w->strides, idx);
}

/* The rows of a tile, for one group of heads: compress, select, then attend (Eq. 5, 8-12). t
 * [count] are their positions; `forced` [R,Hkv,n] replaces the selection; NULL selects. */
void attend_tile(stage *st, work *w, const sequence *sq, const tile_of_rows *rows, int64_t kvh,
                 const int64_t *t, const int32_t *forced) {
    const nsa_config *c = &st->cfg;
    const int64_t G = st->plan->group, row = rows->first, count = rows->count;
    for (int64_t i = 0, n = 0; i < count; i += n) {
        int64_t visible[QUERIES_PER_PASS];
        for (n = 0; n < QUERIES_PER_PASS && i + n < count; n++)
            visible[n] = nsa_cmp_visible(c, t[i + n]);
        attend_cmp(st, w, sq, row + i, i, n, kvh, visible);
        softmax_finalize(w->row_sum + i * G * LANES, w->inv_sum + i * G, n * G);
        nsa_timer_add(&w->timer, CMP);
        for (int64_t x = 0; x < n; x++)
            select_row(st, w, row + i + x, i + x, x, kvh, t[i + x], forced);
        nsa_timer_add(&w->timer, SELECT);
    }
    accumulate_gated(st, w, CMP, row, count, kvh);
    for (int branch = SLC; branch <= WIN; branch++) {
        for (int64_t i = 0; i < count; i++) {
            const int32_t *idx = st->block_idx + ((row + i) * c->kv_heads + kvh) * c->slc_count;
            const int64_t used = w->next_span[i] = i ? w->end_span[i - 1] : 0;
            w->end_span[i] = used + (branch == SLC ? visible_slc(st, t[i], idx, w->spans + used)
                                                   : visible_win(st, t[i], w->spans + used));
        }
        attend_blocks(st, w, sq, branch, row, count, kvh);
        accumulate_gated(st, w, branch, row, count, kvh);
        nsa_timer_add(&w->timer, branch);
    }
}
