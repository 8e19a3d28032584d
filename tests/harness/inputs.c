/** @file inputs.c
 *  @brief Draw a case's inputs from its seed, or read those of a vector. */
#include "common/tensors.h"
#include "harness/case.h"
#include "harness/edges.h"
#include "harness/random.h"
#include "harness/tensor.h"
#include "io/case_folder.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

float round_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (isnan(x))
        return x;
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u;
    memcpy(&x, &bits, 4);
    return x;
}

/* The standard deviation of a tensor's values: scores and hidden units have order 1. */
static float std_dev(const test_case *c, nsa_id id) {
    const char *name = nsa_name(id);
    float fan_in =
        (float)c->cfg.cmp_block * (float)(id < NSA_PHI_V_PE ? c->cfg.qk_dim : c->cfg.v_dim);
    if (id == NSA_Q && c->data == DATA_LARGE)
        return 40;
    if (id < NSA_PHI_FIRST || id > NSA_PHI_LAST)
        return 1;
    if (!strcmp(name + 6, "w1"))
        return 1.5f / sqrtf(fan_in);
    if (!strcmp(name + 6, "w2"))
        return 1.5f / sqrtf((float)c->cfg.phi_hidden);
    return strcmp(name + 6, "w") ? 0.4f : 0.7f;
}

/* Ties: one compressed key for all tokens. Planted: keys repeat every two selection blocks. */
static void repeat_keys(const test_case *c, nsa_tensor *k) {
    int64_t row = tensor_row(k), period = c->data == DATA_TIES ? 1 : 2 * c->cfg.slc_block;
    float *data = k->data;
    for (int b = 0, first = 0; b < case_sequences(c); first += (int)case_length(c, b++)) {
        for (int64_t t = period; t < case_length(c, b); t++)
            memcpy(data + (first + t) * row, data + (first + t - period) * row,
                   (size_t)row * sizeof *data);
    }
}

static nsa_status draw(const test_case *c, nsa_id id, uint64_t *state, nsa_tensor *t) {
    const nsa_lengths lengths = {.T = c->cfg.seq_len};
    nsa_shape(&c->cfg, &lengths, id, 0, t);
    t->dtype = NSA_F32;
    nsa_status status = tensor_alloc(t);
    float sigma = std_dev(c, id), *data = t->data;
    for (int64_t i = 0; !status && i < nsa_count(t); i++)
        data[i] =
            id == NSA_GATE ? 0.05f + 0.9f * random_uniform(state) : sigma * random_normal(state);
    if (!status && id == NSA_K_CMP && (c->data == DATA_TIES || c->data == DATA_PLANTED))
        repeat_keys(c, t);
    if (!status)
        edge_values(c, id, state, t);
    return status;
}

static nsa_status alloc_ints(nsa_tensor *t, int64_t count) {
    t->dtype = NSA_I32;
    t->ndim = 1;
    t->shape[0] = count;
    return tensor_alloc(t);
}

nsa_status case_rows(int64_t all, int64_t count, uint64_t *state, nsa_tensor *rows) {
    count = count < all ? count : all;
    nsa_status status = alloc_ints(rows, count);
    for (int64_t r = 0; !status && r < count; r++) {
        int64_t low = r * all / count, high = (r + 1) * all / count; /* one row of each interval */
        int64_t row = low + (int64_t)(random_next(state) % (uint64_t)(high - low));
        tensor_ints(rows)[r] = (int32_t)(r == 0 ? 0 : r == count - 1 ? all - 1 : row);
    }
    return status;
}

static nsa_status draw_all(const test_case *c, nsa_tensors *in) {
    uint64_t state = c->seed;
    nsa_status status = NSA_OK;
    for (int id = NSA_Q; id <= NSA_PHI_LAST && !status; id++) {
        int is_int = id == NSA_CU_SEQLENS || id == NSA_ROWS || id == NSA_ACTIVE;
        if (!is_int && nsa_has(&c->cfg, (nsa_id)id))
            status = draw(c, (nsa_id)id, &state, &in->at[id]);
    }
    if (!status && c->seqs) {
        status = alloc_ints(&in->at[NSA_CU_SEQLENS], c->seqs + 1);
        int32_t *cu = tensor_ints(&in->at[NSA_CU_SEQLENS]);
        for (int b = 0; !status && b <= c->seqs; b++)
            cu[b] = b ? cu[b - 1] + (int32_t)c->lens[b - 1] : 0;
    }
    return status;
}

static nsa_status read_folder(const test_case *c, case_folder *folder) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", case_vector_dir(), c->vector);
    return case_folder_read(path, folder);
}

nsa_status case_inputs(const test_case *c, nsa_arith arith, nsa_tensors *in) {
    nsa_status status;
    memset(in, 0, sizeof *in);
    if (c->vector[0]) {
        case_folder folder;
        status = read_folder(c, &folder);
        if (status)
            return status;
        status = tensors_copy(in, &folder.in);
        case_folder_free(&folder);
    } else {
        status = draw_all(c, in);
        if (!status && arith == NSA_BFLOAT16)
            edge_values_bf16(c, in);
    }
    uint64_t state = c->seed + 2;
    if (!status && c->rows)
        status = case_rows(c->cfg.seq_len, c->rows, &state, &in->at[NSA_ROWS]);
    for (int id = 0; id < NSA_ID_COUNT && !status && arith == NSA_BFLOAT16; id++) {
        nsa_tensor *t = &in->at[id];
        if (t->dtype == NSA_NONE || t->dtype == NSA_I32 || id == NSA_GATE)
            continue;
        for (int64_t i = 0; i < nsa_count(t); i++)
            tensor_set(t, i, (double)round_bfloat16((float)tensor_get(t, i)));
    }
    if (status)
        tensors_free(in);
    return status;
}

nsa_status case_expectations(const test_case *c, nsa_tensors *expect) {
    case_folder folder;
    memset(expect, 0, sizeof *expect);
    nsa_status status = read_folder(c, &folder);
    if (status)
        return status;
    status = tensors_copy(expect, &folder.expect);
    case_folder_free(&folder);
    return status;
}
