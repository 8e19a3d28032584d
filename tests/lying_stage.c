/** @file lying_stage.c
 *  @brief A stage with a single fault, for `make test-liars`: it forwards every call to a real
 * stage in the same folder, and lies once. $NSA_LIE selects the lie ("none": no lie), $NSA_TRUTH
 * the real stage ("01_naive_nsa.so"); with NSA_ARITH=bfloat16 the stage is judged as one of
 * bfloat16, which may round operands, but need not. The harness must catch every lie.
 *
 *  Lies about results are made in read(), the others in the call that they are about.
 * tests/liars.sh lists them all. */
#include "lying_stage.h"
#include "common/pool.h"
#include "common/tensors.h"

#include <dlfcn.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const nsa_stage *truth;
static const char *lie;

int lying_opened, lying_forwards;

static int tells(const char *name) {
    return !strcmp(lie, name);
}

/* Lies made in a call, by their names in tests/liars.sh. */
static const char *const others[] = {"none",
                                     "forward_unsupported",
                                     "backward_unsupported",
                                     "prefill_unsupported",
                                     "decode_unsupported",
                                     "forward_fails",
                                     "pool_overrun",
                                     "writes_input",
                                     "writes_behind_input",
                                     "row_unwritten",
                                     "allocates",
                                     "prefill_forgets",
                                     "decode_forgets_token",
                                     "decode_slots_swapped",
                                     "decode_list_ignored",
                                     "many_slots_swapped",
                                     "many_slots_nothing",
                                     "many_slots_misfilled",
                                     "prefill_slots_ignored",
                                     "crashes",
                                     "crashes_at_97",
                                     "available_unsupported",
                                     "available_exits",
                                     "forward_nothing",
                                     "recurses",
                                     "half_written",
                                     "exits_at_97",
                                     "aborts",
                                     "hangs",
                                     "exits",
                                     "exits_at_once"};

/* More slots than any case of the harness has: these lies only a bench can catch. */
enum { MANY = 16 };

/* ------------------------------------------------------------------ the calls */

static nsa_status available(void) {
    if (tells("available_unsupported"))
        return nsa_fail(NSA_ERR_UNSUPPORTED, "there is nothing to see here");
    if (tells("available_exits"))
        exit(0);
    return truth->available();
}

static nsa_status open_stage(const nsa_plan *plan, void **self) {
    liar *s = nsa_pool_alloc(plan->pool, NSA_MEM_PERSISTENT, 1, sizeof *s);
    if (!s)
        return nsa_pool_status(plan->pool);
    memset(s, 0, sizeof *s);
    s->plan = plan;
    s->mine = nsa_pool_alloc(plan->pool, NSA_MEM_PERSISTENT, 10, 1);
    s->scratch = nsa_pool_alloc(plan->pool, NSA_MEM_SCRATCH, 1, sizeof *s->scratch);
    *self = s;
    lying_opened++;
    return truth->open(plan, &s->self);
}

static double at(const nsa_tensors *in, nsa_id id, int64_t i) {
    return nsa_count(&in->at[id]) ? lying_get(&in->at[id], i < 0 ? nsa_count(&in->at[id]) + i : i)
                                  : 0;
}

/* Prefill in the pack's order, whatever the load named; or the last of many slots into the one
 * before it. */
static void move_slots(liar *s) {
    static const int32_t in_order[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int64_t slots = s->plan->cfg.max_seqs;
    if (!s->moved.slot)
        return;
    if (tells("prefill_slots_ignored"))
        s->moved.slot = in_order;
    if (!tells("many_slots_misfilled") || slots <= MANY || s->moved.slot[0] != slots - 1)
        return;
    s->slots[0] = (int32_t)(slots - 2);
    s->moved.slot = s->slots;
}

static nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch) {
    liar *s = self;
    const nsa_tensor *q = &in->at[NSA_Q];
    s->batch = batch;
    s->step = NULL;
    s->loads++;
    s->wide = q->dtype == NSA_F64;
    s->forced = batch->block_idx != NULL;
    s->first_q = at(in, NSA_Q, 0);
    s->last_q = at(in, NSA_Q, -1);
    s->first_k_win = at(in, NSA_K_WIN, 0);
    s->first_v_win = at(in, NSA_V_WIN, 0);
    s->first_gate = at(in, NSA_GATE, 0);
    s->moved = *batch;
    move_slots(s);
    nsa_status status = truth->load(s->self, in, &s->moved);
    if (tells("writes_input"))
        lying_set(q, 0, 0.5);
    if (tells("writes_behind_input"))
        lying_set(q, nsa_count(q), 0.5);
    return status;
}

static nsa_status load_dout(void *self, const nsa_tensor *dout) {
    return truth->load_dout(((liar *)self)->self, dout);
}

/* Forward the step unchanged, or with the first two slots swapped, or without its lists. */
static nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    liar *s = self;
    nsa_tensors tokens = *in;
    s->step = step;
    s->changed = *step;
    if (tells("decode_slots_swapped") && step->A == 2 && step->pos[0] == step->pos[1]) {
        s->slots[0] = step->slot[1];
        s->slots[1] = step->slot[0];
        s->changed.slot = s->slots;
    }
    if (tells("many_slots_swapped") && step->A > MANY) {
        memcpy(s->many, step->slot, (size_t)step->A * sizeof *s->many);
        s->many[0] = step->slot[1];
        s->many[1] = step->slot[0];
        s->changed.slot = s->many;
    }
    if (tells("decode_list_ignored"))
        s->changed.block_idx = NULL;
    if (tells("decode_forgets_token")) /* the compressed branch's values replace the window's */
        tokens.at[NSA_V_WIN].data = in->at[NSA_V_CMP].data;
    return truth->load_step(s->self, &tokens, &s->changed);
}

/* Overflow any stack. The frame is used after the call, so that the compiler cannot make it a
 * loop. */
static int recurse(volatile int depth) {
    volatile char frame[4096];
    frame[depth % 4096] = 1;
    return depth == 1 << 30 ? 0 : recurse(depth + 1) + frame[depth % 4096];
}

static nsa_status forward(void *self) {
    liar *s = self;
    if (tells("forward_nothing"))
        return NSA_OK;
    if (tells("recurses"))
        return recurse(0) ? NSA_OK : NSA_ERR_STATE;
    lying_forwards++;
    if (tells("forward_unsupported"))
        return nsa_fail(NSA_ERR_UNSUPPORTED, "forward is not written yet");
    if (tells("forward_fails"))
        return nsa_fail(NSA_ERR_DEVICE, "the device is gone");
    if (tells("pool_overrun"))
        s->mine[10] = 1;
    if (tells("allocates")) {
        void *volatile taken = malloc(100); /* volatile, or the compiler would drop both calls */
        free(taken);
    }
    if (tells("crashes") || (tells("crashes_at_97") && s->batch->T == 97))
        raise(SIGSEGV);
    if (tells("aborts"))
        abort();
    if (tells("exits") || (tells("exits_at_97") && s->batch->T == 97))
        exit(0);
    if (tells("exits_at_once"))
        _exit(0);
    if (tells("hangs") && alarm(1)) { /* hang only if a limit was set */
        for (;;)
            pause();
    }
    s->stale = s->loads > 1 ? *s->scratch : 0; /* left there by the previous forward */
    *s->scratch = 1;
    return truth->forward(s->self);
}

static nsa_status backward(void *self) {
    if (tells("backward_unsupported"))
        return nsa_fail(NSA_ERR_UNSUPPORTED, "backward is not written yet");
    return truth->backward(((liar *)self)->self);
}

static nsa_status prefill(void *self) {
    if (tells("prefill_unsupported"))
        return nsa_fail(NSA_ERR_UNSUPPORTED, "prefill is not written yet");
    if (tells("prefill_forgets"))
        return truth->forward(((liar *)self)->self);
    return truth->prefill(((liar *)self)->self);
}

static nsa_status decode(void *self) {
    if (tells("decode_unsupported"))
        return nsa_fail(NSA_ERR_UNSUPPORTED, "decode is not written yet");
    if (tells("many_slots_nothing") && ((liar *)self)->plan->cfg.max_seqs > MANY)
        return NSA_OK;
    return truth->decode(((liar *)self)->self);
}

static nsa_status causal(void *self, int pair) {
    return truth->causal(((liar *)self)->self, pair);
}

static nsa_status read_result(void *self, nsa_id id, const nsa_tensor *to) {
    liar *s = self;
    const size_t size = nsa_dtype_size(to->dtype);
    unsigned char row[8];
    memcpy(row, to->data, size);
    nsa_status status = truth->read(s->self, id, to);
    if (tells("row_unwritten") && id == NSA_OUT)
        memcpy(to->data, row, size);
    if (!status)
        lie_about(lie, s, id, to);
    return status;
}

static void close_stage(void *self) {
    lying_opened--;
    truth->close(((liar *)self)->self);
}

/* Find the real stage, beside this one. */
static const nsa_stage *find_truth(void) {
    Dl_info own;
    char path[PATH_MAX];
    const char *name = getenv("NSA_TRUTH");
    if (!dladdr(&others, &own) || !own.dli_fname)
        return NULL;
    const char *slash = strrchr(own.dli_fname, '/');
    snprintf(path, sizeof path, "%.*s/%s", slash ? (int)(slash - own.dli_fname) : 1,
             slash ? own.dli_fname : ".", name ? name : "01_naive_nsa.so");
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = handle ? dlsym(handle, "nsa_stage_get") : NULL;
    const nsa_stage *(*find)(void) = NULL;
    memcpy(&find, &symbol, sizeof find); /* ISO C has no cast from object to function pointer */
    return find ? find() : NULL;
}

NSA_EXPORT const nsa_stage *nsa_stage_get(void) {
    static nsa_stage table;
    lie = getenv("NSA_LIE");
    lie = lie ? lie : "none";
    int known = lie_of_result(lie);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        known |= tells(others[i]);
    truth = find_truth();
    if (!truth || !known)
        return NULL;
    const char *arith = getenv("NSA_ARITH");
    table = (nsa_stage){.abi = truth->abi,
                        .arith = arith && *arith ? NSA_BFLOAT16 : truth->arith,
                        .idea = "to be right but for one thing",
                        .available = available,
                        .open = open_stage,
                        .load = load,
                        .load_dout = load_dout,
                        .load_step = load_step,
                        .forward = forward,
                        .backward = backward,
                        .prefill = prefill,
                        .decode = decode,
                        .causal = causal,
                        .read = read_result,
                        .close = close_stage};
    if (tells("half_written")) { /* not a lie: a table of a half-written stage */
        table.backward = NULL;
        table.prefill = table.decode = NULL;
    }
    return &table;
}
