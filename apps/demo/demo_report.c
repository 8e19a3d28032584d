/** @file demo_report.c
 *  @brief The demo's text output, at most 80 columns wide. */
#include "demo/demo_report.h"
#include "common/counts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { MIN_DEPTH = 64 }; /* from this depth on a query averages only tokens of the second copy */

/* -------------------------------------------------------------------- inputs */

void demo_report_text(const demo_text *text) {
    char quote[61];
    double T = (double)text->bytes_read; /* percentages refer to the text before the copy */
    printf("Text: %.68s\n", text->name);
    printf("  %s%" PRId64 " bytes%s, one byte a token.\n", text->cut ? "its first " : "",
           text->bytes_read, text->cut ? " (more would take too long here)" : "");
    printf("  Planted: the %" PRId64 " bytes from %" PRId64 " (%.0f%%), copied in again at %" PRId64
           " (%.0f%%).\n  Now T = %" PRId64 " tokens, %" PRId64 " from one copy to the other.\n",
           text->length, text->first, 100 * (double)text->first / T, text->second,
           100 * (double)text->second / T, text->T, text->second - text->first);
    printf("  They begin: \"%s...\"\n\n", demo_text_quote(text, text->first, 60, quote));
}

void demo_report_model(const nsa_config *c) {
    printf("Made by hand. NOTHING HERE IS TRAINED; it is what training would have to find.\n");
    printf("  keys     the %d bytes up to a token, hashed to %d random signs\n", DEMO_GRAM,
           DEMO_DIM - DEMO_ROTARY);
    printf("  queries  each head's mean of its last");
    for (int64_t h = 0; h < DEMO_HEADS; h++)
        printf(" %" PRId64 "%s", demo_reach(h),
               h < DEMO_HEADS - 2 ? "," : (h == DEMO_HEADS - 2 ? " and" : ""));
    printf(" such rows, so that\n           a passage seen before looks like its own compressed "
           "key\n");
    printf("  RoPE     turns %d of %d dims, so that near tokens differ from far ones. The\n"
           "           other %d carry content alone: turned dims partly cancel in a\n"
           "           compressed key, which is a mean over %" PRId64 " positions\n",
           DEMO_ROTARY, DEMO_DIM, DEMO_DIM - DEMO_ROTARY, c->cmp_block);
    printf("  values   a random row for each of the 256 bytes, one table a branch\n");
    printf("  gates    seeded, uniform in [0,1];  phi  gated, small weights: near the mean\n");
    printf("  Hq=%" PRId64 " Hkv=%" PRId64 " dk=%" PRId64 " dv=%" PRId64 "; the paper's l=%" PRId64
           " d=%" PRId64 " l'=%" PRId64 " n=%" PRId64 " w=%" PRId64 "\n\n",
           c->q_heads, c->kv_heads, c->qk_dim, c->v_dim, c->cmp_block, c->cmp_stride, c->slc_block,
           c->slc_count, c->window);
}

/* --------------------------------------------------------------------- table */

void demo_report_head(int64_t rows) {
    printf("Stages, each compared with stage 00 (float64, every key) on the same %" PRId64
           " queries.\n"
           "One run each; time is the forward alone, a mean over the queries computed.\n\n",
           rows);
    printf("%-18s %7s %10s %8s %9s %9s  %s\n", "stage", "queries", "ms for", "faster", "deviation",
           "same", "verdict");
    printf("%-18s %7s %10s %8s %9s %9s\n", "", "", "1000 qu.", "than 00", "rms", "blocks");
}

/* Print a reason, wrapped and indented. */
static void print_reason(const char *text) {
    enum { WIDTH = 74 };
    for (size_t n; *text; text += n + (text[n] == ' ')) {
        n = strlen(text);
        if (n > WIDTH) {
            for (n = WIDTH; n && text[n] != ' ';)
                n--;
            n = n ? n : WIDTH;
        }
        printf("    %.*s\n", (int)n, text);
    }
}

void demo_report_line(const demo_line *line, double oracle) {
    static const char *const ends[] = {"SKIP", "oracle", "OK", "FAIL"};
    const demo_verdict *v = &line->verdict;
    char time[24] = "-", faster[24] = "-", rms[24] = "-", same[48] = "-";
    if (line->rows) {
        double ms = 1e6 * line->per_query;
        snprintf(time, sizeof time, ms < 100 ? "%.1f" : "%.0f", ms);
        if (oracle > 0 && line->per_query > 0)
            snprintf(faster, sizeof faster, "%.3gx", oracle / line->per_query);
    }
    if (line->judged) {
        snprintf(same, sizeof same, "%" PRId64 "/%" PRId64, v->same, v->compared);
        if (v->same + v->tied == v->compared)
            snprintf(rms, sizeof rms, "%.1e", v->rms);
    }
    printf("%-18.18s ", line->name);
    if (line->rows)
        printf("%7" PRId64, line->rows);
    else
        printf("%7s", "-");
    printf(" %10s %8s %9s %9s  %s\n", time, faster, rms, same, ends[line->end]);
    if (line->judged && v->tied)
        printf("    %" PRId64 " more differ by near-ties within the allowed slack\n", v->tied);
    if (line->end == DEMO_SKIP || line->end == DEMO_FAIL)
        print_reason(line->why);
    fflush(stdout);
}

/* --------------------------------------------------------------------- reads */

static void reads_row(const char *label, double cmp, double slc, double win, double dense) {
    double sum = cmp + slc + win;
    printf("  %-12s %10.0f %9.0f %7.0f %9.0f %9.0f %7.2fx\n", label, cmp, slc, win, sum, dense,
           dense / sum);
}

void demo_report_reads(const nsa_config *c) {
    static const double marks[] = {0.02, 0.1, 0.25, 0.5, 1};
    double cmp = 0, slc = 0, win = 0, dense = 0, T = (double)c->seq_len;
    printf("\nTokens that a query reads, overlaps of the branches counted twice.\n\n");
    printf("  %-12s %10s %9s %7s %9s %9s %8s\n", "position t", "compressed", "selected", "window",
           "together", "dense", "fewer");
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        int64_t t = (int64_t)(marks[i] * T) - 1;
        nsa_reads r = nsa_reads_at(c, t);
        char label[32];
        snprintf(label, sizeof label, "%" PRId64 "%s", t, i == 4 ? " (last)" : "");
        reads_row(label, (double)r.cmp, (double)r.slc, (double)r.win, (double)r.dense);
    }
    for (int64_t t = 0; t < c->seq_len; t++) {
        nsa_reads r = nsa_reads_at(c, t);
        cmp += (double)r.cmp;
        slc += (double)r.slc;
        win += (double)r.win;
        dense += (double)r.dense;
    }
    reads_row("mean of all", cmp / T, slc / T, win / T, dense / T);
    printf("\nThe same at the paper's lengths (Table 4, which rounds N to T/16).\n\n");
    printf("  %-10s %20s %9s %11s %9s\n", "T", "N + n l' + w", "fewer", "the paper", "fewer");
    static const int printed[] = {2048, 2560, 3584, 5632};
    for (int i = 0; i < 4; i++) {
        int64_t length = (int64_t)8192 << i;
        nsa_config paper = nsa_config_defaults();
        paper.seq_len = length;
        nsa_reads r = nsa_reads_at(&paper, length - 1);
        int64_t sum = r.cmp + r.slc + r.win;
        /* Take the last query: one in the middle of a block reads fewer selected tokens. */
        printf("  %-10" PRId64 " %6" PRId64 "+%" PRId64 "+%" PRId64 "=%5" PRId64
               " %8.2fx %11d %8.1fx\n",
               length, r.cmp, r.slc, r.win, sum, (double)length / (double)sum, printed[i],
               (double)length / printed[i]);
    }
}

/* --------------------------------------------------------------- found again */

demo_found_again demo_look_again(const demo_text *text, const nsa_config *c, const demo_run *run) {
    demo_found_again found = {0};
    double chance = 0;
    for (int64_t t = text->second + MIN_DEPTH; t < text->second + text->length; t++) {
        int64_t r = demo_run_find(run, t), own_block = t / c->slc_block;
        int32_t twin = (int32_t)((t - text->second + text->first) / c->slc_block);
        if (r < 0)
            continue;
        double blocks = (double)(own_block + 1 - c->slc_init - c->slc_local);
        double n_free = (double)(c->slc_count - c->slc_init - c->slc_local);
        for (int64_t h = 0; h < c->kv_heads; h++) {
            const int32_t *idx = run->block_idx + (r * c->kv_heads + h) * c->slc_count;
            int hit = 0;
            for (int64_t i = 0; i < c->slc_count; i++)
                hit |= idx[i] == twin;
            found.hits += hit;
            found.queries++;
            chance += blocks > n_free ? n_free / blocks : 1;
        }
    }
    double share = found.queries ? (double)found.hits / (double)found.queries : 0;
    found.chance = found.queries ? chance / (double)found.queries : 1;
    found.telling = found.chance < 0.75 && text->familiar < 0.5;
    /* Clearly above chance: at least halfway between chance and 1. */
    found.ok = found.queries > 0 && share >= (1 + found.chance) / 2;
    return found;
}

void demo_report_found(const demo_text *text, const demo_found_again *found, const char *stage) {
    double share = found->queries ? (double)found->hits / (double)found->queries : 0;
    const char *verdict = found->telling ? (found->ok ? "OK" : "FAIL") : "SKIP";
    printf("\nThe planted passage, found again? (blocks as selected by stage %.20s)\n", stage);
    printf("  Queries %" PRId64 " to %" PRId64
           " are in the second copy, %d and more tokens deep.\n",
           text->second + MIN_DEPTH, text->second + text->length - 1, MIN_DEPTH);
    printf("  %" PRId64 " of %" PRId64 " (%.1f%%) selected the block where their twin is in the "
           "first;\n  free picks thrown at random would reach %.1f%%.  %s\n",
           found->hits, found->queries, 100 * share, 100 * found->chance, verdict);
    if (!found->telling && text->familiar >= 0.5)
        printf("  This text repeats itself: %.0f%% of the passage is elsewhere in it too, so\n"
               "  that the block of the twin is one of many equals.\n",
               100 * text->familiar);
    else if (!found->telling)
        printf("  The text is too short to tell: nearly every block is selected.\n");
}
