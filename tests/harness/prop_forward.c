/** @file prop_forward.c
 *  @brief Properties of the forward pass. */
#include "harness/compare.h"
#include "harness/emitted.h"
#include "harness/properties.h"
#include "harness/random.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nsa_id outputs[] = {NSA_OUT, NSA_OUT_CMP, NSA_OUT_SLC, NSA_OUT_WIN};

static double slack_of(const subject *s, const test_case *c) {
    return case_has_ties(c) ? 0 : tolerance_of(s->stage->arith)->slack;
}

nsa_status compare_outputs(const subject *s, const nsa_tensors *a, const nsa_tensors *b) {
    nsa_status status = NSA_OK;
    for (int i = 0; i < 4 && !status; i++)
        status = compare_output(tolerance_of(s->stage->arith), outputs[i], &a->at[outputs[i]],
                                &b->at[outputs[i]]);
    return status;
}

nsa_status note_output(const subject *s, nsa_id id, const nsa_tensors *a, const nsa_tensors *b) {
    return parts_note(part_of(id),
                      compare_output(tolerance_of(s->stage->arith), id, &a->at[id], &b->at[id]));
}

nsa_status compare_block_idx(const subject *s, const test_case *c, const nsa_tensors *in,
                             const nsa_tensor *mine, const nsa_tensors *oracle) {
    int64_t T = c->cfg.seq_len, *position = calloc((size_t)T + 1, sizeof *position);
    if (!position)
        return nsa_fail(NSA_ERR_MEMORY, "no memory for %" PRId64 " positions", T);
    row_positions(in, T, position);
    nsa_status status = compare_selection(&c->cfg, position, mine, &oracle->at[NSA_BLOCK_IDX],
                                          &oracle->at[NSA_IMPORTANCE], slack_of(s, c));
    free(position);
    return status;
}

/* A case with more than n blocks is there to select some and reject others; check that it does. */
static nsa_status check_claims(const test_case *c, const nsa_tensor *idx) {
    const nsa_config *cfg = &c->cfg;
    int64_t n = cfg->slc_count, blocks = (case_max_len(c) + cfg->slc_block - 1) / cfg->slc_block;
    int selects = n > cfg->slc_init + cfg->slc_local && blocks > n;
    int64_t selected = 0, rejected = 0;
    for (int64_t i = 0; selects && i < idx->shape[0] * cfg->kv_heads; i++) {
        const int32_t *list = tensor_ints(idx) + i * n;
        if (list[n - 1] < 0)
            continue;
        selected += n - cfg->slc_init - cfg->slc_local;
        rejected += list[n - 1] + 1 - n;
    }
    if (selects && (!selected || !rejected))
        return nsa_fail(NSA_ERR_CONFIG, "the case must select and reject blocks, and does not");
    return NSA_OK;
}

/* Gates (1,0,0), (0,1,0), (0,0,1): out is that branch's output, and nothing else. */
nsa_status judge_branches(const subject *s, const test_case *c) {
    nsa_tensors in;
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    for (int x = 0; x < 3 && !status; x++) {
        nsa_tensors mine = {0}, oracle = {0};
        for (int64_t i = 0; i < nsa_count(&in.at[NSA_GATE]); i++)
            tensor_set(&in.at[NSA_GATE], i, i % 3 == x);
        status = run_stage(s->stage, &c->cfg, &in, RUN_FORWARD, &mine);
        nsa_tensors with = in;
        memset(&with.at[NSA_BLOCK_IDX], 0, sizeof(nsa_tensor));
        status = status ? status : force_blocks(&c->cfg, &with, &mine.at[NSA_BLOCK_IDX]);
        status = status ? status : run_stage(s->oracle, &c->cfg, &with, RUN_FORWARD, &oracle);
        status = status ? status
                        : compare_output(tolerance_of(s->stage->arith), NSA_OUT, &mine.at[NSA_OUT],
                                         &oracle.at[NSA_OUT_CMP + x]);
        tensor_free(&with.at[NSA_BLOCK_IDX]);
        tensors_free(&mine);
        tensors_free(&oracle);
    }
    tensors_free(&in);
    return status;
}

/* Seeded lists: distinct blocks of [0,b] in any order, -1 anywhere, some rows empty, some without
 * their own block. */
nsa_status draw_forced(const test_case *c, nsa_tensors *in) {
    const nsa_config *cfg = &c->cfg;
    uint64_t state = c->seed + 1;
    nsa_tensors all = *in;
    int64_t T = cfg->seq_len, *position = calloc((size_t)T + 1, sizeof *position);
    nsa_tensor idx = {.dtype = NSA_I32, .ndim = 3, .shape = {T, cfg->kv_heads, cfg->slc_count}};
    nsa_status status = position ? tensor_alloc(&idx) : nsa_fail(NSA_ERR_MEMORY, "no memory");
    memset(&all.at[NSA_ROWS], 0, sizeof(nsa_tensor));
    if (!status)
        row_positions(&all, T, position);
    for (int64_t i = 0; i < T * cfg->kv_heads && !status; i++) {
        int64_t own_block = position[i / cfg->kv_heads] / cfg->slc_block;
        int32_t *list = tensor_ints(&idx) + i * cfg->slc_count;
        int empty = random_next(&state) % 8 == 0;
        for (int64_t p = 0; p < cfg->slc_count && !empty; p++) {
            int32_t block = (int32_t)(random_next(&state) % (uint64_t)(own_block + 2)) - 1;
            int used = 0;
            for (int64_t o = 0; o < p; o++)
                used |= list[o] == block;
            list[p] = used ? -1 : block;
        }
    }
    free(position);
    tensor_free(&in->at[NSA_BLOCK_IDX]);
    in->at[NSA_BLOCK_IDX] = idx;
    return status;
}

/* Each output list must be the forced one, sorted, -1 last. */
static nsa_status check_emitted(const test_case *c, const nsa_tensors *in, const nsa_tensor *idx) {
    int64_t n = c->cfg.slc_count, heads = c->cfg.kv_heads;
    const nsa_tensor *rows = &in->at[NSA_ROWS];
    for (int64_t i = 0; i < idx->shape[0] * heads; i++) {
        int64_t t = rows->dtype ? tensor_ints(rows)[i / heads] : i / heads;
        const int32_t *out = tensor_ints(idx) + i * n;
        const int32_t *given = tensor_ints(&in->at[NSA_BLOCK_IDX]) + (t * heads + i % heads) * n;
        int64_t count = 0, found = 0;
        for (int64_t p = 0; p < n; p++) {
            count += given[p] >= 0;
            for (int64_t o = 0; given[p] >= 0 && o < n; o++)
                found += out[o] == given[p];
        }
        int ordered = found == count;
        for (int64_t o = 0; o < n; o++)
            ordered &= o < count ? !o || out[o] > out[o - 1] : out[o] == -1;
        if (!ordered)
            return nsa_fail(NSA_ERR_INPUT,
                            "row %" PRId64 " does not emit its forced blocks in order", i / heads);
    }
    return NSA_OK;
}

/* Compare outputs with the candidate's blocks forced on the oracle, so that a flipped near-tie is
 * no error. An illegal list cannot be forced; then only the branches that use no list are
 * judged. */
static nsa_status note_outputs(const subject *s, const test_case *c, nsa_tensors *in,
                               const nsa_tensors *mine, const nsa_tensors *oracle) {
    nsa_tensors forced = {0};
    nsa_status status = force_blocks(&c->cfg, in, &mine->at[NSA_BLOCK_IDX]);
    if (status)
        return status;
    status = run_stage(s->oracle, &c->cfg, in, RUN_FORWARD, &forced);
    if (status) { /* noted first: the next check overwrites the error */
        parts_note(PART_SLC, status);
        parts_note(PART_GATE, status);
    } else {
        note_output(s, NSA_OUT_SLC, mine, &forced);
        note_output(s, NSA_OUT, mine, &forced);
    }
    note_output(s, NSA_OUT_CMP, mine, oracle);
    note_output(s, NSA_OUT_WIN, mine, oracle);
    tensors_free(&forced);
    return NSA_OK;
}

nsa_status judge_forward(const subject *s, const test_case *c) {
    nsa_tensors in, mine = {0}, oracle = {0};
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_FORWARD, &mine);
    status = status ? status : run_stage(s->oracle, &c->cfg, &in, RUN_FORWARD, &oracle);
    status = status ? status : use_emitted_keys(s, &c->cfg, &in, &mine, &oracle);
    status = status ? status : check_claims(c, &oracle.at[NSA_BLOCK_IDX]);
    for (int id = NSA_IMPORTANCE; id <= NSA_V_PHI && !status; id++)
        note_output(s, (nsa_id)id, &mine, &oracle);
    if (!status)
        parts_note(PART_SELECT,
                   in.at[NSA_BLOCK_IDX].dtype
                       ? check_emitted(c, &in, &mine.at[NSA_BLOCK_IDX])
                       : compare_block_idx(s, c, &in, &mine.at[NSA_BLOCK_IDX], &oracle));
    status = status ? status : note_outputs(s, c, &in, &mine, &oracle);
    tensors_free(&in);
    tensors_free(&mine);
    tensors_free(&oracle);
    return status;
}

nsa_status judge_forced(const subject *s, const test_case *c) {
    nsa_tensors in, mine = {0}, oracle = {0};
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    status = status ? status : draw_forced(c, &in);
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_BACKWARD, &mine);
    status = status ? status : run_stage(s->oracle, &c->cfg, &in, RUN_BACKWARD, &oracle);
    status = status ? status : use_emitted_keys(s, &c->cfg, &in, &mine, &oracle);
    if (!status)
        parts_note(PART_SELECT, check_emitted(c, &in, &mine.at[NSA_BLOCK_IDX]));
    for (int id = NSA_OUT; id <= NSA_IMPORTANCE && !status; id++)
        note_output(s, (nsa_id)id, &mine, &oracle);
    const gradient_units units = units_for(s, c, &in);
    status = status ? status : note_gradients(s, &units, &mine, &oracle);
    tensors_free(&in);
    tensors_free(&mine);
    tensors_free(&oracle);
    return status;
}

/* A stage's plain causal attention, if it has one, must be the oracle's. */
static nsa_status check_causal(const subject *s, const test_case *c, const nsa_tensors *in,
                               int pair, const nsa_tensor *dense) {
    nsa_tensor mine = {0};
    nsa_status status = run_causal(s->stage, &c->cfg, in, pair, &mine);
    status = status ? status
                    : compare_output(tolerance_of(s->stage->arith), NSA_OUT_CAUSAL, &mine, dense);
    tensor_free(&mine);
    return status;
}

void limits_of(const test_case *c, int *is_dense) {
    const nsa_config *cfg = &c->cfg;
    const int64_t max_len = case_max_len(c);
    is_dense[0] = cfg->cmp_block == 1 && cfg->slc_block == 1 && cfg->phi == NSA_PHI_MEAN;
    is_dense[1] = max_len <= cfg->slc_count * cfg->slc_block;
    is_dense[2] = cfg->window >= max_len;
}

/* A branch that sees every key is dense causal attention. */
nsa_status judge_limits(const subject *s, const test_case *c) {
    const nsa_config *cfg = &c->cfg;
    int is_dense[3];
    limits_of(c, is_dense);
    nsa_tensors in, mine = {0};
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    tensor_free(&in.at[NSA_BLOCK_IDX]);
    status = status ? status : run_stage(s->stage, cfg, &in, RUN_FORWARD, &mine);
    for (int x = 0; x < 3 && !status; x++) {
        nsa_tensor dense = {0};
        status = run_causal(s->oracle, cfg, &in, x, &dense);
        if (!status && s->stage->causal)
            parts_note(PART_CAUSAL, check_causal(s, c, &in, x, &dense));
        if (!status && is_dense[x])
            parts_note((stage_part)(PART_CMP + x),
                       compare_output(tolerance_of(s->stage->arith), NSA_OUT_CMP + (nsa_id)x,
                                      &mine.at[NSA_OUT_CMP + x], &dense));
        tensor_free(&dense);
    }
    tensors_free(&in);
    tensors_free(&mine);
    return status;
}

/* What to expect of a bfloat16 stage in place of the files, which hold the results of inputs as
 * they are: it rounds its inputs, and the specification compares it with stage 00 on the same,
 * already rounded inputs. Of the files it has the lists of blocks, in `in`. (Stage 00 itself must
 * give all of the files' results.) */
static nsa_status expect_rounded(const subject *s, const test_case *c, const nsa_tensors *in,
                                 const nsa_tensors *mine, nsa_tensors *expect) {
    tensors_free(expect);
    const nsa_status status = run_stage(s->oracle, &c->cfg, in, RUN_BACKWARD, expect);
    return status ? status : use_emitted_keys(s, &c->cfg, in, mine, expect);
}

/* Compare with an independent program's results, for every result in the folder. */
nsa_status judge_vector(const subject *s, const test_case *c) {
    const int rounds = s->stage->arith == NSA_BFLOAT16;
    nsa_tensors in = {0}, mine = {0}, expect;
    nsa_status status = case_expectations(c, &expect);
    status = status ? status : case_inputs(c, s->stage->arith, &in);
    if (!status && rounds)
        status = force_blocks(&c->cfg, &in, &expect.at[NSA_BLOCK_IDX]);
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_BACKWARD, &mine);
    if (!status && rounds)
        status = expect_rounded(s, c, &in, &mine, &expect);
    if (!status)
        parts_note(PART_SELECT,
                   in.at[NSA_BLOCK_IDX].dtype
                       ? check_emitted(c, &in, &mine.at[NSA_BLOCK_IDX])
                       : compare_block_idx(s, c, &in, &mine.at[NSA_BLOCK_IDX], &expect));
    const gradient_units units = units_for(s, c, &in);
    for (int id = NSA_OUT; id <= NSA_GRAD_LAST && !status; id++) {
        if (id == NSA_OUT_CAUSAL || !nsa_has(&c->cfg, (nsa_id)id))
            continue;
        if (!expect.at[id].dtype)
            status = nsa_fail(NSA_ERR_IO, "the vector expects no %s", nsa_name((nsa_id)id));
        else if (id < NSA_GRAD_FIRST)
            note_output(s, (nsa_id)id, &mine, &expect);
        else
            note_gradient(s, (nsa_id)id, &units, &mine, &expect);
    }
    tensors_free(&in);
    tensors_free(&mine);
    tensors_free(&expect);
    return status;
}

/* Gather the listed rows from a result of all T rows. */
static nsa_status gather_rows(nsa_tensor *gathered, const nsa_tensor *whole,
                              const nsa_tensor *rows) {
    size_t bytes = (size_t)tensor_row(whole) * nsa_dtype_size(whole->dtype);
    *gathered = *whole;
    gathered->shape[0] = rows->shape[0];
    nsa_status status = tensor_alloc(gathered);
    for (int64_t r = 0; r < rows->shape[0] && !status; r++)
        memcpy((char *)gathered->data + (size_t)r * bytes,
               (char *)whole->data + (size_t)tensor_ints(rows)[r] * bytes, bytes);
    return status;
}

/* Overwrite dout of the rows that are not listed: with zero for the run over all rows, with NaN for
 * the run over the list, which must not read them. */
static void overwrite_unlisted(nsa_tensor *dout, const nsa_tensor *rows, double value) {
    for (int64_t i = 0, r = 0; i < nsa_count(dout); i++) {
        int64_t t = i / tensor_row(dout);
        while (r < rows->shape[0] - 1 && tensor_ints(rows)[r] < t)
            r++;
        if (tensor_ints(rows)[r] != t)
            tensor_set(dout, i, value);
    }
}

/* Listed rows alone give the rows of the whole; with dout zero elsewhere, the gradients too. */
nsa_status judge_rows(const subject *s, const test_case *c) {
    const tolerance *tol = tolerance_of(s->stage->arith);
    test_case sampled = *c;
    sampled.rows = c->cfg.seq_len < 7 ? 1 : c->cfg.seq_len / 3;
    nsa_tensors in, all = {0}, mine = {0}, oracle = {0};
    nsa_status status = case_inputs(&sampled, s->stage->arith, &in);
    const nsa_tensor *rows = &in.at[NSA_ROWS];
    status = status ? status : tensors_copy(&all, &in);
    if (!status) {
        overwrite_unlisted(&all.at[NSA_DOUT], rows, 0);
        overwrite_unlisted(&in.at[NSA_DOUT], rows, NAN);
    }
    tensor_free(&all.at[NSA_ROWS]);
    status = status ? status : run_stage(s->oracle, &c->cfg, &all, RUN_BACKWARD, &oracle);
    tensor_free(&in.at[NSA_BLOCK_IDX]);
    tensor_free(&all.at[NSA_BLOCK_IDX]);
    if (!status)
        status = tensor_copy(&in.at[NSA_BLOCK_IDX], &oracle.at[NSA_BLOCK_IDX]);
    if (!status)
        status = tensor_copy(&all.at[NSA_BLOCK_IDX], &oracle.at[NSA_BLOCK_IDX]);
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_BACKWARD, &mine);
    status = status ? status : use_emitted_keys(s, &c->cfg, &all, &mine, &oracle);
    const gradient_units units = units_for(s, c, &all);
    for (int id = NSA_BLOCK_IDX; id <= NSA_GRAD_LAST && !status; id++) {
        nsa_tensor gathered, *whole = &oracle.at[id];
        if (!whole->dtype || (id >= NSA_GRAD_FIRST && !s->stage->backward))
            continue;
        int by_row = id <= NSA_IMPORTANCE || id == NSA_DQ || id == NSA_DGATE;
        status = by_row ? gather_rows(&gathered, whole, rows) : tensor_copy(&gathered, whole);
        if (!status && id >= NSA_GRAD_FIRST)
            status = compare_gradient(tol, (nsa_id)id, &mine.at[id], &gathered, &units);
        else if (!status)
            status = compare_output(tol, (nsa_id)id, &mine.at[id], &gathered);
        tensor_free(&gathered);
    }
    tensors_free(&in);
    tensors_free(&all);
    tensors_free(&mine);
    tensors_free(&oracle);
    return status;
}
