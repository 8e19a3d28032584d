/** @file prop_decode.c
 *  @brief Properties: decode gives the rows of the forward; a query reads the right number of
 * tokens. */
#include "common/counts.h"
#include "common/pool.h"
#include "harness/compare.h"
#include "harness/emitted.h"
#include "harness/properties.h"
#include "harness/tensor.h"
#include "io/decode_case.h"

#include <inttypes.h>
#include <string.h>

/* A config with capacity for the prefill's tokens in a load and the longest sequence in a slot, and
 * no more. */
static void tight_config(const nsa_tensors *in, int64_t prefix, nsa_config *cfg) {
    const nsa_tensor *cu = &in->at[NSA_CU_SEQLENS];
    const int32_t one[] = {0, (int32_t)in->at[NSA_Q].shape[0]};
    const int32_t *seq = cu->dtype ? tensor_ints(cu) : one;
    cfg->seq_len = cfg->max_seq_len = 0;
    for (int64_t b = 0; b < (cu->dtype ? cu->shape[0] - 1 : 1); b++) {
        int64_t len = seq[b + 1] - seq[b];
        cfg->seq_len += len < prefix ? len : prefix;
        cfg->max_seq_len = len > cfg->max_seq_len ? len : cfg->max_seq_len;
    }
    cfg->seq_len += cfg->seq_len == 0;
}

nsa_status run_decode(const nsa_stage *stage, const nsa_config *cfg, const nsa_tensors *in,
                      int64_t prefix, int flags, nsa_tensors *results) {
    /* Importance is a result of a forward, not of a step. Ask for it in some runs all the same. */
    nsa_setup setup = {.flags = NSA_DECODE | NSA_WANT_BRANCHES | NSA_DEBUG_MEMORY |
                                (prefix % 2 ? NSA_WANT_IMPORTANCE : 0u),
                       .threads = flags / RUN_THREADS};
    const int gaps =
        DECODE_SIT_OUT | DECODE_TIGHT | (flags & RUN_ONE_BY_ONE ? DECODE_ONE_BY_ONE : 0);
    nsa_config tight = *cfg;
    nsa_tensors all = {0}, others = {0};
    nsa_context *ctx = NULL;
    decode_counts counts;
    progress quiet = {.who = ""};
    memset(results, 0, sizeof *results);
    tight_config(in, prefix, &tight);
    nsa_status status = nsa_open(stage, &tight, &setup, &ctx);
    if (!status && (flags & RUN_TWICE)) {
        status = other_values(in, 0, &others);
        status = status ? status : decode_case(ctx, &others, prefix, gaps, &quiet, &all, &counts);
        decode_free(&all);
        tensors_free(&others);
    }
    status = status ? status : decode_case(ctx, in, prefix, gaps, &quiet, &all, &counts);
    status = status ? status : nsa_check_memory(ctx);
    status = status ? status : tensors_copy(results, &all);
    if (!status && counts.prefilled + counts.decoded != in->at[NSA_Q].shape[0])
        status = nsa_fail(NSA_ERR_INPUT, "decoding covered %" PRId64 " tokens",
                          counts.prefilled + counts.decoded);
    nsa_close(ctx);
    decode_free(&all);
    return status;
}

/* Decode after a prefill of `prefix` tokens against the oracle's forward over the whole
 * sequences. */
static nsa_status decode_from(const subject *s, const test_case *c, const nsa_tensors *in,
                              const nsa_tensors *oracle, int64_t prefix, int flags) {
    nsa_tensors mine = {0}, forced = {0}, with = {0};
    nsa_status status = run_decode(s->stage, &c->cfg, in, prefix, flags, &mine);
    if (!status && !in->at[NSA_BLOCK_IDX].dtype)
        status = compare_block_idx(s, c, in, &mine.at[NSA_BLOCK_IDX], oracle);
    status = status ? status : tensors_copy(&with, in);
    if (!status && !in->at[NSA_BLOCK_IDX].dtype) /* else the given lists are used */
        status = force_blocks(&c->cfg, &with, &mine.at[NSA_BLOCK_IDX]);
    status = status ? status : run_stage(s->oracle, &c->cfg, &with, RUN_FORWARD, &forced);
    status = status ? status : compare_outputs(s, &mine, &forced);
    if (!status && !tensor_same(&mine.at[NSA_BLOCK_IDX], &forced.at[NSA_BLOCK_IDX]))
        status = nsa_fail(NSA_ERR_INPUT, "decode does not emit its blocks, or not in order");
    tensors_free(&mine);
    tensors_free(&forced);
    tensors_free(&with);
    if (!status)
        return NSA_OK;
    char why[400];
    memcpy(why, nsa_last_error(), sizeof why);
    why[sizeof why - 1] = 0;
    return nsa_fail(status, "after a prefill of %" PRId64 " tokens: %s", prefix, why);
}

/* The oracle's forward. The importance that judges a bfloat16 stage's steps is made of the k_phi
 * that its forward emits: a step compresses equal tokens to equal bits (property equal). */
static nsa_status run_reference(const subject *s, const test_case *c, const nsa_tensors *in,
                                nsa_tensors *oracle) {
    nsa_tensors mine = {0};
    nsa_status status = NSA_OK;
    if (s->stage->arith == NSA_BFLOAT16)
        status = run_stage(s->stage, &c->cfg, in, RUN_FORWARD, &mine);
    status = status ? status : run_stage(s->oracle, &c->cfg, in, RUN_FORWARD, oracle);
    status = status ? status : use_emitted_keys(s, &c->cfg, in, &mine, oracle);
    tensors_free(&mine);
    return status;
}

/* A stage without decode prefills everything. With decode the prefill has no tokens, ends just
 * before or after the first compressed token, in the middle (there each sequence is prefilled
 * alone, into its slot), or before the last token; then forced lists, in slots that held other
 * sequences. Every boundary is crossed by some decode step. */
nsa_status judge_decode(const subject *s, const test_case *c) {
    const int64_t max_len = case_max_len(c);
    const int64_t prefixes[] = {0, c->cfg.cmp_block - 1, c->cfg.cmp_block + c->cfg.cmp_stride,
                                max_len / 2, max_len - 1};
    nsa_tensors in, oracle = {0};
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    tensor_free(&in.at[NSA_DOUT]);
    status = status ? status : run_reference(s, c, &in, &oracle);
    if (!status && !s->stage->decode)
        status = decode_from(s, c, &in, &oracle, max_len, 0);
    for (int i = 0; i < 5 && s->stage->decode && !status; i++)
        status = decode_from(s, c, &in, &oracle, prefixes[i], i == 3 ? RUN_ONE_BY_ONE : 0);
    status = status ? status : draw_forced(c, &in);
    status = status ? status
                    : decode_from(s, c, &in, &oracle, s->stage->decode ? max_len / 3 : max_len,
                                  RUN_TWICE);
    tensors_free(&in);
    tensors_free(&oracle);
    return status;
}

/* ------------------------------------------------------------------- reads */

/* Count the tokens whose value, changed one at a time, changes the last query's row of one branch.
 * That is so exactly if the query reads the token (its probability is not 0). */
static nsa_status count_reads(const subject *s, const test_case *c, const nsa_tensors *in,
                              const nsa_tensors *clean, int x, int64_t *count) {
    nsa_status status = NSA_OK;
    nsa_tensor *v = (nsa_tensor *)&in->at[NSA_V_CMP + 2 * x];
    *count = 0;
    for (int64_t t = 0; t < c->cfg.seq_len && !status; t++) {
        nsa_tensors after = {0};
        const double original = tensor_get(v, t * tensor_row(v));
        tensor_set(v, t * tensor_row(v), original + 64);
        status = run_stage(s->stage, &c->cfg, in, RUN_FORWARD, &after);
        tensor_set(v, t * tensor_row(v), original);
        *count +=
            !status && !tensor_same_row(&clean->at[NSA_OUT_CMP + x], &after.at[NSA_OUT_CMP + x], 0);
        tensors_free(&after);
    }
    return status;
}

/* The paper's Table 4, whose N is rounded to T/16; the exact N is one less where T is a multiple of
 * d. */
static nsa_status check_table4(void) {
    static const int64_t T[] = {8192, 16384, 32768, 65536}, rounded[] = {2048, 2560, 3584, 5632};
    nsa_config cfg = nsa_config_defaults();
    for (int i = 0; i < 4; i++) {
        nsa_reads reads = nsa_reads_at(&cfg, T[i] - 1);
        int64_t sum = reads.cmp + reads.slc + reads.win;
        if (reads.cmp != T[i] / 16 - 1 || sum != rounded[i] - 1 || reads.dense != T[i])
            return nsa_fail(NSA_ERR_STATE,
                            "%" PRId64 " tokens are read at T = %" PRId64
                            ", the paper says %" PRId64 " with N rounded up by one",
                            sum, T[i], rounded[i]);
    }
    return NSA_OK;
}

/* Tokens read per query: N visible + those of the selected blocks + the window, exactly. They are
 * counted for the last row by changing values. Also checks the paper's Table 4. */
nsa_status judge_reads(const subject *s, const test_case *c) {
    nsa_tensors in, clean = {0};
    const int64_t last = c->cfg.seq_len - 1;
    const nsa_reads reads = nsa_reads_at(&c->cfg, last);
    const int64_t expected[] = {reads.cmp, reads.slc, reads.win};
    nsa_status status = case_inputs(c, s->stage->arith, &in);
    status = status ? status : check_table4();
    nsa_tensor *rows = &in.at[NSA_ROWS];
    *rows = (nsa_tensor){.dtype = NSA_I32, .ndim = 1, .shape = {1}};
    status = status ? status : tensor_alloc(rows);
    if (!status)
        tensor_ints(rows)[0] = (int32_t)last;
    status = status ? status : run_stage(s->stage, &c->cfg, &in, RUN_FORWARD, &clean);
    for (int x = 0; x < 3 && !status; x++) {
        int64_t count, N = reads.cmp;
        status = count_reads(s, c, &in, &clean, x, &count);
        /* The N compressed tokens depend on (N - 1) d + l tokens of the sequence. */
        int64_t expected_count = x ? expected[x] : (N - 1) * c->cfg.cmp_stride + c->cfg.cmp_block;
        if (!status)
            parts_note((stage_part)(PART_CMP + x),
                       count == expected_count
                           ? NSA_OK
                           : nsa_fail(NSA_ERR_INPUT,
                                      "%s of row %" PRId64 " depends on %" PRId64
                                      " tokens, expected %" PRId64,
                                      nsa_name(NSA_OUT_CMP + (nsa_id)x), last, count,
                                      expected_count));
    }
    tensors_free(&in);
    tensors_free(&clean);
    return status;
}
