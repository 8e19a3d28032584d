/** @file
 *  @brief The three branches and their gate: the keys that a mask keeps are spans of blocks, and
 * each block is given to all G heads of its group, query after query of a tile. */
#include "stage.h"

/* The tokens [from,to) as spans, a span a block; returns how many. */
static int64_t split(int64_t from, int64_t to, span *spans) {
    int64_t n = 0;
    for (int64_t s = from; s < to; s = (s / BLOCK + 1) * BLOCK) {
        int64_t first = s / BLOCK * BLOCK, end = to < first + BLOCK ? to : first + BLOCK;
        spans[n++] = (span){.block = (int32_t)(s / BLOCK),
                            .next = -1,
                            .lo = (int16_t)(s - first),
                            .hi = (int16_t)(end - first)};
    }
    return n;
}

/* Compressed branch: token i covers positions [i d, i d + l) and is seen once they are all past
 * (Eq. 8): the first N(t) tokens. Each visible_ function fills spans and returns how many. */
static int64_t visible_cmp(const stage *st, int64_t t, span *spans) {
    return split(0, nsa_cmp_visible(&st->cfg, t), spans);
}

/* Selected branch: the tokens s <= t of the blocks in idx (Eq. 12). */
static int64_t visible_slc(const stage *st, int64_t t, const int32_t *idx, span *spans) {
    int64_t n = 0;
    for (int64_t i = 0; i < st->cfg.slc_count && idx[i] >= 0; i++) {
        int64_t first = idx[i] * st->cfg.slc_block, end = first + st->cfg.slc_block;
        n += split(first, end < t + 1 ? end : t + 1, spans + n);
    }
    return n;
}

/* Window branch: t - w < s <= t, self included. */
static int64_t visible_win(const stage *st, int64_t t, span *spans) {
    return split(t - st->cfg.window + 1 > 0 ? t - st->cfg.window + 1 : 0, t + 1, spans);
}

/* Plain causal attention: s <= t. */
static int64_t visible_all(int64_t t, span *spans) {
    return split(0, t + 1, spans);
}

/* A query alone, in decode, reads blocks that no other query has fetched: each span prefetches the
 * next one's block. Where queries share blocks, prefetching costs more than it brings. (A tile of
 * one row in forward prefetches too.) */
static void prefetch_spans(const query_tile *qt, span *spans, int64_t n) {
    for (int64_t j = 0; j + 1 < n && qt->count == 1; j++)
        spans[j].next = spans[j + 1].block;
}

/* The row of query i and the tile's KV head in block_idx [R,Hkv,n] and importance [R,Hkv,J]. */
static int64_t idx_row(const stage *st, const query_tile *qt, int64_t i) {
    return (qt->row + i) * st->cfg.kv_heads + qt->kvh;
}

/* What each query of the tile sees by a branch's mask, or by plain causality (RAW), into w->spans;
 * returns the blocks that these spans lie in. */
block_range list_spans(const stage *st, work *w, const query_tile *qt, int mask) {
    block_range range = {INT64_MAX, 0};
    for (int64_t i = 0, n = 0; i < qt->count; i++) {
        const int64_t t = qt->t[i], idx = idx_row(st, qt, i);
        span *spans = w->spans + n;
        w->next_span[i] = n;
        n += mask == CMP   ? visible_cmp(st, t, spans)
             : mask == SLC ? visible_slc(st, t, st->block_idx + idx * st->cfg.slc_count, spans)
             : mask == WIN ? visible_win(st, t, spans)
                           : visible_all(t, spans);
        w->end_span[i] = n;
        prefetch_spans(qt, spans, n - w->next_span[i]);
        if (w->next_span[i] == n)
            continue;
        range.first = spans[0].block < range.first ? spans[0].block : range.first;
        range.end = w->spans[n - 1].block >= range.end ? w->spans[n - 1].block + 1 : range.end;
    }
    return range;
}

/* Scores q_g.k_j of query i's G heads against a span, s [G,BLOCK]; -inf in the lanes around it.
 * Whole vectors are computed always: there is no other code for a tail. exp_bounded(-inf) is
 * 2^-125, not 0, which is nothing beside a row_sum of at least 1. */
void score(const stage *st, const query_tile *qt, int64_t i, int branch, span sp, real *s) {
    const int64_t G = st->plan->group, dk = st->cfg.qk_dim;
    const int64_t n0 = sp.lo / LANES * LANES, n1 = round_up(sp.hi, LANES);
    real *kt = qt->in[branch].transposed[KEYS] + block_of(qt, branch, sp.block) * dk * BLOCK + n0;
    const real *next = sp.next < 0 ? NULL : kt + (sp.next - sp.block) * dk * BLOCK;
    matmul(G, n1 - n0, dk, rows_of(st->q + first_head(st, qt, i) * st->dkp, st->dkp),
           prefetching(rows_of(kt, BLOCK), next), rows_of(s + n0, BLOCK));
    for (int64_t g = 0; g < G; g++) {
        for (int64_t j = n0; j < sp.lo; j++)
            s[g * BLOCK + j] = -INFINITY;
        for (int64_t j = sp.hi; j < n1; j++)
            s[g * BLOCK + j] = -INFINITY;
    }
}

/* max(row_max, s[0..n)), n a multiple of LANES */
static inline real update_row_max(const real *s, int64_t n, real row_max) {
    n = n / LANES * LANES; /* tells the compiler that there is no tail */
#pragma omp simd reduction(max : row_max)
    for (int64_t j = 0; j < n; j++)
        row_max = s[j] > row_max ? s[j] : row_max;
    return row_max;
}

/* s = e^(scale (s - row_max)), in place; row_sum [LANES] += their sums, a lane each. One expression
 * for every column, and one rounding of the difference: large scores lose no digits here. */
static inline void exp_scores(real *s, int64_t n, real scale, real row_max, real *row_sum) {
    real sums[LANES] = {0}; /* registers, if the loops are unrolled */
#pragma GCC unroll 4
    for (int64_t j = 0; j < n; j += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            s[j + lane] = exp_bounded(scale * (s[j + lane] - row_max));
            sums[lane] += s[j + lane];
        }
    }
    add_scaled(row_sum, 1, sums, LANES);
}

/* Online softmax (Milakov and Gimelshein 2018), one span of query i's group. With the largest score
 * so far m and m' after the span: o = o e^(m-m') + sum_j e^(s_j-m') v_j, and the same for the sum;
 * differences are scaled after they are taken. At the first span m = -inf, and the factor
 * exp_bounded(-inf) = 2^-125 multiplies zeros. */
static void softmax_step(const stage *st, work *w, const query_tile *qt, int branch, int64_t i,
                         span sp) {
    const int64_t G = st->plan->group, dvp = st->dvp;
    const int64_t n0 = sp.lo / LANES * LANES, n1 = round_up(sp.hi, LANES);
    const real scale = (real)st->cfg.scale;
    real *v =
        qt->in[branch].natural[VALUES] + (block_of(qt, branch, sp.block) * BLOCK + sp.lo) * dvp;
    const real *next = sp.next < 0 ? NULL : v + (sp.next - sp.block) * BLOCK * dvp;
    score(st, qt, i, branch, sp, w->s);
    for (int64_t g = 0; g < G; g++) {
        real *s = w->s + g * BLOCK + n0, *o = w->o + (i * G + g) * dvp;
        real *row_max = w->row_max + i * G + g, *row_sum = w->row_sum + (i * G + g) * LANES;
        const real new_max = update_row_max(s, n1 - n0, *row_max);
        if (new_max > *row_max) {
            const real rescale = exp_bounded(scale * (*row_max - new_max));
            for (int lane = 0; lane < LANES; lane++)
                row_sum[lane] *= rescale;
            for (int64_t c = 0; c < dvp; c++)
                o[c] *= rescale;
            *row_max = new_max;
        }
        exp_scores(s, n1 - n0, scale, *row_max, row_sum);
    }
    /* Masked columns are left out, not multiplied: 0 * NaN is NaN. */
    matmul_add(G, dvp, sp.hi - sp.lo, rows_of(w->s + sp.lo, BLOCK),
               prefetching(rows_of(v, dvp), next), rows_of(w->o + i * G * dvp, dvp));
}

static void softmax_init(const stage *st, work *w, int64_t i, int64_t count) {
    const int64_t G = st->plan->group;
    memset(w->o + i * G * st->dvp, 0, (size_t)(count * G * st->dvp) * sizeof *w->o);
    memset(w->row_sum + i * G * LANES, 0, (size_t)(count * G * LANES) * sizeof *w->row_sum);
    for (int64_t g = i * G; g < (i + count) * G; g++)
        w->row_max[g] = -INFINITY;
}

/* Outputs stay unnormalised until accumulate_gated(). */
static void softmax_finalize(const stage *st, work *w, int64_t i, int64_t count) {
    const int64_t G = st->plan->group;
    for (int64_t g = i * G; g < (i + count) * G; g++) {
        real sum = 0;
        for (int lane = 0; lane < LANES; lane++)
            sum += w->row_sum[g * LANES + lane];
        w->inv_sum[g] = sum != 0 ? 1 / sum : 0; /* nothing visible: o = 0 */
    }
}

/* One branch of a tile, whose spans are listed: block after block in the outer loop, so that a
 * block is fetched once for all the queries that see it. */
void attend_blocks(const stage *st, work *w, const query_tile *qt, int branch, block_range range) {
    softmax_init(st, w, 0, qt->count);
    for (int64_t block = range.first; block < range.end; block++) {
        for (int64_t i = 0; i < qt->count; i++) {
            for (; in_block(w, i, block); w->next_span[i]++)
                softmax_step(st, w, qt, branch, i, w->spans[w->next_span[i]]);
        }
    }
    softmax_finalize(st, w, 0, qt->count);
}

/* Sums in two levels, as in stage 01: a float32 sum over all compressed keys of a long text rounds
 * once a key, at the size of the whole sum. So every PARTIAL_BLOCKS blocks a part begins from zero,
 * and the parts are added. Gradients hang on these digits: the dS of a row add up to zero only as
 * far as o is exact, and the rest is not small beside dS of many keys. The selected and the window
 * branch have few keys, and one level serves. */
enum { PARTIAL_BLOCKS = 2048 / BLOCK };

static int64_t partial_end(int64_t first, int64_t n) {
    return first + PARTIAL_BLOCKS < n ? first + PARTIAL_BLOCKS : n;
}

/* Compressed branch of query i, in two passes: all scores first, then all exponentials. Importance
 * needs every probability (Eq. 8-10), and an online softmax would have each block's exponentials
 * against the maximum so far: another one in every block. Scores are kept block after block,
 * [G,BLOCK] each. */
static void attend_cmp(const stage *st, work *w, const query_tile *qt, int64_t i) {
    const int64_t G = st->plan->group, dvp = st->dvp, n = visible_cmp(st, qt->t[i], w->spans);
    real *v = qt->in[CMP].natural[VALUES] + block_of(qt, CMP, 0) * BLOCK * dvp;
    real *row_max = w->row_max + i * G, *row_sum = w->row_sum + i * G * LANES,
         *o = w->o + i * G * dvp;
    prefetch_spans(qt, w->spans, n);
    softmax_init(st, w, i, 1);
    for (int64_t j = 0; j < n; j++) {
        real *s = w->scores + j * G * BLOCK;
        score(st, qt, i, CMP, w->spans[j], s);
        for (int64_t g = 0; g < G; g++)
            row_max[g] = update_row_max(s + g * BLOCK, round_up(w->spans[j].hi, LANES), row_max[g]);
    }
    for (int64_t first = 0; first < n; first += PARTIAL_BLOCKS) {
        memset(w->partial, 0, (size_t)(G * dvp) * sizeof *w->partial);
        for (int64_t j = first; j < partial_end(first, n); j++) {
            const int64_t keys = w->spans[j].hi;
            real *p = w->scores + j * G * BLOCK, *v_j = v + j * BLOCK * dvp;
            const real *next = w->spans[j].next < 0 ? NULL : v_j + BLOCK * dvp;
            for (int64_t g = 0; g < G; g++)
                exp_scores(p + g * BLOCK, round_up(keys, LANES), (real)st->cfg.scale, row_max[g],
                           row_sum + g * LANES);
            matmul_add(G, dvp, keys, rows_of(p, BLOCK), prefetching(rows_of(v_j, dvp), next),
                       rows_of(w->partial, dvp));
        }
        add_scaled(o, 1, w->partial, G * dvp);
    }
    softmax_finalize(st, w, i, 1);
}

/* From the group's probabilities to its blocks, for query i of the tile: importance, summed over
 * the heads first (Eq. 10), then the selection, or the forced list. */
static void select_row(stage *st, work *w, const query_tile *qt, int64_t i, const int32_t *forced) {
    const nsa_config *c = &st->cfg;
    const int64_t G = st->plan->group, t = qt->t[i], blocks = t / c->slc_block + 1;
    const int64_t idx = idx_row(st, qt, i), first = idx * c->slc_count;
    const int64_t J = st->keep_importance ? st->batch.J : blocks, n = nsa_cmp_visible(c, t);
    real *imp = st->keep_importance ? st->importance + idx * J : w->importance;
    memset(imp, 0, (size_t)J * sizeof *imp);
    memset(w->p_group, 0, (size_t)n * sizeof *w->p_group);
    for (int64_t k = 0; k < n; k += BLOCK) {
        for (int64_t g = 0; g < G; g++)
            add_scaled(w->p_group + k, w->inv_sum[i * G + g], w->scores + k * G + g * BLOCK,
                       n - k < BLOCK ? n - k : BLOCK);
    }
    add_importance(c, w->p_group, n, blocks, imp);
    if (forced)
        memcpy(st->block_idx + first, forced + first, (size_t)c->slc_count * sizeof *forced);
    else
        select_blocks(c, imp, t, st->block_idx + first);
}

/* out = or += gate o / row_sum: the first branch writes, the others add (Eq. 5). For backward,
 * row_max and inv_sum of each softmax are saved. */
static void accumulate_gated(stage *st, const work *w, const query_tile *qt, int branch) {
    const int64_t G = st->plan->group, dv = st->cfg.v_dim;
    for (int64_t i = 0; i < qt->count * G; i++) {
        const int64_t head = first_head(st, qt, i / G) + i % G, at = head * BRANCHES + branch;
        const real *o = w->o + i * st->dvp, inv_sum = w->inv_sum[i], gate = st->gate[at];
        real *out = st->out + head * dv, *out_x = st->out_x[branch];
        for (int64_t c = 0; c < dv; c++)
            out[c] = (branch == CMP ? 0 : out[c]) + gate * (inv_sum * o[c]);
        for (int64_t c = 0; c < dv && out_x; c++)
            out_x[head * dv + c] = inv_sum * o[c];
        if (st->stats) {
            st->stats[2 * at] = w->row_max[i];
            st->stats[2 * at + 1] = inv_sum;
        }
    }
}

/* A tile: per query the compressed branch and its importance, the selection of blocks, then the
 * other two branches of all queries (Eq. 5, 8-12). `forced` [R,Hkv,n] replaces the selection; NULL
 * selects. */
void attend_tile(stage *st, work *w, const query_tile *qt, const int32_t *forced) {
    for (int64_t i = 0; i < qt->count; i++) {
        attend_cmp(st, w, qt, i);
        nsa_timer_add(&w->timer, CMP);
        select_row(st, w, qt, i, forced);
        nsa_timer_add(&w->timer, SELECT);
    }
    accumulate_gated(st, w, qt, CMP);
    for (int branch = SLC; branch <= WIN; branch++) {
        attend_blocks(st, w, qt, branch, list_spans(st, w, qt, branch));
        accumulate_gated(st, w, qt, branch);
        nsa_timer_add(&w->timer, branch);
    }
}
