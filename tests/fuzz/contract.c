/** @file contract.c
 *  @brief Fuzz target: any bytes as a session with a stage: a config, a setup, and calls in any
 * order with legal and illegal inputs. No call may crash, access memory out of bounds, or fail
 * without an error text. */
#include "common/pool.h"
#include "common/tensors.h"
#include "fuzz/config_rules.h"
#include "fuzz/contract.h"

enum { SLOTS = 4, MEMORY = 1 << 20, CALLS = 24 };

/** One session. */
typedef struct session {
    choices b;            /**< the remaining bytes */
    nsa_config cfg;       /**< resolved */
    nsa_setup setup;      /**< as opened */
    nsa_context *ctx;     /**< the stage */
    int64_t T;            /**< tokens of the last load */
    int64_t B;            /**< sequences of the last load */
    int32_t cu[SLOTS];    /**< the end of each sequence */
    int32_t fills[SLOTS]; /**< the slot of each, if it is prefilled */
    int named;            /**< the load named these slots */
    int loaded;           /**< the last load succeeded, and no step replaced it */
    int tame;             /**< all its values are small */
    int64_t len[SLOTS];   /**< the expected nsa_slot_len() */
    int32_t slot[SLOTS];  /**< slots of the last successful step */
    int64_t steps;        /**< number of slots, -1 if unknown */
    int unsure;           /**< len is unknown */
} session;

/* ------------------------------------------------------------------- opening */

/* Small dims, to run thousands of sessions a second. */
static nsa_config draw_config(choices *b, int *wild) {
    nsa_config c = nsa_config_defaults();
    c.seq_len = 1 + next_below(b, 24);
    c.kv_heads = 1 + next_below(b, 2);
    c.q_heads = c.kv_heads * (1 + next_below(b, 3));
    c.qk_dim = 1 + next_below(b, 4);
    c.v_dim = 1 + next_below(b, 4);
    c.cmp_stride = 1 + next_below(b, 3);
    c.cmp_block = c.cmp_stride * (1 + next_below(b, 3));
    c.slc_block = c.cmp_block + c.cmp_stride * next_below(b, 3);
    c.slc_init = next_below(b, 3);
    c.slc_local = 1 + next_below(b, 2);
    c.slc_count = c.slc_init + c.slc_local + next_below(b, 4);
    c.window = 1 + next_below(b, 12);
    c.phi = (nsa_phi)next_below(b, 3);
    c.phi_hidden = next_chance(b, 4) ? NSA_AUTO : 1 + next_below(b, 4);
    c.scale = next_chance(b, 2) ? NSA_AUTO : 0.25;
    c.max_seqs = 1 + next_below(b, 3);
    c.max_seq_len = next_chance(b, 2) ? NSA_AUTO : 1 + next_below(b, 28);
    int64_t *const fields[] = {&c.seq_len,    &c.q_heads,   &c.kv_heads,   &c.qk_dim,
                               &c.v_dim,      &c.cmp_block, &c.cmp_stride, &c.slc_block,
                               &c.slc_count,  &c.slc_init,  &c.slc_local,  &c.window,
                               &c.phi_hidden, &c.max_seqs,  &c.max_seq_len};
    *wild = next_chance(b, 4) ? 1 + (int)next_below(b, 3) : 0;
    for (int i = 0; i < *wild; i++) {
        unsigned field = next_byte(b) % 17, size = next_byte(b) % 4;
        int64_t value = size == 0   ? next_below(b, 7) - 3
                        : size == 1 ? next_below(b, 255)
                        : size == 2 ? next_word64(b) & INT32_MAX
                                    : next_word64(b);
        if (field < 15)
            *fields[field] = value;
        else if (field == 15)
            c.phi = (nsa_phi)(int)value;
        else
            memcpy(&c.scale, &value, sizeof value);
    }
    return c;
}

static int open_session(session *s) {
    int wild;
    nsa_config asked = draw_config(&s->b, &wild);
    s->setup.flags = next_byte(&s->b) & 127;
    s->setup.max_rows = next_chance(&s->b, 3) ? next_below(&s->b, 30) - 1 : 0;
    s->setup.threads = (int32_t)next_below(&s->b, 5) - 1;
    s->cfg = asked;
    nsa_status resolved = nsa_config_resolve(&s->cfg);
    MUST(resolved == NSA_OK || (resolved == NSA_ERR_CONFIG && *nsa_last_error()));
    MUST(wild || resolved == NSA_OK);
    MUST(resolved != NSA_OK || config_is_legal(&s->cfg));
    memory_limit(MEMORY, next_chance(&s->b, 8) ? next_byte(&s->b) : 1000);
    nsa_status status = nsa_open(nsa_stage_get(), &asked, &s->setup, &s->ctx);
    int short_of_memory = memory_unlimit();
    if (status) {
        MUST(!s->ctx && *nsa_last_error());
        MUST(resolved || short_of_memory || s->setup.max_rows < 0 || s->setup.threads < 0);
        MUST(!resolved || status == NSA_ERR_CONFIG || short_of_memory);
    } else {
        MUST(s->ctx && resolved == NSA_OK && nsa_memory(s->ctx) > 0);
    }
    return status == NSA_OK;
}

/* ------------------------------------------------------------------- calls */

static void load(session *s) {
    drawn d;
    draw_load(&s->b, &s->cfg, (s->setup.flags & NSA_BACKWARD) && next_chance(&s->b, 2), &d);
    nsa_status status = nsa_load(s->ctx, &d.in);
    MUST(!d.elsewhere || status);
    if (status == NSA_OK) {
        const nsa_tensor *cu = &d.in.at[NSA_CU_SEQLENS], *active = &d.in.at[NSA_ACTIVE];
        s->named = active->dtype != NSA_NONE;
        s->T = d.in.at[NSA_Q].shape[0];
        s->B = cu->dtype ? cu->shape[0] - 1 : 1;
        for (int64_t i = 0; i < s->B && i < SLOTS; i++)
            s->cu[i] = cu->dtype ? ((int32_t *)cu->data)[i + 1] : (int32_t)s->T;
        for (int64_t i = 0; i < s->B && i < SLOTS; i++)
            s->fills[i] = s->named ? ((int32_t *)active->data)[i] : (int32_t)i;
        s->tame = d.tame;
        s->loaded = 1;
    } else {
        MUST(*nsa_last_error());
        int64_t rows = s->setup.max_rows ? s->setup.max_rows : s->cfg.seq_len;
        MUST(!d.legal || d.in.at[NSA_Q].shape[0] > rows);
        s->loaded = 0; /* the old load may still be valid: unknown */
    }
    free_drawn(&d);
}

static void load_step(session *s) {
    drawn d;
    draw_step(&s->b, &s->cfg, s->ctx, &d);
    if (nsa_load_step(s->ctx, &d.in) == NSA_OK) {
        s->steps = d.in.at[NSA_ACTIVE].shape[0];
        MUST(s->steps <= s->cfg.max_seqs && !d.elsewhere);
        for (int64_t i = 0; i < s->steps && i < SLOTS; i++)
            s->slot[i] = ((int32_t *)d.in.at[NSA_ACTIVE].data)[i];
    } else {
        s->steps = -1; /* the old step may still be valid */
    }
    s->loaded = 0;
    free_drawn(&d);
}

static void load_dout(session *s) {
    drawn d;
    draw_dout(&s->b, &s->cfg, next_chance(&s->b, 8) ? next_below(&s->b, 25) : s->T, &d);
    MUST(nsa_load_dout(s->ctx, &d.in.at[NSA_DOUT]) || !d.elsewhere);
    free_drawn(&d);
}

static void prefill(session *s) {
    if (nsa_prefill(s->ctx) != NSA_OK)
        return;
    s->unsure |= !s->loaded || s->cfg.max_seqs > SLOTS;
    if (s->unsure)
        return;
    for (int64_t i = 0; i < s->cfg.max_seqs && !s->named; i++)
        s->len[i] = 0;
    for (int64_t i = 0; i < s->B; i++)
        s->len[s->fills[i]] = s->cu[i] - (i ? s->cu[i - 1] : 0);
}

static void decode(session *s) {
    if (nsa_decode(s->ctx) != NSA_OK)
        return;
    s->unsure |= s->steps < 0 || s->cfg.max_seqs > SLOTS;
    if (s->unsure)
        return;
    for (int64_t i = 0; i < s->steps; i++)
        s->len[s->slot[i]]++;
    s->steps = -1;
}

static double element(const nsa_tensor *t, int64_t i) {
    return t->dtype == NSA_F64    ? ((const double *)t->data)[i]
           : t->dtype == NSA_BF16 ? (double)nsa_bf16_to_f32(((const uint16_t *)t->data)[i])
                                  : (double)((const float *)t->data)[i];
}

/* Read one result, some as bfloat16, with `wrong` into a tensor that may not fit. */
static void read_one(session *s, nsa_id id, int wrong) {
    nsa_tensor t = {0};
    if (nsa_result(s->ctx, id, &t))
        return;
    /* one byte chooses all, and the shape whether bfloat16: the corpus keeps its meaning */
    const unsigned how = wrong ? next_byte(&s->b) : 0;
    if (wrong)
        t.shape[how % 3] += next_below(&s->b, 3) - 1;
    if (how / 3 % 8 == 7)
        t.place = (nsa_place)(1 + how / 24 % 3);
    if (t.dtype != NSA_I32 ? s->cfg.seq_len % 2 : how / 24 % 4 == 3)
        t.dtype = NSA_BF16;
    alloc_exact(&t);
    nsa_status status = nsa_read(s->ctx, id, &t);
    MUST(wrong || status == NSA_OK);
    MUST(status || (!t.place && (id != NSA_BLOCK_IDX || t.dtype == NSA_I32)));
    if (id == NSA_OUT && !wrong && s->loaded && s->tame && s->cfg.scale < 1e3) {
        for (int64_t i = 0; i < nsa_count(&t); i++)
            MUST(isfinite(element(&t, i)));
    }
    free(t.data);
}

static void call(session *s) {
    nsa_phase phases[16];
    switch (next_below(&s->b, 16)) {
    case 0:
    case 1:
    case 2:
        load(s);
        break;
    case 3:
        load_dout(s);
        break;
    case 4:
    case 5:
        load_step(s);
        break;
    case 6:
    case 7:
        MUST(nsa_forward(s->ctx) == NSA_OK || !s->loaded);
        break;
    case 8:
    case 9:
        (void)nsa_backward(s->ctx);
        break;
    case 10:
        prefill(s);
        break;
    case 11:
    case 12:
        decode(s);
        break;
    case 13:
        (void)nsa_causal(s->ctx, (int)next_below(&s->b, 6) - 1);
        MUST(nsa_set_stream(s->ctx, NULL) == NSA_ERR_UNSUPPORTED);
        break;
    case 14:
        read_one(s, (nsa_id)((int)next_below(&s->b, NSA_ID_COUNT + 4) - 2), next_chance(&s->b, 2));
        MUST(nsa_phases(s->ctx, phases, (int)next_below(&s->b, 17)) <= 16);
        break;
    default:
        for (int id = 0; id < NSA_ID_COUNT; id++)
            read_one(s, (nsa_id)id, 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    session s = {.b = {data, size}, .steps = -1};
    if (!open_session(&s))
        return 0;
    for (int i = 0; i < CALLS && s.b.left; i++) {
        call(&s);
        MUST(nsa_check_memory(s.ctx) == NSA_OK);
    }
    for (int i = 0; i < SLOTS && !s.unsure; i++)
        MUST(nsa_slot_len(s.ctx, i) == (i < s.cfg.max_seqs ? s.len[i] : -1));
    nsa_close(s.ctx);
    return 0;
}
