/** @file prop_isolation.c
 *  @brief Properties: later tokens, other sequences, NaN and earlier calls must not matter. */
#include "common/counts.h"
#include "harness/compare.h"
#include "harness/properties.h"
#include "harness/tensor.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nsa_id by_row[] = {NSA_OUT,     NSA_OUT_CMP,    NSA_OUT_SLC,
                                NSA_OUT_WIN, NSA_IMPORTANCE, NSA_BLOCK_IDX};

/* Set row t of every per-token input from `first` to `last` to `value`, or change it if that is
 * 0. */
static void overwrite_row(nsa_tensors *in, nsa_id first, nsa_id last, int64_t t, double value) {
    for (int id = first; id <= (int)last; id++) {
        nsa_tensor *x = &in->at[id];
        int64_t row = tensor_row(x);
        for (int64_t i = t * row; i < (t + 1) * row; i++)
            tensor_set(x, i, value != 0 ? value : id == NSA_GATE ? 0.5 : 2 - tensor_get(x, i));
    }
}

static nsa_status same_row(const nsa_tensors *a, const nsa_tensors *b, nsa_id id, int64_t r,
                           const char *what, int64_t t) {
    if (tensor_same_row(&a->at[id], &b->at[id], r))
        return NSA_OK;
    return nsa_fail(NSA_ERR_INPUT, "%s of row %" PRId64 " changed with %s %" PRId64, nsa_name(id),
                    r, what, t);
}

/* Tokens to perturb: at the edges of blocks, strides and the window, and at both ends. */
static int64_t edge_tokens(const test_case *c, int64_t *tokens) {
    const nsa_config *cfg = &c->cfg;
    int64_t T = cfg->seq_len, count = 0;
    const int64_t all[] = {0,
                           cfg->cmp_block - 1,
                           cfg->cmp_block,
                           cfg->slc_block - 1,
                           cfg->slc_block,
                           2 * cfg->slc_block + cfg->cmp_stride,
                           cfg->window,
                           T / 2,
                           T - 2,
                           T - 1};
    for (int i = 0; i < 10; i++) {
        int known = all[i] < 0 || all[i] >= T;
        for (int64_t k = 0; k < count; k++)
            known |= tokens[k] == all[i];
        if (!known)
            tokens[count++] = all[i];
    }
    return count;
}

/* Perturbing token s changes no row t < s, bitwise. */
nsa_status judge_causality(const subject *s, const test_case *c) {
    nsa_tensors in, before = {0};
    int64_t tokens[10], count = edge_tokens(c, tokens);
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_FORWARD, &before);
    for (int64_t k = 0; k < count && !status; k++) {
        nsa_tensors moved, after = {0};
        status = tensors_copy(&moved, &in);
        if (!status)
            overwrite_row(&moved, NSA_Q, NSA_GATE, tokens[k], 0);
        status = status ? status : run_stage(s->stage, &c->cfg, &moved, RUN_FORWARD, &after);
        for (int64_t r = 0; r < tokens[k] && !status; r++) {
            for (int i = 0; i < 6 && !status; i++)
                status = same_row(&before, &after, by_row[i], r, "later token", tokens[k]);
        }
        if (!status && tensor_same_row(&before.at[NSA_OUT], &after.at[NSA_OUT], tokens[k]))
            status = nsa_fail(NSA_ERR_INPUT, "row %" PRId64 " did not change with its own token",
                              tokens[k]);
        tensors_free(&moved);
        tensors_free(&after);
    }
    tensors_free(&in);
    tensors_free(&before);
    return status;
}

/* One sequence of a pack on its own: its rows of every per-token input, everything else the
 * same. */
static nsa_status extract_sequence(const test_case *c, const nsa_tensors *in, int b,
                                   nsa_config *cfg, nsa_tensors *alone) {
    int64_t first = 0, len = case_length(c, b);
    for (int i = 0; i < b; i++)
        first += case_length(c, i);
    *cfg = c->cfg;
    cfg->seq_len = cfg->max_seq_len = len;
    cfg->max_seqs = 1;
    nsa_status status = tensors_copy(alone, in);
    tensor_free(&alone->at[NSA_CU_SEQLENS]);
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        nsa_tensor *t = &alone->at[id];
        if (!t->dtype || (id > NSA_DOUT && id != NSA_BLOCK_IDX))
            continue;
        size_t row = (size_t)tensor_row(t) * nsa_dtype_size(t->dtype);
        tensor_free(t);
        *t = in->at[id];
        t->shape[0] = len;
        status = tensor_alloc(t);
        if (!status)
            memcpy(t->data, (const char *)in->at[id].data + (size_t)first * row, (size_t)len * row);
    }
    return status;
}

/* Rows of results [first, first+len) of a pack against the sequence alone. Importance rows are as
 * wide as the pack's longest sequence, so they are left to the forward property. */
static nsa_status compare_alone(const subject *s, const nsa_tensors *pack, const nsa_tensors *alone,
                                int64_t first, int64_t len, const gradient_units *units) {
    static const nsa_id ids[] = {NSA_BLOCK_IDX, NSA_OUT,    NSA_OUT_CMP, NSA_OUT_SLC, NSA_OUT_WIN,
                                 NSA_DQ,        NSA_DGATE,  NSA_DK_CMP,  NSA_DV_CMP,  NSA_DK_SLC,
                                 NSA_DV_SLC,    NSA_DK_WIN, NSA_DV_WIN};
    nsa_status status = NSA_OK;
    for (size_t i = 0; i < sizeof ids / sizeof ids[0] && !status; i++) {
        nsa_tensor part = pack->at[ids[i]];
        part.data =
            (char *)part.data + (size_t)(first * tensor_row(&part)) * nsa_dtype_size(part.dtype);
        part.shape[0] = len;
        const tolerance *tol = tolerance_of(s->stage->arith);
        if (ids[i] >= NSA_GRAD_FIRST && !s->stage->backward)
            break;
        status = ids[i] >= NSA_GRAD_FIRST
                     ? compare_gradient(tol, ids[i], &part, &alone->at[ids[i]], units)
                     : compare_output(tol, ids[i], &part, &alone->at[ids[i]]);
    }
    return status;
}

/* With NaN in every input of sequence b, all rows of the others are bitwise unchanged. */
static nsa_status poison_sequence(const subject *s, const test_case *c, const nsa_tensors *in,
                                  const nsa_tensors *clean, int b, int64_t first) {
    nsa_tensors poisoned, after = {0};
    int64_t end = first + case_length(c, b);
    nsa_status status = tensors_copy(&poisoned, in);
    for (int64_t t = first; t < end && !status; t++) {
        overwrite_row(&poisoned, NSA_Q, NSA_V_WIN, t, NAN);
        overwrite_row(&poisoned, NSA_DOUT, NSA_DOUT, t, NAN);
    }
    status = status ? status : run_stage(s->stage, &c->cfg, &poisoned, RUN_BACKWARD, &after);
    for (int64_t r = 0; r < c->cfg.seq_len && !status; r++) {
        if (r >= first && r < end)
            continue;
        for (int i = 0; i < 6 && !status; i++)
            status = same_row(clean, &after, by_row[i], r, "NaN in sequence", b);
        for (int id = NSA_DQ; id <= NSA_DGATE && s->stage->backward && !status; id++)
            status = same_row(clean, &after, (nsa_id)id, r, "NaN in sequence", b);
    }
    tensors_free(&poisoned);
    tensors_free(&after);
    return status;
}

/* Packed sequences never see each other. */
nsa_status judge_packing(const subject *s, const test_case *c) {
    nsa_tensors in, pack = {0};
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_BACKWARD, &pack);
    int64_t first = 0;
    for (int b = 0; b < case_sequences(c) && !status; first += case_length(c, b++)) {
        nsa_tensors alone = {0}, single = {0};
        nsa_config cfg;
        if (!case_length(c, b))
            continue;
        status = extract_sequence(c, &in, b, &cfg, &alone);
        status = status ? status : run_stage(s->stage, &cfg, &alone, RUN_BACKWARD, &single);
        const gradient_units units = units_of(&cfg, &alone);
        status =
            status ? status : compare_alone(s, &pack, &single, first, case_length(c, b), &units);
        status = status ? status : poison_sequence(s, c, &in, &pack, b, first);
        tensors_free(&alone);
        tensors_free(&single);
    }
    tensors_free(&in);
    tensors_free(&pack);
    return status;
}

/* May NaN at position `pos`, of pair x, reach the result `id` of the row at position t? */
static int may_reach(const nsa_config *cfg, int x, int64_t pos, int64_t t, nsa_id id,
                     const int32_t *idx, int forced, int64_t len) {
    int64_t block = pos / cfg->slc_block, low = t - cfg->window + 1;
    int after = block <= t / cfg->slc_block, selected = 0;
    for (int64_t i = 0; i < cfg->kv_heads * cfg->slc_count; i++)
        selected |= idx[i] == block;
    int is_sum = id == NSA_OUT || id == NSA_DQ,
        is_selection = id == NSA_OUT_SLC || id == NSA_BLOCK_IDX;
    if (x == 0) { /* the tail after the last block is never compressed; NaN importance changes the
                     selection */
        int64_t N = nsa_cmp_tokens(cfg, len), end = (N - 1) * cfg->cmp_stride + cfg->cmp_block;
        return N && pos < end && after && id != NSA_OUT_WIN && !(forced && is_selection);
    }
    if (x == 1)
        return after && selected && (is_sum || id == NSA_OUT_SLC);
    return after && block >= (low < 0 ? 0 : low) / cfg->slc_block && (is_sum || id == NSA_OUT_WIN);
}

/* NaN (or Inf) in key and value of one pair at one token, forward and backward. */
static nsa_status poison_token(const subject *s, const test_case *c, const nsa_tensors *in,
                               const nsa_tensors *clean, int x, int64_t token, double value,
                               int forced) {
    static const nsa_id ids[] = {NSA_OUT,        NSA_OUT_CMP,   NSA_OUT_SLC, NSA_OUT_WIN,
                                 NSA_IMPORTANCE, NSA_BLOCK_IDX, NSA_DQ};
    static const char *const what[] = {"NaN or Inf of the compressed pair at token",
                                       "NaN or Inf of the selected pair at token",
                                       "NaN or Inf of the window pair at token"};
    nsa_tensors poisoned, after = {0};
    int64_t idx_stride = c->cfg.kv_heads * c->cfg.slc_count, first = 0;
    int b = 0;
    for (; token >= first + case_length(c, b); b++)
        first += case_length(c, b);
    nsa_status status = tensors_copy(&poisoned, in);
    if (!status)
        overwrite_row(&poisoned, NSA_K_CMP + 2 * (unsigned)x, NSA_V_CMP + 2 * (unsigned)x, token,
                      value);
    status = status ? status : run_stage(s->stage, &c->cfg, &poisoned, RUN_BACKWARD, &after);
    for (int64_t r = 0; r < c->cfg.seq_len && !status; r++) {
        int same_sequence = r >= first && r < first + case_length(c, b);
        const int32_t *idx = tensor_ints(&clean->at[NSA_BLOCK_IDX]) + r * idx_stride;
        for (int i = 0; i < (s->stage->backward ? 7 : 6) && !status; i++) { /* dq is the last */
            if (!same_sequence || !may_reach(&c->cfg, x, token - first, r - first, ids[i], idx,
                                             forced, case_length(c, b)))
                status = same_row(clean, &after, ids[i], r, what[x], token);
        }
    }
    tensors_free(&poisoned);
    tensors_free(&after);
    return status;
}

/* NaN and Inf reach only rows whose branch may read the token's block. The selected pair is tried
 * with forced lists, some without the own block; the other pairs with selected lists. At one token
 * every pair is tried both ways. */
nsa_status judge_nan(const subject *s, const test_case *c) {
    nsa_tensors in, clean = {0};
    int64_t tokens[10], count = edge_tokens(c, tokens);
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    for (int forced = 0; forced < 2 && !status; forced++) {
        if (forced)
            status = draw_forced(c, &in);
        status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_BACKWARD, &clean);
        status = status ? status : all_finite(&clean);
        for (int64_t k = 0; k < count && !status; k++) {
            for (int x = 0; x < 3 && !status; x++) {
                if (forced == (x == 1) || k == count / 2)
                    status = poison_token(s, c, &in, &clean, x, tokens[k],
                                          (k + x) % 2 ? INFINITY : NAN, forced);
            }
        }
        tensors_free(&clean);
    }
    tensors_free(&in);
    return status;
}

/* If all importances of a row are NaN, its list must be the forced blocks and the lowest others. */
static nsa_status check_nan_list(const nsa_config *cfg, const int32_t *list, int64_t own_block,
                                 int64_t r) {
    int64_t n = cfg->slc_count, n_free = n < own_block + 1 ? n : own_block + 1, pos = 0;
    for (int64_t j = 0; j <= own_block; j++)
        n_free -= j < cfg->slc_init || j > own_block - cfg->slc_local;
    for (int64_t j = 0; j <= own_block; j++) {
        int forced = j < cfg->slc_init || j > own_block - cfg->slc_local;
        if ((forced || n_free-- > 0) && list[pos++] != j)
            return nsa_fail(NSA_ERR_INPUT,
                            "row %" PRId64 " has NaN importance and selected block %d, not %" PRId64
                            ": NaN ranks below numbers, equal ranks by index",
                            r, list[pos - 1], j);
    }
    return NSA_OK;
}

/* A NaN with several mantissa bits set, in float32 too: code that manipulates its bits may turn it
 * into a number. */
static double odd_nan(void) {
    const uint64_t bits = UINT64_C(0x7ff80000a0000000);
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* A NaN score makes a whole row's importance NaN. NaN ties with NaN, so the lowest indices are
 * selected. (A row never has NaN in some blocks only: one NaN makes the whole softmax NaN.) */
nsa_status judge_nan_order(const subject *s, const test_case *c) {
    nsa_tensors in, mine = {0}, oracle = {0};
    int64_t T = c->cfg.seq_len, heads = c->cfg.kv_heads;
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    /* NaN in the last query; and in a key halfway, for the rows after it. */
    if (!status) {
        overwrite_row(&in, NSA_Q, NSA_Q, T - 1, odd_nan());
        overwrite_row(&in, NSA_K_CMP, NSA_K_CMP, T / 2, NAN);
    }
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_FORWARD, &mine);
    status = status ? status : run_stage(s->oracle, &c->cfg, &in, RUN_FORWARD, &oracle);
    const nsa_tensor *importance = &oracle.at[NSA_IMPORTANCE];
    for (int64_t i = 0; i < T * heads && !status; i++) {
        int64_t own_block = i / heads / c->cfg.slc_block;
        int all_nan = 1;
        for (int64_t j = 0; j < own_block; j++)
            all_nan &= isnan(tensor_get(importance, i * importance->shape[2] + j)) != 0;
        if (all_nan)
            status =
                check_nan_list(&c->cfg, tensor_ints(&mine.at[NSA_BLOCK_IDX]) + i * c->cfg.slc_count,
                               own_block, i / heads);
    }
    tensors_free(&in);
    tensors_free(&mine);
    tensors_free(&oracle);
    return status;
}

/* Run again with other flags: every result must have the same bits. */
static nsa_status run_again(const subject *s, const test_case *c, const nsa_tensors *in, int flags,
                            const nsa_tensors *first_run, const char *when) {
    nsa_tensors again = {0};
    nsa_status status = run_stage(s->stage, &c->cfg, in, RUN_BACKWARD | flags, &again);
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        if (again.at[id].dtype && !tensor_same(&first_run->at[id], &again.at[id]))
            status = nsa_fail(NSA_ERR_INPUT, "%s differs %s", nsa_name((nsa_id)id), when);
    }
    tensors_free(&again);
    return status;
}

/* On a GPU the order of threads differs from run to run, and a race shows only sometimes: 20 runs.
 * NSA_REPEATS sets fewer for sanitizers, which detect races themselves. */
static int repeats_of(const subject *s) {
    const char *device = s->stage->device ? s->stage->device() : NULL;
    const char *given = getenv("NSA_REPEATS");
    const long runs = given ? strtol(given, NULL, 10) : 20;
    return device && strcmp(device, "simulator") != 0 && runs > 2 ? (int)runs - 1 : 1;
}

/* The same values give the same bits: in a new context, in a larger one that ran other values
 * before, with a second context open, without optional results, and with float64 inputs. */
nsa_status judge_repeat(const subject *s, const test_case *c) {
    nsa_tensors in, first_run = {0};
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_BACKWARD, &first_run);
    status = status ? status : all_finite(&first_run);
    for (int i = repeats_of(s); i > 0 && !status; i--)
        status = run_again(s, c, &in, 0, &first_run, "between two runs");
    status =
        status ? status
               : run_again(s, c, &in, RUN_TWICE, &first_run, "after a longer run of other values");
    status = status ? status
                    : run_again(s, c, &in, RUN_TWO_CONTEXTS, &first_run, "beside another context");
    status = status
                 ? status
                 : run_again(s, c, &in, RUN_OUT_ONLY, &first_run, "if nothing more is asked for");
    status = status ? status : tensors_widen(&in);
    status = status ? status : run_again(s, c, &in, 0, &first_run, "if the inputs are float64");
    tensors_free(&in);
    tensors_free(&first_run);
    return status;
}
