/** @file contract_inputs.c
 *  @brief Inputs drawn from bytes: mostly legal, sometimes broken in one or several ways. */
#include "common/tensors.h"
#include "fuzz/contract.h"
#include "harness/random.h"

#include <math.h>

enum { MAX_ELEMENTS = 1 << 20 }; /* maximum elements of a tensor */

void alloc_exact(nsa_tensor *t) {
    int64_t count = nsa_count(t);
    size_t size = nsa_dtype_size(t->dtype);
    t->data = NULL;
    if (count > 0 && count <= MAX_ELEMENTS && size)
        t->data = memory_alloc((size_t)count * size);
}

/* ------------------------------------------------------------------- breaking */

/* Break a tensor's description before its memory is allocated. */
static void break_shape(choices *b, nsa_tensor *t) {
    static const int dtypes[] = {NSA_NONE, NSA_F32, NSA_F64, NSA_I32, NSA_BF16, 77, -1};
    switch (next_below(b, 4)) {
    case 0:
        t->dtype = (nsa_dtype)dtypes[next_below(b, 7)];
        break;
    case 1:
        t->ndim = (int32_t)next_below(b, 7) - 1;
        break;
    case 2:
        t->shape[next_below(b, 3)] += next_below(b, 5) - 2;
        break;
    default:
        t->shape[next_below(b, 3)] = next_word64(b);
    }
}

/* ------------------------------------------------------------------- filling */

static void put(const nsa_tensor *t, int64_t i, double value) {
    if (t->dtype == NSA_F64)
        ((double *)t->data)[i] = value;
    else if (t->dtype == NSA_BF16)
        ((uint16_t *)t->data)[i] = nsa_bf16_from_f32((float)value);
    else
        ((float *)t->data)[i] = (float)value;
}

/* @return 1 if all values are small. */
static int fill_floats(choices *b, nsa_id id, const nsa_tensor *t) {
    uint64_t seed = next_byte(b);
    unsigned kind = next_byte(b) % 16; /* mostly normal values */
    const double odd[] = {0, 1e30, NAN, INFINITY, -INFINITY, 1e-40, 3e38};
    for (int64_t i = 0; i < nsa_count(t); i++) {
        double x = id == NSA_GATE ? (double)random_uniform(&seed) : (double)random_normal(&seed);
        if (kind >= 10 && (kind != 15 || random_next(&seed) % 4 == 0))
            x = odd[kind == 15 ? random_next(&seed) % 7 : kind - 10];
        put(t, i, x);
    }
    return kind <= 10;
}

static void fill_cuts(choices *b, const nsa_tensor *t, int64_t T) {
    int32_t *cu = t->data;
    int64_t last = t->shape[0] - 1;
    for (int64_t i = 1; i < last; i++)
        cu[i] = cu[i - 1] + (int32_t)next_below(b, (unsigned)(T - cu[i - 1]) % 255 + 1);
    cu[last] = (int32_t)T;
}

/* One block list: distinct blocks of 0..own_block in any order, and holes. */
static void fill_list(choices *b, int32_t *list, int64_t n, int64_t own_block) {
    unsigned hole = next_byte(b), turn = next_byte(b);
    for (int64_t i = 0; i < n; i++) {
        int64_t block = (i + turn) % n;
        list[i] = block <= own_block && (block + hole) % 5 ? (int32_t)block : -1;
    }
}

/* Sometimes overwrite one or all elements with any integers. @return 1 if it did */
static int scramble(choices *b, const nsa_tensor *t) {
    if (!next_chance(b, 16))
        return 0;
    int64_t count = nsa_count(t);
    int all = next_chance(b, 2);
    for (int64_t i = all || !count ? 0 : next_below(b, 255) % count; i < count; i++) {
        ((int32_t *)t->data)[i] =
            (int32_t)(next_chance(b, 2) ? next_word64(b) : next_below(b, 6) - 2);
        if (!all)
            break;
    }
    return 1;
}

/* ------------------------------------------------------------------- tensors */

/* Once in 128 times a tensor without elements in memory, or one that is said to lie elsewhere:
 * these stages have no device. */
static void lose_elements(choices *b, drawn *d, nsa_tensor *t) {
    static const int places[] = {NSA_DEVICE, 2, 77, -1};
    const int64_t how = t->data ? next_below(b, 128) : 0;
    if (how < 126)
        return;
    d->legal = 0;
    if (how == 126) {
        t->place = (nsa_place)places[next_below(b, 4)];
        d->elsewhere |= t->dtype != NSA_NONE;
        return;
    }
    free(t->data);
    t->data = NULL;
}

/* Describe and allocate a tensor. @return 1 if it has memory of the right type to fill */
static int alloc_tensor(choices *b, const nsa_config *cfg, int64_t T, nsa_id id, drawn *d) {
    static const nsa_dtype floats[] = {NSA_F32, NSA_F64, NSA_F32,  NSA_F64,
                                       NSA_F32, NSA_F64, NSA_BF16, NSA_BF16};
    nsa_tensor *t = &d->in.at[id];
    int is_int = id == NSA_CU_SEQLENS || id == NSA_ROWS || id == NSA_ACTIVE || id == NSA_BLOCK_IDX;
    nsa_shape(cfg, &(nsa_lengths){.T = T}, id, 0, t);
    t->dtype = is_int ? NSA_I32 : floats[next_below(b, 8)];
    if (t->shape[0] < 0) /* any length */
        t->shape[0] = id == NSA_CU_SEQLENS ? 2 + next_below(b, 3) : next_below(b, 8);
    if (next_chance(b, 64)) {
        break_shape(b, t);
        d->legal = 0;
    }
    alloc_exact(t);
    lose_elements(b, d, t);
    if (!t->data && nsa_count(t) != 0)
        d->legal = 0;
    if (t->data && is_int != (t->dtype == NSA_I32))
        memset(t->data, 0, (size_t)nsa_count(t) * nsa_dtype_size(t->dtype));
    return t->data && is_int == (t->dtype == NSA_I32);
}

static void draw_floats(choices *b, const nsa_config *cfg, int64_t T, nsa_id id, drawn *d) {
    if (alloc_tensor(b, cfg, T, id, d) && !fill_floats(b, id, &d->in.at[id])) {
        d->tame = 0;
        d->legal &= id != NSA_GATE; /* out of [0,1] */
    }
}

static void draw_tokens(choices *b, const nsa_config *cfg, int64_t T, drawn *d) {
    *d = (drawn){.tame = 1, .legal = 1};
    for (int id = NSA_Q; id <= NSA_GATE; id++)
        draw_floats(b, cfg, T, (nsa_id)id, d);
    if (next_chance(b, 32)) { /* a tensor that is not an input of this call */
        nsa_id id = (nsa_id)next_below(b, NSA_ID_COUNT);
        if (!d->in.at[id].dtype && alloc_tensor(b, cfg, T, id, d))
            memset(d->in.at[id].data, 0,
                   (size_t)nsa_count(&d->in.at[id]) * nsa_dtype_size(d->in.at[id].dtype));
        d->legal = 0;
    }
}

/* Draw legal lists for every row if cu_seqlens is legal; then sometimes scramble them. */
static void draw_lists(choices *b, const nsa_config *cfg, int64_t T, drawn *d) {
    const nsa_tensor *cu = &d->in.at[NSA_CU_SEQLENS];
    int64_t from = 0, seq = 1, idx_stride = cfg->kv_heads * cfg->slc_count;
    if (!alloc_tensor(b, cfg, T, NSA_BLOCK_IDX, d))
        return;
    nsa_tensor *t = &d->in.at[NSA_BLOCK_IDX];
    memset(t->data, 0xFF, (size_t)nsa_count(t) * sizeof(int32_t));
    if (!d->legal || nsa_count(t) != T * idx_stride)
        return; /* all absent */
    for (int64_t i = 0; i < T * cfg->kv_heads; i++) {
        while (cu->data && i / cfg->kv_heads >= ((int32_t *)cu->data)[seq])
            from = ((int32_t *)cu->data)[seq++];
        fill_list(b, (int32_t *)t->data + i * cfg->slc_count, cfg->slc_count,
                  (i / cfg->kv_heads - from) / cfg->slc_block);
    }
    d->legal &= !scramble(b, t);
}

void draw_load(choices *b, const nsa_config *cfg, int with_dout, drawn *d) {
    int64_t T = next_below(b, 25);
    T = T <= cfg->seq_len ? T : cfg->seq_len;
    draw_tokens(b, cfg, T, d);
    for (int id = NSA_PHI_FIRST; id <= NSA_PHI_LAST; id++) {
        if (nsa_has(cfg, (nsa_id)id) && !d->in.at[id].dtype)
            draw_floats(b, cfg, T, (nsa_id)id, d);
    }
    nsa_tensor *cu = &d->in.at[NSA_CU_SEQLENS], *rows = &d->in.at[NSA_ROWS];
    if (!cu->dtype && next_chance(b, 3) && alloc_tensor(b, cfg, T, NSA_CU_SEQLENS, d)) {
        memset(cu->data, 0, (size_t)nsa_count(cu) * sizeof(int32_t));
        if (d->legal)
            fill_cuts(b, cu, T);
        d->legal &= !scramble(b, cu) && cu->shape[0] - 1 <= cfg->max_seqs;
    }
    if (!rows->dtype && next_chance(b, 4) && alloc_tensor(b, cfg, T, NSA_ROWS, d)) {
        for (int64_t i = 0, row = 0; i < nsa_count(rows); i++, row += 1 + next_below(b, 4))
            ((int32_t *)rows->data)[i] = (int32_t)row;
        d->legal = 0; /* it may be legal; that is not tracked */
        scramble(b, rows);
    }
    if (!d->in.at[NSA_BLOCK_IDX].dtype && next_chance(b, 3))
        draw_lists(b, cfg, T, d);
    if (with_dout && !d->in.at[NSA_DOUT].dtype)
        draw_floats(b, cfg, T, NSA_DOUT, d);
}

void draw_step(choices *b, const nsa_config *cfg, nsa_context *ctx, drawn *d) {
    int64_t A = next_below(b, 4), first = next_below(b, 4);
    nsa_tensor *active = &d->in.at[NSA_ACTIVE], *idx = &d->in.at[NSA_BLOCK_IDX];
    draw_tokens(b, cfg, A, d);
    d->legal = 0;
    if (!active->dtype && alloc_tensor(b, cfg, A, NSA_ACTIVE, d)) {
        free(active->data);
        active->shape[0] = next_chance(b, 16) ? next_below(b, 6) : A;
        alloc_exact(active);
        for (int64_t i = 0; active->data && i < nsa_count(active); i++)
            ((int32_t *)active->data)[i] = (int32_t)((first + i) % cfg->max_seqs);
        if (active->data)
            scramble(b, active);
    }
    if (idx->dtype || !next_chance(b, 3) || !alloc_tensor(b, cfg, A, NSA_BLOCK_IDX, d))
        return;
    memset(idx->data, 0xFF, (size_t)nsa_count(idx) * sizeof(int32_t));
    for (int64_t i = 0; i < nsa_count(idx) / cfg->slc_count && nsa_count(idx) <= 4096; i++) {
        int64_t len = nsa_slot_len(ctx, (first + i / cfg->kv_heads) % cfg->max_seqs);
        fill_list(b, (int32_t *)idx->data + i * cfg->slc_count, cfg->slc_count,
                  len / cfg->slc_block);
    }
    scramble(b, idx);
}

void draw_dout(choices *b, const nsa_config *cfg, int64_t T, drawn *d) {
    *d = (drawn){.tame = 1, .legal = 1};
    draw_floats(b, cfg, T, NSA_DOUT, d);
}

void free_drawn(drawn *d) {
    for (int id = 0; id < NSA_ID_COUNT; id++)
        free(d->in.at[id].data);
}
