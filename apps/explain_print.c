/** @file explain_print.c
 *  @brief `nsa run --explain`: the steps of one query as text, in the order of the specification.
 *
 * A step begins with its number and name at the margin; docs/examples/excerpts.sh cuts there. */
#include "explain.h"

#include "common/counts.h"
#include "io/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    SHOWN = 4,  /* the longest vector that is shown whole, and the most heads side by side */
    BEGINS = 2, /* numbers that are shown of a longer one */
    TERMS = 5,  /* terms of a sum that are shown */
    WIDE = 96   /* the longest line of them */
};

/* Append to a line; what does not fit is left out. */
static void append(char line[WIDE], const char *format, double number) {
    const size_t length = strlen(line);
    snprintf(line + length, WIDE - length, format, number);
}

/* A vector in brackets, only its first numbers if it is long. Zero has no sign. */
static const char *show(char line[WIDE], const double *x, int64_t n) {
    snprintf(line, WIDE, "(");
    for (int64_t i = 0; i < (n > SHOWN ? BEGINS : n); i++)
        append(line, i ? ", %.6g" : "%.6g", x[i] + 0.0);
    append(line, n > SHOWN ? ", ..)" : ")", 0);
    return line;
}

/* ------------------------------------------------------------------ the query */

static void print_query(const explanation *e) {
    const nsa_config *c = &e->input->cfg;
    char name[TEXT_SHOWN], q[WIDE];
    text_show(name, sizeof name, e->stage->name, strlen(e->stage->name));
    printf("0 query: t = %" PRId64 " of T = %" PRId64 ", kv head %" PRId64 " of %" PRId64
           ", scale %.6g, by stage %s\n",
           e->t, e->T, e->kv_head, c->kv_heads, c->scale, name);
    printf("  %4s  %-28s  %8s  %8s  %8s\n", "head", "q", "g_cmp", "g_slc", "g_win");
    for (int64_t g = 0; g < e->G; g++) {
        const double *gate = e->gate + g * EXPLAIN_BRANCHES;
        printf("  %4" PRId64 "  %-28s  %8.6g  %8.6g  %8.6g\n", e->kv_head * e->G + g,
               show(q, e->q + g * c->qk_dim, c->qk_dim), gate[EXPLAIN_CMP], gate[EXPLAIN_SLC],
               gate[EXPLAIN_WIN]);
    }
}

/* --------------------------------------------------------------------- branches */

/* The tokens of compressed token i. */
static const char *tokens_of(const nsa_config *c, int64_t i, char line[WIDE]) {
    snprintf(line, WIDE, "%" PRId64 "..%" PRId64, i * c->cmp_stride,
             i * c->cmp_stride + c->cmp_block - 1);
    return line;
}

static void print_compress(const explanation *e) {
    const nsa_config *c = &e->input->cfg;
    const explain_branch *b = &e->branch[EXPLAIN_CMP];
    char tokens[WIDE], k[WIDE], v[WIDE];
    printf("\n1 compress: phi = %s of l = %" PRId64 " tokens, every d = %" PRId64 "; N = %" PRId64
           "\n",
           nsa_phi_name(c->phi), c->cmp_block, c->cmp_stride, e->N);
    printf("  %6s  %12s  %-28s  %s\n", "i", "tokens", "k_phi", "v_phi");
    for (int64_t i = 0; i < e->N; i++)
        printf("  %6" PRId64 "  %12s  %-28s  %s\n", i, tokens_of(c, i, tokens),
               show(k, b->k + i * c->qk_dim, c->qk_dim), show(v, b->v + i * c->v_dim, c->v_dim));
}

/* The keys of one head: score, weight, probability and value. */
static void print_head(const explanation *e, int branch, int64_t g) {
    const nsa_config *c = &e->input->cfg;
    const explain_branch *b = &e->branch[branch];
    const char *const rest[] = {"cmp", "slc", "win"};
    char k[WIDE], v[WIDE];
    if (!b->count) {
        printf("  head %" PRId64 " sees nothing: out_%s = 0\n", e->kv_head * e->G + g,
               rest[branch]);
        return;
    }
    printf("  head %" PRId64 ": row_max %.6g, row_sum %.6g, out_%s = %s\n", e->kv_head * e->G + g,
           b->row_max[g] + 0.0, b->row_sum[g], rest[branch],
           show(v, b->out + g * c->v_dim, c->v_dim));
    printf("  %6s  %-20s  %9s  %12s  %12s  %s\n", branch == EXPLAIN_CMP ? "i" : "s", "k", "q.k",
           "weight", "p", "v");
    for (int64_t i = 0; i < b->count; i++) {
        const int64_t at = g * b->count + i, key = b->key[i];
        printf("  %6" PRId64 "  %-20s  %9.6g  %12.6g  %12.6g  %s\n", key,
               show(k, b->k + key * c->qk_dim, c->qk_dim), b->score[at] + 0.0, b->weight[at],
               b->p[at], show(v, b->v + key * c->v_dim, c->v_dim));
    }
}

/* "weight" is exp(scale (q.k - row_max)), "p" that over row_sum. */
static void print_branch(const explanation *e, int branch) {
    const nsa_config *c = &e->input->cfg;
    const explain_branch *b = &e->branch[branch];
    if (branch == EXPLAIN_CMP)
        printf("\n2 compressed attention: the query sees %" PRId64 " i + %" PRId64 " <= t, %" PRId64
               " of %" PRId64 " compressed tokens\n",
               c->cmp_stride, c->cmp_block - 1, b->count, e->N);
    else if (branch == EXPLAIN_SLC)
        printf("\n5 selected attention: the query sees %" PRId64
               " tokens of the selected blocks, s <= t\n",
               b->count);
    else
        printf("\n6 window attention: the query sees %" PRId64 " tokens, t - %" PRId64
               " < s <= t\n",
               b->count, c->window);
    for (int64_t g = 0; g < e->G; g++)
        print_head(e, branch, g);
}

/* ------------------------------------------------------------------- selection */

/* "p[1] + 2 p[2] + p[3]": which compressed tokens count in block j, and how often. */
static const char *terms_of(const explanation *e, int64_t j, char line[WIDE]) {
    const nsa_config *c = &e->input->cfg;
    const int64_t per_block = c->slc_block / c->cmp_stride, overlap = c->cmp_block / c->cmp_stride;
    int64_t terms = 0;
    line[0] = 0;
    for (int64_t i = per_block * j - overlap + 1; i < per_block * (j + 1); i++) {
        if (i < 0 || i >= e->branch[EXPLAIN_CMP].count)
            continue; /* not there, or not seen: the term is 0 */
        const int64_t weight = explain_weight(c, j, i);
        if (terms++ == TERMS) {
            append(line, " + ..", 0);
            break;
        }
        append(line, terms > 1 ? " + " : "", 0);
        append(line, weight > 1 ? "%.0f " : "", (double)weight);
        append(line, "p[%.0f]", (double)i);
    }
    return terms ? line : "0";
}

/* Single heads are shown if there are few. */
static void print_importance(const explanation *e) {
    const int64_t heads = e->G <= SHOWN ? e->G : 0;
    char terms[WIDE];
    printf("\n3 importance: p_cmp summed over the block, then over the %" PRId64 " heads\n", e->G);
    printf("  %6s  %-36s", "block", "terms");
    for (int64_t g = 0; g < heads; g++)
        printf("  %5s %-3" PRId64, "head", e->kv_head * e->G + g);
    printf("  importance\n");
    for (int64_t j = 0; j <= e->own_block; j++) {
        printf("  %6" PRId64 "  %-36s", j, terms_of(e, j, terms));
        for (int64_t g = 0; g < heads; g++)
            printf("  %9.6g", e->head_importance[g * e->J + j]);
        printf("  %10.6g\n", e->importance[j]);
    }
}

/* Is block j in the stage's list? */
static int is_selected(const explanation *e, int64_t j) {
    for (int64_t i = 0; i < e->input->cfg.slc_count; i++) {
        if (e->block_idx[i] == j)
            return 1;
    }
    return 0;
}

/* Why a block was selected, or not. */
static const char *reason(const explanation *e, int64_t j) {
    const nsa_config *c = &e->input->cfg;
    if (e->input->in.at[NSA_BLOCK_IDX].dtype)
        return is_selected(e, j) ? "in block_idx.npy" : "-";
    if (j < c->slc_init)
        return "forced: initial";
    if (explain_forced(c, j, e->own_block))
        return "forced: local";
    if (is_selected(e, j))
        return "selected";
    for (int64_t i = 0; i <= e->own_block; i++) {
        if (i != j && is_selected(e, i) && !explain_forced(c, i, e->own_block) &&
            e->importance[i] == e->importance[j])
            return "- a tie: the lower index is selected";
    }
    return "-";
}

static void print_select(const explanation *e) {
    const nsa_config *c = &e->input->cfg;
    printf("\n4 select: n = %" PRId64 " blocks of 0 to b = floor(%" PRId64 " / %" PRId64
           ") = %" PRId64 ", the first %" PRId64 " and the last %" PRId64 " forced\n",
           c->slc_count, e->t, c->slc_block, e->own_block, c->slc_init, c->slc_local);
    printf("  %6s  %10s\n", "block", "importance");
    for (int64_t j = 0; j <= e->own_block; j++)
        printf("  %6" PRId64 "  %10.6g  %s\n", j, e->importance[j], reason(e, j));
    printf("  block_idx =");
    for (int64_t i = 0; i < c->slc_count; i++)
        printf(" %" PRId32, e->block_idx[i]);
    printf("\n");
}

/* ------------------------------------------------------------------------ gate */

static void print_gate(const explanation *e) {
    const int64_t dv = e->input->cfg.v_dim;
    char o[EXPLAIN_BRANCHES][WIDE], out[WIDE];
    printf("\n7 gate: out = g_cmp out_cmp + g_slc out_slc + g_win out_win\n");
    for (int64_t g = 0; g < e->G; g++) {
        const double *gate = e->gate + g * EXPLAIN_BRANCHES;
        for (int x = 0; x < EXPLAIN_BRANCHES; x++)
            show(o[x], e->branch[x].out + g * dv, dv);
        printf("  head %" PRId64 ": %.6g %s + %.6g %s + %.6g %s\n", e->kv_head * e->G + g, gate[0],
               o[0], gate[1], o[1], gate[2], o[2]);
        printf("        = %s\n", show(out, e->out + g * dv, dv));
    }
}

void explain_print(const explanation *e) {
    print_query(e);
    print_compress(e);
    print_branch(e, EXPLAIN_CMP);
    print_importance(e);
    print_select(e);
    print_branch(e, EXPLAIN_SLC);
    print_branch(e, EXPLAIN_WIN);
    print_gate(e);
}
