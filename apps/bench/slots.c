/** @file slots.c
 *  @brief Many slots of long sequences: windows of one stretch of tokens. */
#include "bench/workload.h"
#include "common/tensors.h"
#include "harness/random.h"
#include "harness/run.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { JUDGED_ROWS = 2 /* of a slot: its first step and its last warm-up step */ };

/* ------------------------------------------------------------------ drawing */

/* Draw one sequence of `tokens`; no row of results is chosen. */
static nsa_status draw(const bench_options *o, int64_t tokens, nsa_arith arith, nsa_tensors *in) {
    test_case c;
    char text[320];
    workload_text(o, tokens, text, sizeof text);
    nsa_status status = case_parse(text, &c);
    status = status ? status : case_inputs(&c, arith, in);
    tensor_free(&in->at[NSA_ROWS]);
    tensor_free(&in->at[NSA_DOUT]);
    return status;
}

/* Keys, values and weights of the stretch. Its queries are not used: draw as few as may be. */
static nsa_status draw_stretch(const bench_options *o, workload *w) {
    bench_options stretch = *o;
    stretch.batch = 1;
    stretch.cfg.q_heads = stretch.cfg.kv_heads;
    nsa_status status = draw(&stretch, w->T + w->B * DECODE_STEPS, w->arith, &w->in);
    tensor_free(&w->in.at[NSA_Q]);
    tensor_free(&w->in.at[NSA_GATE]);
    return status;
}

/* Queries and gates of the steps are drawn as a separate case; keys and values are the stretch's.
 */
static nsa_status draw_steps(const bench_options *o, workload *w) {
    bench_options steps = *o;
    steps.batch = 1;
    steps.seed += 1;
    nsa_status status = draw(&steps, DECODE_STEPS * w->B, w->arith, &w->step);
    for (int id = NSA_K_CMP; id <= NSA_V_WIN && !status; id++) {
        const nsa_tensor *from = &w->in.at[id];
        const int64_t row = tensor_row(from);
        float *to = w->step.at[id].data;
        for (int64_t i = 0; i < DECODE_STEPS * w->B; i++) {
            const int64_t token = i % w->B * DECODE_STEPS + w->T + i / w->B;
            memcpy(to + i * row, (const float *)from->data + token * row, (size_t)row * sizeof *to);
        }
    }
    return status;
}

static nsa_status alloc_ints(nsa_tensor *t, int64_t count) {
    *t = (nsa_tensor){.dtype = NSA_I32, .ndim = 1, .shape = {count}};
    return tensor_alloc(t);
}

/* The first slot, the last, and seeded ones between: half as many as rows were asked for, for each
 * has two. */
static nsa_status choose_slots(const bench_options *o, workload *w) {
    const int64_t wanted = (o->rows + JUDGED_ROWS - 1) / JUDGED_ROWS;
    const int64_t count = wanted < w->B ? wanted : w->B;
    uint64_t state = (uint64_t)o->seed;
    nsa_status status = alloc_ints(&w->slots, count);
    status = status ? status : alloc_ints(&w->rows, JUDGED_ROWS * count);
    for (int64_t i = 0; i < count && !status; i++) {
        const int64_t low = i * w->B / count, high = (i + 1) * w->B / count;
        const int64_t slot = low + (int64_t)(random_next(&state) % (uint64_t)(high - low));
        tensor_ints(&w->slots)[i] = (int32_t)(i == 0 ? 0 : i + 1 == count ? w->B - 1 : slot);
        tensor_ints(&w->rows)[JUDGED_ROWS * i] = (int32_t)w->T;
        tensor_ints(&w->rows)[JUDGED_ROWS * i + 1] = (int32_t)(w->T + DECODE_WARM - 1);
    }
    return status;
}

/* Queries or gates of one sequence, all zero; memory that is never written costs nothing. */
static nsa_status alloc_blank(const workload *w, nsa_id id, nsa_tensor *t) {
    nsa_shape(&w->cfg, &(nsa_lengths){.T = w->T + DECODE_STEPS}, id, 0, t);
    t->dtype = NSA_F32;
    t->data = calloc((size_t)nsa_count(t), sizeof(float));
    return t->data ? NSA_OK : nsa_fail(NSA_ERR_MEMORY, "no memory for a sequence's queries");
}

nsa_status slots_open(const bench_options *o, workload *w) {
    bench_options one = *o;
    char text[320];
    one.batch = 1;
    workload_text(&one, w->T + DECODE_STEPS, text, sizeof text);
    nsa_status status = case_parse(text, &w->judged);
    w->cfg = w->judged.cfg;
    w->cfg.seq_len = w->T;
    w->cfg.max_seq_len = w->T + DECODE_STEPS;
    w->cfg.max_seqs = w->B;
    status = status ? status : draw_stretch(o, w);
    status = status ? status : draw_steps(o, w);
    status = status ? status : choose_slots(o, w);
    status = status ? status : alloc_blank(w, NSA_Q, &w->blank[0]);
    return status ? status : alloc_blank(w, NSA_GATE, &w->blank[1]);
}

void slots_close(workload *w) {
    free(w->blank[0].data);
    free(w->blank[1].data);
    tensor_free(&w->slots);
}

/* ------------------------------------------------------------------ filling */

/* The first `tokens` of a slot's sequence: keys and values are a window of the stretch, queries and
 * gates are blank. */
static nsa_tensors window_of(const workload *w, int64_t slot, int64_t tokens) {
    nsa_tensors in = w->in;
    in.at[NSA_Q] = w->blank[0];
    in.at[NSA_GATE] = w->blank[1];
    for (int id = NSA_Q; id <= NSA_GATE; id++)
        in.at[id].shape[0] = tokens;
    for (int id = NSA_K_CMP; id <= NSA_V_WIN; id++)
        in.at[id].data = (float *)in.at[id].data + slot * DECODE_STEPS * tensor_row(&in.at[id]);
    return in;
}

nsa_status slots_fill(const workload *w, nsa_context *ctx) {
    nsa_status status = NSA_OK;
    for (int32_t slot = 0; slot < w->B && !status; slot++) {
        nsa_tensors in = window_of(w, slot, w->T);
        in.at[NSA_ACTIVE] = (nsa_tensor){&slot, NSA_I32, 1, {1}};
        in.at[NSA_ROWS] = (nsa_tensor){NULL, NSA_I32, 1, {0}};
        status = nsa_load(ctx, &in);
        status = status ? status : nsa_prefill(ctx);
    }
    return status;
}

void slots_step(const workload *w, int64_t number, int32_t *active, nsa_tensors *in) {
    memset(in, 0, sizeof *in);
    for (int id = NSA_Q; id <= NSA_GATE; id++) {
        nsa_tensor *t = &in->at[id];
        *t = w->step.at[id];
        t->data = (float *)t->data + number * w->B * tensor_row(t);
        t->shape[0] = w->B;
    }
    for (int32_t b = 0; b < w->B; b++)
        active[b] = b;
    in->at[NSA_ACTIVE] = (nsa_tensor){.data = active, .dtype = NSA_I32, .ndim = 1, .shape = {w->B}};
}

nsa_status slots_unroll(const workload *w, nsa_id id, nsa_tensor *t) {
    const int64_t tokens = w->T + DECODE_STEPS, row = tensor_row(&w->in.at[id]);
    *t = w->in.at[id];
    t->shape[0] = w->B * tokens;
    nsa_status status = tensor_alloc(t);
    for (int64_t b = 0; b < w->B && !status; b++)
        memcpy((float *)t->data + b * tokens * row,
               (const float *)w->in.at[id].data + b * DECODE_STEPS * row,
               (size_t)(tokens * row) * sizeof(float));
    return status;
}

/* ------------------------------------------------------------------ judging */

/* A run of the oracle over the judged slots. */
typedef struct judge_run {
    const workload *w;
    nsa_context *ctx;
    int causal;
    const nsa_tensor *blocks; /* to force, or NULL */
    nsa_tensor lists;         /* int32 [T + DECODE_STEPS,Hkv,n]: all -1 but in the judged rows */
    nsa_tensors *results;
} judge_run;

/* Copy the judged rows' queries, gates and forced lists to where the sequence has them. */
static void place_rows(judge_run *run, int64_t i) {
    const workload *w = run->w;
    const int64_t slot = tensor_ints(&w->slots)[i];
    for (int64_t r = JUDGED_ROWS * i; r < JUDGED_ROWS * (i + 1); r++) {
        const int64_t t = tensor_ints(&w->rows)[r], step = (t - w->T) * w->B + slot;
        for (int k = 0; k < 2; k++) {
            const nsa_tensor *from = &w->step.at[k ? NSA_GATE : NSA_Q];
            const int64_t row = tensor_row(from);
            float *to = (float *)w->blank[k].data + t * row;
            memcpy(to, (const float *)from->data + step * row, (size_t)row * sizeof(float));
            for (int64_t x = 0; x < row && k && run->causal; x++)
                to[x] = x % 3 == 2; /* the window alone */
        }
        if (run->blocks)
            memcpy(tensor_ints(&run->lists) + t * tensor_row(&run->lists),
                   tensor_ints(run->blocks) + r * tensor_row(run->blocks),
                   (size_t)tensor_row(run->blocks) * sizeof(int32_t));
    }
}

/* Append one slot's result; the first one allocates all. */
static nsa_status append(judge_run *run, int64_t i, nsa_id id) {
    nsa_tensor rows = {0}, *all = &run->results->at[id];
    nsa_status status = read_result(run->ctx, id, &rows);
    if (!status && !all->dtype) {
        *all = rows;
        all->shape[0] = run->w->rows.shape[0];
        status = tensor_alloc(all);
    }
    const size_t bytes = (size_t)nsa_count(&rows) * nsa_dtype_size(rows.dtype);
    if (!status)
        memcpy((char *)all->data + (size_t)i * bytes, rows.data, bytes);
    tensor_free(&rows);
    return status;
}

/* Forward over one slot's sequence, of its judged rows alone. */
static nsa_status judge_slot(judge_run *run, int64_t i) {
    static const nsa_id wanted[] = {NSA_OUT, NSA_BLOCK_IDX, NSA_IMPORTANCE};
    const workload *w = run->w;
    nsa_tensors in = window_of(w, tensor_ints(&w->slots)[i], w->T + DECODE_STEPS);
    in.at[NSA_ROWS] = (nsa_tensor){tensor_ints(&w->rows), NSA_I32, 1, {JUDGED_ROWS}};
    in.at[NSA_BLOCK_IDX] = run->lists;
    place_rows(run, i);
    nsa_status status = nsa_load(run->ctx, &in);
    status = status ? status : nsa_forward(run->ctx);
    for (int k = 0; k < 3 && !status; k++)
        status = append(run, i, wanted[k]);
    return status;
}

nsa_status slots_judge(const workload *w, const nsa_stage *stage, int causal,
                       const nsa_tensor *blocks, nsa_tensors *results) {
    const nsa_setup setup = {
        .flags = NSA_WANT_IMPORTANCE, .max_rows = JUDGED_ROWS, .threads = w->threads};
    judge_run run = {.w = w, .causal = causal, .blocks = blocks, .results = results};
    nsa_config cfg = w->judged.cfg;
    nsa_status status = NSA_OK;
    memset(results, 0, sizeof *results);
    if (causal)
        cfg.window = cfg.seq_len;
    if (blocks) {
        run.lists = *blocks;
        run.lists.shape[0] = cfg.seq_len;
        status = tensor_alloc(&run.lists); /* all bits one: -1 */
    }
    status = status ? status : nsa_open(stage, &cfg, &setup, &run.ctx);
    for (int64_t i = 0; i < w->slots.shape[0] && !status; i++)
        status = judge_slot(&run, i);
    nsa_close(run.ctx);
    tensor_free(&run.lists);
    return status;
}
