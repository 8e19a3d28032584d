/** @file recall.c
 *  @brief The recall task: its sizes, its batches, and how well a model answers. */
#include "train/recall.h"
#include "harness/random.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST = 8, SLOTS = 75 /* of two tokens, where a pair may stand */ };

uint64_t recall_seed(uint64_t seed, recall_use use, int64_t i) {
    static const char *const uses[] = {"train", "evaluate", "blocks"};
    uint64_t state = random_seed(uses[use]) + seed;
    state = random_next(&state) + (uint64_t)i;
    return random_next(&state);
}

void recall_config(attention_kind kind, nsa_phi phi, model_config *cfg, adamw_config *opt) {
    const int mean = phi == NSA_PHI_MEAN;
    nsa_config nsa = nsa_config_defaults();
    nsa.seq_len = RECALL_N, nsa.max_seqs = RECALL_B;
    nsa.q_heads = 4, nsa.kv_heads = 1, nsa.qk_dim = nsa.v_dim = 32;
    nsa.cmp_block = 8, nsa.cmp_stride = 4, nsa.slc_block = 8;
    nsa.slc_count = 6, nsa.slc_init = nsa.slc_local = 1;
    nsa.window = 16, nsa.phi = phi;
    *cfg = (model_config){.vocab = RECALL_KEYS + RECALL_VALUES + RECALL_NOISE,
                          .width = 64,
                          .layers = 1,
                          .longest = RECALL_T,
                          .turned = 8,
                          .rope_base = 1000,
                          .phi_rate = 0.1,
                          .kind = kind,
                          .nsa = nsa};
    *opt = (adamw_config){.lr = mean ? 1e-2 : 5e-3,
                          .beta = {0.9, 0.98},
                          .eps = 1e-8,
                          .clip = 1,
                          .last = 0.1,
                          .warm = 50,
                          .steps = 1000};
}

/* ----------------------------------------------------------------- batches */

static int32_t below(uint64_t *state, int32_t n) {
    return (int32_t)(random_next(state) % (uint64_t)n);
}

/* The first `count` of a random order of 0..n-1 (Fisher and Yates). */
static void draw_distinct(int32_t *list, int32_t n, int64_t count, uint64_t *state) {
    for (int32_t i = 0; i < n; i++)
        list[i] = i;
    for (int32_t i = 0; i < count && i < n; i++) {
        const int32_t other = i + below(state, n - i), swapped = list[i];
        list[i] = list[other];
        list[other] = swapped;
    }
}

static void draw_sequence(recall_batch *r, int b, int32_t pairs, uint64_t *state) {
    int32_t key[RECALL_KEYS], slot[SLOTS], order[RECALL_PAIRS];
    int32_t value_at[RECALL_PAIRS] = {0};
    int32_t *token = r->token + b * RECALL_T, *target = r->target + b * RECALL_T;
    for (int t = 0; t < RECALL_T; t++) {
        token[t] = RECALL_KEYS + RECALL_VALUES + below(state, RECALL_NOISE);
        target[t] = -1;
        r->pos[b * RECALL_T + t] = t;
    }
    draw_distinct(key, RECALL_KEYS, pairs, state);
    draw_distinct(slot, SLOTS, pairs, state);
    draw_distinct(order, pairs, pairs, state);
    const int32_t odd = below(state, 2);
    for (int i = 0; i < pairs; i++) {
        value_at[i] = FIRST + 2 * slot[i] + odd + 1;
        token[value_at[i] - 1] = key[i];
        token[value_at[i]] = RECALL_KEYS + below(state, RECALL_VALUES);
    }
    for (int i = 0; i < RECALL_PAIRS; i++) {
        const int32_t pair = order[i % pairs], t = RECALL_ASK + 2 * i;
        token[t] = key[pair];
        token[t + 1] = target[t] = token[value_at[pair]];
        r->answer[b][i] = value_at[pair];
    }
}

batch recall_draw(recall_batch *r, int64_t pairs, uint64_t seed) {
    for (int b = 0; b < RECALL_B; b++) {
        r->cu_seqlens[b] = b * RECALL_T;
        draw_sequence(r, b, (int32_t)pairs, &seed);
    }
    r->cu_seqlens[RECALL_B] = RECALL_N;
    return (batch){{RECALL_N, RECALL_B, r->cu_seqlens}, r->token, r->target, r->pos};
}

/* -------------------------------------------------------------- evaluation */

/* @return for how many questions the value's block is in the list of every kv head */
static int64_t count_selected(const recall_batch *r, const attention *a) {
    const nsa_config *c = &a->cfg;
    int64_t found = 0;
    for (int i = 0; i < RECALL_B * RECALL_PAIRS; i++) {
        const int b = i / RECALL_PAIRS, question = i % RECALL_PAIRS;
        const int64_t row = b * RECALL_T + RECALL_ASK + 2 * question;
        const int32_t *list = a->block_idx + row * c->kv_heads * c->slc_count;
        const int64_t block = r->answer[b][question] / c->slc_block;
        int64_t heads = 0;
        for (int64_t j = 0; j < c->kv_heads * c->slc_count; j++)
            heads += list[j] == block;
        found += heads == c->kv_heads;
    }
    return found;
}

nsa_status recall_evaluate(model *m, int batches, int random, recall_score *score) {
    const attention_blocks before = m->blocks;
    recall_batch *r = malloc(sizeof *r);
    nsa_status status = r ? NSA_OK : nsa_fail(NSA_ERR_MEMORY, "no memory for a batch");
    int64_t asked = 0, correct = 0, selected = 0;
    *score = (recall_score){0};
    m->blocks = random ? BLOCKS_RANDOM : before;
    m->block_seed = recall_seed(0, RECALL_BLOCKS, 0);
    for (int i = 0; i < batches && !status; i++) {
        loss_result result;
        const batch b = recall_draw(r, RECALL_PAIRS, recall_seed(0, RECALL_EVALUATE, i));
        status = model_forward(m, &b, &result);
        status = status ? status : attention_read_blocks(&m->layer[0].attend, &m->pack);
        if (status)
            break;
        score->loss += result.loss / batches;
        asked += result.counted;
        correct += result.correct;
        selected += count_selected(r, &m->layer[0].attend);
    }
    m->blocks = before;
    score->accuracy = asked ? (double)correct / (double)asked : 0;
    score->selected = asked ? (double)selected / (double)asked : 0;
    free(r);
    return status;
}
