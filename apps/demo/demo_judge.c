/** @file demo_judge.c
 *  @brief Comparing a stage with stage 00. Every test is written so that NaN fails. */
#include "demo/demo_judge.h"
#include "common/counts.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

demo_tolerance demo_tolerances(nsa_arith arith) {
    static const demo_tolerance exact = {1e-12, 1e-11, 0}, single = {1e-5, 1e-4, 1e-5},
                                bf16 = {5e-3, 4e-2, 1e-3};
    return arith == NSA_FLOAT64 ? exact : arith == NSA_FLOAT32 ? single : bf16;
}

/* Record the first thing that is wrong. */
#define BLAME(v, ...)                                                                              \
    do {                                                                                           \
        if (!(v)->why[0])                                                                          \
            snprintf((v)->why, sizeof(v)->why, __VA_ARGS__);                                       \
    } while (0)

static int is_forced(const nsa_config *c, int64_t block, int64_t own_block) {
    return block < c->slc_init || (block > own_block - c->slc_local && block <= own_block);
}

/* ---------------------------------------------------------------- selection */

/* Mark the blocks of one list [n] in `set`. @return 1 if the list is legal: ascending, -1 last */
static int mark(const int32_t *idx, int64_t n, int64_t own_block, char bit, char *set) {
    int64_t used = 0;
    while (used < n && idx[used] >= 0) {
        if (idx[used] > own_block || (used && idx[used] <= idx[used - 1]))
            return 0;
        set[idx[used++]] |= bit;
    }
    for (int64_t i = used; i < n; i++) {
        if (idx[i] != -1)
            return 0;
    }
    return used == (n < own_block + 1 ? n : own_block + 1);
}

/* Compare the blocks of one query and group. A block that only one side selected must be a free
 * one, with an importance within the slack of the smallest that the oracle selected freely. */
static int same_blocks(const nsa_config *c, double slack, const double *importance,
                       int64_t own_block, const char *set, demo_verdict *v, int64_t t) {
    enum { ORACLE = 1, CANDIDATE = 2 };
    double threshold = INFINITY;
    int64_t differ = 0;
    for (int64_t j = 0; j <= own_block; j++) {
        if ((set[j] & ORACLE) && !is_forced(c, j, own_block) && importance[j] < threshold)
            threshold = importance[j];
    }
    for (int64_t j = 0; j <= own_block; j++) {
        if (set[j] != ORACLE && set[j] != CANDIDATE)
            continue;
        double off = fabs(importance[j] - threshold);
        differ++;
        if (is_forced(c, j, own_block) || !(off <= slack * fmax(threshold, 1e-30))) {
            BLAME(v,
                  "query %" PRId64 " %s block %" PRId64
                  ", importance %g; the last free block has %g",
                  t, set[j] == CANDIDATE ? "selected" : "left out", j, importance[j], threshold);
            return 0;
        }
    }
    v->same += !differ;
    v->tied += differ > 0;
    return 1;
}

nsa_status demo_judge_selection(const nsa_config *c, double slack, const demo_run *oracle,
                                const demo_run *candidate, demo_verdict *v) {
    char *set = malloc((size_t)oracle->J + 1);
    if (!set)
        return nsa_fail(NSA_ERR_MEMORY, "no memory to compare selections");
    for (int64_t i = 0; i < oracle->R * c->kv_heads; i++) {
        int64_t t = oracle->row[i / c->kv_heads], h = i % c->kv_heads, own_block = t / c->slc_block;
        int64_t row = demo_run_find(candidate, t) * c->kv_heads + h;
        memset(set, 0, (size_t)oracle->J);
        v->compared++;
        if (row < 0)
            BLAME(v, "query %" PRId64 " was not computed", t);
        else if (!mark(oracle->block_idx + i * c->slc_count, c->slc_count, own_block, 1, set))
            BLAME(v, "stage 00 selected no legal list for query %" PRId64, t);
        else if (!mark(candidate->block_idx + row * c->slc_count, c->slc_count, own_block, 2, set))
            BLAME(v, "query %" PRId64 " has no legal list of blocks", t);
        else
            same_blocks(c, slack, oracle->importance + i * oracle->J, own_block, set, v, t);
    }
    free(set);
    v->ok = v->same + v->tied == v->compared;
    return NSA_OK;
}

nsa_status demo_judge_all_rows(const nsa_config *c, const demo_run *run, demo_verdict *v) {
    int64_t width = c->q_heads * c->v_dim;
    char *set = calloc((size_t)run->J + 1, 1);
    if (!set)
        return nsa_fail(NSA_ERR_MEMORY, "no memory to look at all rows");
    for (int64_t r = 0; r < run->R; r++) {
        int64_t t = run->row[r], finite = 0, legal = 0;
        for (int64_t i = 0; i < width; i++)
            finite += isfinite(run->out[r * width + i]) != 0;
        for (int64_t h = r * c->kv_heads; h < (r + 1) * c->kv_heads; h++)
            legal +=
                mark(run->block_idx + h * c->slc_count, c->slc_count, t / c->slc_block, 0, set);
        if (finite != width)
            BLAME(v, "query %" PRId64 ": %" PRId64 " output elements are not finite", t,
                  width - finite);
        if (legal != c->kv_heads)
            BLAME(v, "query %" PRId64 " has no legal list of blocks", t);
        v->ok = v->ok && finite == width && legal == c->kv_heads;
    }
    free(set);
    return NSA_OK;
}

/* ------------------------------------------------------------------ outputs */

void demo_judge_output(const nsa_config *c, const demo_tolerance *limits, const demo_run *oracle,
                       const demo_run *candidate, demo_verdict *v) {
    int64_t width = c->q_heads * c->v_dim, broken = 0;
    double error = 0, norm = 0, worst = 0, max_abs = 0;
    for (int64_t r = 0; r < oracle->R; r++) {
        const double *b = oracle->out + r * width;
        const double *a = candidate->out + demo_run_find(candidate, oracle->row[r]) * width;
        for (int64_t i = 0; i < width; i++) {
            double off = fabs(a[i] - b[i]);
            broken += !isfinite(a[i]) || !isfinite(b[i]); /* fmax() ignores NaN */
            error += off * off;
            norm += b[i] * b[i];
            worst = fmax(worst, off);
            max_abs = fmax(max_abs, fabs(b[i]));
        }
    }
    v->rms = sqrt(error) / sqrt(norm);
    v->worst = worst / max_abs;
    int close = v->rms <= limits->rms && v->worst <= limits->worst && !broken;
    if (broken)
        BLAME(v, "%" PRId64 " output elements are not finite", broken);
    else if (!close)
        BLAME(v, "outputs: rms ratio %.2g, allowed %.0e; largest %.2g, allowed %.0e", v->rms,
              limits->rms, v->worst, limits->worst);
    v->ok = v->ok && close;
}

/* ----------------------------------------------- importance of emitted k_phi */

/* p [visible]: softmax of scale q.k_phi over the visible compressed tokens (Eq. 8). */
static void softmax(const nsa_config *c, const float *q_th, const double *k_phi, int64_t group,
                    int64_t visible, double *p) {
    double row_max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < visible; i++) {
        const double *k = k_phi + (i * c->kv_heads + group) * c->qk_dim;
        p[i] = 0;
        for (int64_t x = 0; x < c->qk_dim; x++)
            p[i] += q_th[x] * k[x];
        p[i] *= c->scale;
        row_max = fmax(row_max, p[i]);
    }
    for (int64_t i = 0; i < visible; i++)
        sum += p[i] = exp(p[i] - row_max);
    for (int64_t i = 0; i < visible; i++)
        p[i] /= sum;
}

/* Eq. 9 and 10: a block's importance is the sum of p over the compressed tokens that overlap it,
 * each counted once for every one of its strides in the block. */
static void collect(const nsa_config *c, int64_t visible, const double *p, int64_t J,
                    double *importance) {
    int64_t per = c->slc_block / c->cmp_stride, strides = c->cmp_block / c->cmp_stride;
    for (int64_t j = 0; j < J; j++) {
        for (int64_t m = 0; m < per; m++) {
            for (int64_t r = 0; r < strides; r++) {
                int64_t i = per * j + m - r;
                if (i >= 0 && i < visible)
                    importance[j] += p[i];
            }
        }
    }
}

/* Eq. 11: forced blocks, then the largest importance, then the smallest index; ascending. */
static void select_blocks(const nsa_config *c, int64_t own_block, const double *importance,
                          char *selected, int32_t *idx) {
    int64_t left = c->slc_count, used = 0;
    for (int64_t j = 0; j <= own_block; j++)
        left -= selected[j] = (char)is_forced(c, j, own_block);
    for (; left > 0; left--) {
        int64_t best = -1;
        for (int64_t j = 0; j <= own_block; j++) {
            if (!selected[j] && (best < 0 || importance[j] > importance[best]))
                best = j;
        }
        if (best < 0)
            break;
        selected[best] = 1;
    }
    for (int64_t j = 0; j <= own_block; j++) {
        if (selected[j])
            idx[used++] = (int32_t)j;
    }
    while (used < c->slc_count)
        idx[used++] = -1;
}

nsa_status demo_reselect(const demo_model *model, const double *k_phi, demo_run *oracle) {
    const nsa_config *c = &model->cfg;
    int64_t G = c->q_heads / c->kv_heads, J = oracle->J;
    double *p = malloc((size_t)nsa_cmp_tokens(c, c->seq_len) * sizeof *p + 1);
    char *selected = malloc((size_t)J);
    if (!p || !selected) {
        free(p);
        free(selected);
        return nsa_fail(NSA_ERR_MEMORY, "no memory to select again");
    }
    for (int64_t i = 0; i < oracle->R * c->kv_heads; i++) {
        int64_t t = oracle->row[i / c->kv_heads], group = i % c->kv_heads;
        int64_t visible = nsa_cmp_visible(c, t);
        double *importance = oracle->importance + i * J;
        memset(importance, 0, (size_t)J * sizeof *importance);
        for (int64_t h = group * G; h < (group + 1) * G; h++) {
            softmax(c, model->memory[NSA_Q] + (t * c->q_heads + h) * c->qk_dim, k_phi, group,
                    visible, p);
            collect(c, visible, p, J, importance);
        }
        select_blocks(c, t / c->slc_block, importance, selected,
                      oracle->block_idx + i * c->slc_count);
    }
    free(p);
    free(selected);
    return NSA_OK;
}
