/** @file decode_case.c
 *  @brief Prefill and decode a whole case. Each call of the stage, prefill or step, has a list of
 * packed tokens. Its inputs are gathered and its results scattered by that list. */
#include "io/decode_case.h"

#include <stdlib.h>
#include <string.h>

static const nsa_id result_ids[] = {NSA_OUT, NSA_OUT_CMP, NSA_OUT_SLC, NSA_OUT_WIN, NSA_BLOCK_IDX};

enum { RESULTS = sizeof result_ids / sizeof result_ids[0] };

/** State shared by the calls. */
typedef struct decoder {
    nsa_context *ctx;         /**< the open stage */
    const nsa_tensors *in;    /**< the whole case */
    nsa_tensors part;         /**< the inputs of one call: rows of `in`, capacity T */
    nsa_tensors call_results; /**< the results of one call, capacity T */
    nsa_tensors *all;         /**< the results of all tokens */
    int64_t T;                /**< tokens */
    int64_t B;                /**< sequences */
    int32_t default_cu[2];    /**< cu_seqlens of a case that has none */
    const int32_t *cu;        /**< [B+1] where each sequence starts */
    int64_t *token;           /**< [T] the packed tokens of one call */
    int32_t *active;          /**< [T] their slots, in a step */
    int32_t *rows;            /**< [T] the rows of a prefill of one sequence */
    int64_t count;            /**< tokens in the list */
    int32_t *prefix_cu;       /**< [B+1] cu_seqlens of the prefill */
    int64_t *next;            /* [B] the next packed token of each sequence */
} decoder;

/* Bytes of one row of a tensor. */
static size_t row_bytes(const nsa_tensor *t) {
    size_t bytes = nsa_dtype_size(t->dtype);
    for (int i = 1; i < t->ndim; i++)
        bytes *= (size_t)t->shape[i];
    return bytes;
}

/* Allocate memory for `rows` rows. */
static nsa_status alloc_rows(nsa_tensor *t, int64_t rows) {
    t->data = malloc((size_t)rows * row_bytes(t) + 1); /* never 0: NULL means short of memory */
    return t->data ? NSA_OK : nsa_fail(NSA_ERR_MEMORY, "no memory to decode the case");
}

/* 1 for inputs that have one row for each token. */
static int by_token(const nsa_tensors *in, int id) {
    return (id <= NSA_GATE || id == NSA_BLOCK_IDX) && in->at[id].dtype;
}

/* Count, and allocate all memory that does not depend on the type of results. No call has more than
 * T tokens: a step has one for each non-empty sequence. */
static nsa_status prepare(decoder *d) {
    const nsa_tensor *cu = &d->in->at[NSA_CU_SEQLENS];
    d->T = d->in->at[NSA_Q].shape[0];
    d->B = cu->dtype ? cu->shape[0] - 1 : 1;
    d->default_cu[1] = (int32_t)d->T;
    d->cu = cu->dtype ? cu->data : d->default_cu;
    d->token = malloc((size_t)d->T * sizeof *d->token + 1);
    d->active = malloc((size_t)d->T * sizeof *d->active + 1);
    d->rows = malloc((size_t)d->T * sizeof *d->rows + 1);
    d->prefix_cu = malloc((size_t)(d->B + 1) * sizeof *d->prefix_cu);
    d->next = malloc((size_t)(d->B + 1) * sizeof *d->next);
    nsa_status status = d->token && d->active && d->rows && d->prefix_cu && d->next
                            ? NSA_OK
                            : nsa_fail(NSA_ERR_MEMORY, "no memory to decode the case");
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        if (!by_token(d->in, id))
            continue;
        d->part.at[id] = d->in->at[id];
        status = alloc_rows(&d->part.at[id], d->T);
    }
    return status;
}

/* Gather the inputs of the next call: the rows of the listed tokens. */
static void gather(decoder *d) {
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        if (!by_token(d->in, id))
            continue;
        size_t bytes = row_bytes(&d->part.at[id]);
        const char *from = d->in->at[id].data;
        char *to = d->part.at[id].data;
        d->part.at[id].shape[0] = d->count;
        for (int64_t i = 0; i < d->count; i++)
            memcpy(to + (size_t)i * bytes, from + (size_t)d->token[i] * bytes, bytes);
    }
}

/* Scatter the results of the last call to the rows of their tokens. The first call allocates
 * them. */
static nsa_status scatter(decoder *d) {
    nsa_status status = NSA_OK;
    for (int k = 0; k < RESULTS && !status; k++) {
        nsa_tensor *call_results = &d->call_results.at[result_ids[k]],
                   *all = &d->all->at[result_ids[k]];
        status = nsa_result(d->ctx, result_ids[k], call_results);
        if (!status && !all->data) {
            *all = *call_results;
            all->shape[0] = d->T;
            status = alloc_rows(all, d->T);
            status = status ? status : alloc_rows(call_results, d->T);
        }
        status = status ? status : nsa_read(d->ctx, result_ids[k], call_results);
        size_t bytes = row_bytes(call_results);
        for (int64_t i = 0; i < d->count && !status; i++)
            memcpy((char *)all->data + (size_t)d->token[i] * bytes,
                   (char *)call_results->data + (size_t)i * bytes, bytes);
    }
    return status;
}

/* Load and prefill the listed tokens. cu_seqlens, active and rows, where given, are for this call
 * alone. */
static nsa_status prefill_listed(decoder *d) {
    static const nsa_id packing[] = {NSA_CU_SEQLENS, NSA_ROWS, NSA_ACTIVE};
    nsa_tensors *part = &d->part;
    gather(d);
    for (int id = NSA_PHI_FIRST; id <= NSA_PHI_LAST; id++)
        part->at[id] = d->in->at[id];
    nsa_status status = nsa_load(d->ctx, part);
    status = status ? status : nsa_prefill(d->ctx);
    /* Steps use none of these, and the weights belong to the case: do not free them. */
    for (int id = NSA_PHI_FIRST; id <= NSA_PHI_LAST; id++)
        part->at[id] = (nsa_tensor){0};
    for (int i = 0; i < 3; i++)
        part->at[packing[i]] = (nsa_tensor){0};
    return status;
}

/* Prefill the first tokens of sequence b alone, into its slot: first with the even rows of results,
 * then once more with the odd ones. */
static nsa_status prefill_one(decoder *d, int64_t b, int64_t prefix) {
    const int64_t all = d->cu[b + 1] - d->cu[b], len = all < prefix ? all : prefix;
    int32_t slot = (int32_t)b;
    nsa_status status = NSA_OK;
    d->next[b] = d->cu[b] + len;
    for (int64_t first = 0; first < 2 && !status; first++) {
        int64_t R = 0;
        for (d->count = 0; d->count < len; d->count++)
            d->token[d->count] = d->cu[b] + d->count;
        for (int64_t row = first; row < len; row += 2)
            d->rows[R++] = (int32_t)row;
        d->part.at[NSA_ACTIVE] = (nsa_tensor){&slot, NSA_I32, 1, {1}, NSA_HOST};
        d->part.at[NSA_ROWS] = (nsa_tensor){d->rows, NSA_I32, 1, {R}, NSA_HOST};
        status = prefill_listed(d);
        for (d->count = 0; d->count < R; d->count++) /* the results have these rows */
            d->token[d->count] = d->cu[b] + d->rows[d->count];
        status = status ? status : scatter(d);
    }
    return status;
}

/* Load and prefill the first tokens of every sequence. Even without tokens this loads the phi
 * weights and empties the caches. */
static nsa_status prefill(decoder *d, int64_t prefix) {
    d->count = 0;
    for (int64_t b = 0; b < d->B; b++) {
        d->prefix_cu[b] = (int32_t)d->count;
        for (int64_t t = d->cu[b]; t < d->cu[b + 1] && t - d->cu[b] < prefix; t++)
            d->token[d->count++] = t;
        d->next[b] = d->cu[b] + (d->count - d->prefix_cu[b]);
    }
    d->prefix_cu[d->B] = (int32_t)d->count;
    d->part.at[NSA_CU_SEQLENS] = (nsa_tensor){d->prefix_cu, NSA_I32, 1, {d->B + 1}, NSA_HOST};
    nsa_status status = prefill_listed(d);
    return status ? status : scatter(d);
}

/* Decode the listed tokens, one of each sequence that takes part in this step. */
static nsa_status step(decoder *d, int64_t position) {
    gather(d);
    d->part.at[NSA_ACTIVE] = (nsa_tensor){d->active, NSA_I32, 1, {d->count}, NSA_HOST};
    nsa_status status = nsa_load_step(d->ctx, &d->part);
    status = status ? status : nsa_decode(d->ctx);
    d->part.at[NSA_ACTIVE] = (nsa_tensor){0};
    status = status ? status : scatter(d);
    return status ? nsa_fail(status, "decode step %lld: %s", (long long)position, nsa_last_error())
                  : NSA_OK;
}

/* List the tokens of step `s`: one of every sequence that has tokens left; with `sit_out` a third
 * of the sequences skips the step, by turns. Returns how many sequences had tokens left. */
static int64_t list_step(decoder *d, int64_t s, int sit_out) {
    int64_t left = 0;
    d->count = 0;
    for (int64_t b = 0; b < d->B; b++) {
        if (d->next[b] == d->cu[b + 1])
            continue;
        left++;
        if (sit_out && (s + b) % 3 == 0)
            continue;
        d->token[d->count] = d->next[b]++;
        d->active[d->count++] = (int32_t)b;
    }
    return left;
}

nsa_status decode_case(nsa_context *ctx, const nsa_tensors *in, int64_t prefix, int flags,
                       progress *p, nsa_tensors *results, decode_counts *counts) {
    decoder d = {.ctx = ctx, .in = in, .all = results};
    nsa_tensors whole = *in;
    memset(results, 0, sizeof *results);
    memset(counts, 0, sizeof *counts);
    /* Loading everything once checks every shape and index before rows are gathered. */
    whole.at[NSA_DOUT] = (nsa_tensor){0};
    nsa_status status = flags & DECODE_TIGHT ? NSA_OK : nsa_load(ctx, &whole);
    status = status ? status : prepare(&d);
    progress_phase(p, "prefill");
    if (!(flags & DECODE_ONE_BY_ONE))
        status = status ? status : prefill(&d, prefix);
    for (int64_t b = d.B - 1; b >= 0 && !status && (flags & DECODE_ONE_BY_ONE); b--)
        status = prefill_one(&d, b, prefix);
    for (int64_t b = 0; b < d.B && !status; b++)
        counts->prefilled += d.next[b] - d.cu[b];
    for (int64_t s = 0; !status && list_step(&d, s, flags & DECODE_SIT_OUT); s++) {
        if (!d.count)
            continue; /* every remaining sequence skips this step */
        status = step(&d, s);
        counts->decoded += d.count;
        counts->steps++;
        progress_count(p, "decoded tokens", counts->prefilled + counts->decoded, d.T);
    }
    decode_free(&d.part);
    decode_free(&d.call_results);
    free(d.token);
    free(d.active);
    free(d.rows);
    free(d.prefix_cu);
    free(d.next);
    return status;
}

void decode_free(nsa_tensors *results) {
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        free(results->at[id].data);
        results->at[id] = (nsa_tensor){0};
    }
}
