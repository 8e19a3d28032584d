/** @file corners.c
 *  @brief Checks of the contract that no correct stage exercises: the names of all statuses and
 * tensors, and stages that misbehave. Prints the counts; exits with 1 if a check failed. */
#include "corners.h"

#include "common/pool.h"
#include "common/tensors.h"

#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

int passed, failed;

/* ------------------------------------------------------------------- a bad stage */

static int64_t write_offset; /* where forward writes into its block of 10 bytes */
static unsigned char *block; /* that block */
static nsa_status forward_says = NSA_OK;

static nsa_status available(void) {
    return NSA_OK;
}

static nsa_status open_stage(const nsa_plan *plan, void **self) {
    *self = block = nsa_pool_alloc(plan->pool, NSA_MEM_FORWARD, 10, 1);
    return nsa_pool_status(plan->pool);
}

static nsa_status open_large(const nsa_plan *plan, void **self) {
    *self = block = nsa_pool_alloc(plan->pool, NSA_MEM_FORWARD, 10 << 20, 1);
    return nsa_pool_status(plan->pool);
}

static nsa_status open_too_much(const nsa_plan *plan, void **self) {
    *self = nsa_pool_alloc(plan->pool, NSA_MEM_PERSISTENT, INT64_MAX, 16); /* overflows */
    (void)nsa_pool_alloc(plan->pool, NSA_MEM_PERSISTENT, -1, 1);
    return nsa_pool_status(plan->pool);
}

static nsa_batch loaded; /* the batch of the last load */

static int quarters; /* of the machine's memory that open_endless() got */

/* The system would grant each of these blocks, and so promise more memory than it has. */
static nsa_status open_endless(const nsa_plan *plan, void **self) {
    struct sysinfo info = {0};
    (void)sysinfo(&info); /* it cannot fail */
    const int64_t all = (int64_t)(info.totalram + info.totalswap) * info.mem_unit;
    for (quarters = 0; quarters < 8; quarters++) {
        *self = nsa_pool_alloc(plan->pool, NSA_MEM_PERSISTENT, all / 4, 1);
        if (!*self)
            break;
    }
    return nsa_pool_status(plan->pool);
}

static nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch) {
    (void)self, (void)in;
    loaded = *batch;
    return NSA_OK;
}

static nsa_status load_dout(void *self, const nsa_tensor *dout) {
    (void)self, (void)dout;
    return NSA_OK;
}

static nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    (void)self, (void)in, (void)step;
    return NSA_OK;
}

static nsa_status forward(void *self) {
    /* volatile: the compiler must not drop the write. Under a sanitizer a fence would stop it. */
    volatile unsigned char *target = (unsigned char *)self + write_offset;
    *target ^= 1;
    return forward_says;
}

static nsa_status backward(void *self) {
    (void)self;
    return NSA_OK;
}

static nsa_status read_result(void *self, nsa_id id, const nsa_tensor *to) {
    (void)self, (void)id, (void)to;
    return NSA_OK;
}

static void close_stage(void *self) {
    (void)self;
}

static nsa_stage bad_stage(void) {
    return (nsa_stage){.abi = NSA_ABI,
                       .idea = "to misbehave",
                       .available = available,
                       .open = open_stage,
                       .load = load,
                       .load_dout = load_dout,
                       .load_step = load_step,
                       .forward = forward,
                       .backward = backward,
                       .prefill = forward,
                       .decode = forward,
                       .read = read_result,
                       .close = close_stage};
}

/* A context of it for up to `tokens` tokens and `seqs` sequences, one head of one element. */
static nsa_context *open_for(const nsa_stage *stage, uint32_t flags, int64_t tokens, int64_t seqs) {
    nsa_config cfg = nsa_config_defaults();
    nsa_setup setup = {.flags = flags};
    nsa_context *ctx = NULL;
    cfg.q_heads = cfg.kv_heads = cfg.qk_dim = cfg.v_dim = 1;
    cfg.cmp_block = cfg.cmp_stride = cfg.slc_block = 2;
    cfg.seq_len = tokens;
    cfg.max_seqs = seqs;
    cfg.phi = NSA_PHI_MEAN;
    (void)nsa_open(stage, &cfg, &setup, &ctx);
    return ctx;
}

/* q, keys, values and gates of `tokens` tokens, all zero. */
static nsa_tensors zeros(int64_t tokens) {
    static float values[32];
    nsa_tensors in = {0};
    for (int id = NSA_Q; id <= NSA_GATE; id++)
        in.at[id] = (nsa_tensor){values, NSA_F32, 3, {tokens, 1, id == NSA_GATE ? 3 : 1}, NSA_HOST};
    return in;
}

/* A load of `count` sequences that end at these tokens. */
static nsa_status load_pack(nsa_context *ctx, const int32_t *cu, int64_t count) {
    nsa_tensors in = zeros(cu[count]);
    in.at[NSA_CU_SEQLENS] = (nsa_tensor){(void *)cu, NSA_I32, 1, {count + 1}, NSA_HOST};
    return nsa_load(ctx, &in);
}

/* A context of it over one token, loaded. */
static nsa_context *open_bad(const nsa_stage *stage, uint32_t flags) {
    nsa_context *ctx = open_for(stage, flags, 1, 1);
    const nsa_tensors in = zeros(1);
    CHECK(!ctx || nsa_load(ctx, &in) == NSA_OK);
    return ctx;
}

/* ------------------------------------------------------------------- checks */

static void check_names(void) {
    for (int a = NSA_OK; a <= NSA_ERR_IO; a++) {
        for (int b = NSA_OK; b < a; b++)
            CHECK(strcmp(nsa_status_name((nsa_status)a), nsa_status_name((nsa_status)b)) != 0);
    }
    CHECK(!strcmp(nsa_status_name((nsa_status)99), "unknown status"));
    CHECK(!nsa_name(NSA_ID_COUNT) && nsa_id_named("querry") == NSA_ID_COUNT);
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        nsa_id of = nsa_gradient_of((nsa_id)id);
        CHECK(nsa_id_named(nsa_name((nsa_id)id)) == (nsa_id)id);
        if (id >= NSA_GRAD_FIRST && id <= NSA_GRAD_LAST)
            CHECK(of < NSA_BLOCK_IDX && !strcmp(nsa_name(of), nsa_name((nsa_id)id) + 1));
        else
            CHECK(of == NSA_ID_COUNT);
    }
    CHECK(!strcmp(nsa_phi_name((nsa_phi)9), "?"));
    nsa_tensor t = {NULL, NSA_F32, 3, {INT64_MAX, 2, 1}, NSA_HOST};
    CHECK(nsa_count(&t) == -1);
    t.ndim = 4;
    CHECK(nsa_count(&t) == -1);
}

static void check_fences(void) {
    static const struct {
        int64_t offset;
        const char *says; /* NULL: nothing is wrong */
    } writes[] = {{0, NULL},
                  {9, NULL},
                  {-1, "before the start of"},
                  {-64, "before the start of"},
                  {10, "past the end of"},
                  {73, "past the end of"}};
    nsa_stage stage = bad_stage();
    for (size_t i = 0; i < sizeof writes / sizeof writes[0]; i++) {
        nsa_context *ctx = open_bad(&stage, 0);
        write_offset = writes[i].offset;
        CHECK(ctx && nsa_forward(ctx) == NSA_OK);
        nsa_status status = nsa_check_memory(ctx);
        CHECK(status == (writes[i].says ? NSA_ERR_MEMORY : NSA_OK));
        CHECK(!writes[i].says || strstr(nsa_last_error(), writes[i].says));
        nsa_close(ctx);
    }
    write_offset = 0;
}

static void check_refusals(void) {
    nsa_stage stage = bad_stage();
    nsa_context *ctx = open_bad(&stage, NSA_WANT_CAUSAL | NSA_DECODE);
    CHECK(nsa_causal(ctx, 0) == NSA_ERR_UNSUPPORTED);
    CHECK(nsa_phases(ctx, NULL, 0) == 0);
    CHECK(nsa_slot_len(ctx, -1) == -1 && nsa_slot_len(ctx, 1) == -1 && !nsa_slot_len(ctx, 0));
    forward_says = nsa_fail(NSA_ERR_DEVICE, "the device is gone");
    CHECK(nsa_forward(ctx) == NSA_ERR_DEVICE);
    CHECK(nsa_prefill(ctx) == NSA_ERR_DEVICE);
    nsa_tensor t = {0};
    CHECK(nsa_result(ctx, NSA_OUT, &t) == NSA_ERR_STATE); /* no result of a failed call */
    CHECK(nsa_read(ctx, NSA_OUT, &t) == NSA_ERR_STATE);
    forward_says = NSA_OK;
    CHECK(nsa_forward(ctx) == NSA_OK && nsa_result(ctx, NSA_OUT, &t) == NSA_OK);
    CHECK(nsa_read(ctx, NSA_OUT, &t) == NSA_ERR_INPUT && strstr(nsa_last_error(), "has no data"));
    nsa_close(ctx);
    nsa_close(NULL);
    stage.open = open_large;
    ctx = open_bad(&stage, 0);
    CHECK(ctx && nsa_memory(ctx) >= 10 << 20 && (uintptr_t)block % 64 == 0);
    CHECK(nsa_forward(ctx) == NSA_OK && nsa_check_memory(ctx) == NSA_OK);
    nsa_close(ctx);
    stage.open = open_too_much;
    CHECK(!open_bad(&stage, 0) && strstr(nsa_last_error(), "cannot allocate"));
}

/* max_seqs without decode is a limit, not a request for memory: the largest value is legal. */
static void check_many_sequences(void) {
    static const int32_t cu[] = {0, 0, 3, 3, 3, 7, 8, 8}, none[] = {0, 0, 0, 0};
    nsa_stage stage = bad_stage();
    nsa_context *ctx = open_for(&stage, 0, 8, INT32_MAX);
    CHECK(ctx && nsa_memory(ctx) < 4096);
    if (!ctx)
        return;
    CHECK(load_pack(ctx, cu, 7) == NSA_OK && loaded.B == 7 && loaded.N == 3);
    CHECK(loaded.seq[2] == 3 && loaded.seq[4] == 3 && loaded.seq[5] == 7 && loaded.cmp[5] == 3);
    nsa_close(ctx);
    /* 7 sequences for a seq_len of 5, and 3 for one of 2: the empty ones are dropped */
    static const int32_t short_cu[] = {0, 0, 3, 3, 3, 4, 4, 4};
    ctx = open_for(&stage, 0, 5, 7);
    CHECK(load_pack(ctx, short_cu, 7) == NSA_OK && loaded.B == 2 && loaded.T == 4);
    CHECK(loaded.seq[0] == 0 && loaded.seq[1] == 3 && loaded.seq[2] == 4 && loaded.N == 1);
    CHECK(loaded.cmp[0] == 0 && loaded.cmp[1] == 1 && loaded.cmp[2] == 1 && loaded.J == 2);
    CHECK(load_pack(ctx, cu, 7) == NSA_ERR_INPUT && strstr(nsa_last_error(), "seq_len is 5"));
    nsa_close(ctx);
    ctx = open_for(&stage, 0, 2, 3);
    CHECK(load_pack(ctx, none, 3) == NSA_OK && loaded.B == 1 && !loaded.seq[1] && !loaded.cmp[1]);
    CHECK(load_pack(ctx, cu, 4) == NSA_ERR_INPUT);
    nsa_close(ctx);
    ctx = open_for(&stage, 0, 8, 6);
    CHECK(load_pack(ctx, cu, 7) == NSA_ERR_INPUT);
    CHECK(strstr(nsa_last_error(), "packs 7 sequences, max_seqs is 6"));
    nsa_close(ctx);
    /* with decode it asks for that many slots, and there is no memory for them */
    CHECK(!open_for(&stage, NSA_DECODE, 1 << 20, INT32_MAX));
    CHECK(strstr(nsa_last_error(), "max_seqs 2147483647 asks for as many slots"));
}

/* The pool must not grant more memory than there is. Nothing is written, so this is cheap. */
static void check_promises(void) {
    nsa_stage stage = bad_stage();
    stage.open = open_endless;
    CHECK(!open_for(&stage, 0, 1, 1) && strstr(nsa_last_error(), "cannot allocate"));
    CHECK(quarters <= 4);
}

static void check_threads(void) {
    static const struct {
        int32_t threads;
        const char *says; /* NULL: nothing is wrong */
    } asked[] = {
        {-1, "negative"}, {0, NULL}, {1024, NULL}, {1025, "threads 1025 is more than 1024"}};
    nsa_stage stage = bad_stage();
    nsa_config cfg = nsa_config_defaults();
    cfg.seq_len = cfg.q_heads = cfg.kv_heads = cfg.qk_dim = cfg.v_dim = 1;
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        nsa_setup setup = {.threads = asked[i].threads};
        nsa_context *ctx = NULL;
        CHECK(nsa_open(&stage, &cfg, &setup, &ctx) == (asked[i].says ? NSA_ERR_CONFIG : NSA_OK));
        CHECK(!asked[i].says || strstr(nsa_last_error(), asked[i].says));
        nsa_close(ctx);
    }
}

/* Load two sequences, of 3 and 1 tokens, for slots a and b. */
static nsa_status load_for(nsa_context *ctx, const int32_t *cu, int32_t a, int32_t b) {
    int32_t slots[] = {a, b};
    nsa_tensors in = zeros(cu[2]);
    in.at[NSA_CU_SEQLENS] = (nsa_tensor){(void *)cu, NSA_I32, 1, {3}, NSA_HOST};
    in.at[NSA_ACTIVE] = (nsa_tensor){slots, NSA_I32, 1, {2}, NSA_HOST};
    return nsa_load(ctx, &in);
}

/* A load may name the slots that its sequences fill; the others keep their tokens, here 4, 1, 5. */
static void check_load_slots(nsa_context *ctx, const int32_t *cu) {
    static int32_t one[] = {1};
    nsa_tensors in = zeros(3);
    CHECK(load_for(ctx, cu, 2, 2) == NSA_ERR_INPUT && load_for(ctx, cu, 0, 3) == NSA_ERR_INPUT);
    in.at[NSA_CU_SEQLENS] = (nsa_tensor){(void *)cu, NSA_I32, 1, {2}, NSA_HOST};
    in.at[NSA_ACTIVE] = (nsa_tensor){one, NSA_I32, 1, {0}, NSA_HOST};
    CHECK(nsa_load(ctx, &in) == NSA_ERR_INPUT);
    CHECK(strstr(nsa_last_error(), "active names 0 slots, the pack has 1 sequences"));
    in.at[NSA_ACTIVE].shape[0] = 1;
    CHECK(nsa_load(ctx, &in) == NSA_OK && nsa_prefill(ctx) == NSA_OK);
    CHECK(nsa_slot_len(ctx, 0) == 4 && nsa_slot_len(ctx, 1) == 3 && nsa_slot_len(ctx, 2) == 5);
    CHECK(load_for(ctx, cu, 2, 0) == NSA_OK && nsa_prefill(ctx) == NSA_OK);
    CHECK(loaded.slot[0] == 2 && loaded.slot[1] == 0);
    CHECK(nsa_slot_len(ctx, 0) == 1 && nsa_slot_len(ctx, 1) == 3 && nsa_slot_len(ctx, 2) == 3);
    forward_says = nsa_fail(NSA_ERR_DEVICE, "the device is gone");
    CHECK(load_for(ctx, cu, 2, 0) == NSA_OK && nsa_prefill(ctx) == NSA_ERR_DEVICE);
    CHECK(!nsa_slot_len(ctx, 0) && nsa_slot_len(ctx, 1) == 3 && !nsa_slot_len(ctx, 2));
    forward_says = NSA_OK;
}

/* Which slots a step may name, and what a prefill leaves in the slots that it does not fill. */
static void check_slots(void) {
    static const int32_t cu[] = {0, 3, 4, 8};
    static int32_t active[] = {0, 2, 0};
    nsa_stage stage = bad_stage();
    nsa_context *ctx = open_for(&stage, NSA_DECODE, 8, 3);
    CHECK(load_pack(ctx, cu, 3) == NSA_OK && nsa_prefill(ctx) == NSA_OK);
    CHECK(nsa_slot_len(ctx, 0) == 3 && nsa_slot_len(ctx, 1) == 1 && nsa_slot_len(ctx, 2) == 4);
    static int32_t same[] = {0, 0};
    nsa_tensors in = zeros(2);
    in.at[NSA_ACTIVE] = (nsa_tensor){same, NSA_I32, 1, {2}, NSA_HOST};
    CHECK(nsa_load_step(ctx, &in) == NSA_ERR_INPUT);
    in = zeros(3);
    in.at[NSA_ACTIVE] = (nsa_tensor){active, NSA_I32, 1, {3}, NSA_HOST};
    CHECK(nsa_load_step(ctx, &in) == NSA_ERR_INPUT);
    CHECK(strstr(nsa_last_error(), "active names slot 0 twice"));
    in = zeros(2);
    in.at[NSA_ACTIVE] = (nsa_tensor){active, NSA_I32, 1, {2}, NSA_HOST};
    CHECK(nsa_load_step(ctx, &in) == NSA_OK && nsa_decode(ctx) == NSA_OK);
    CHECK(nsa_slot_len(ctx, 0) == 4 && nsa_slot_len(ctx, 1) == 1 && nsa_slot_len(ctx, 2) == 5);
    check_load_slots(ctx, cu);
    CHECK(load_pack(ctx, cu, 1) == NSA_OK && nsa_prefill(ctx) == NSA_OK);
    CHECK(nsa_slot_len(ctx, 0) == 3 && !nsa_slot_len(ctx, 1) && !nsa_slot_len(ctx, 2));
    forward_says = nsa_fail(NSA_ERR_DEVICE, "the device is gone");
    CHECK(load_pack(ctx, cu, 3) == NSA_OK && nsa_prefill(ctx) == NSA_ERR_DEVICE);
    CHECK(!nsa_slot_len(ctx, 0) && !nsa_slot_len(ctx, 1) && !nsa_slot_len(ctx, 2));
    forward_says = NSA_OK;
    nsa_close(ctx);
}

/* A half-written stage opens for what it has, and names what it lacks. */
static void check_missing(void) {
    nsa_stage stage = bad_stage();
    stage.decode = NULL;
    nsa_context *ctx = open_bad(&stage, NSA_BACKWARD | NSA_DECODE);
    const nsa_tensors in = zeros(1);
    CHECK(ctx && nsa_prefill(ctx) == NSA_OK);
    CHECK(ctx && nsa_load_step(ctx, &in) == NSA_ERR_UNSUPPORTED);
    CHECK(strstr(nsa_last_error(), "no decode") != NULL);
    nsa_close(ctx);
    stage.prefill = NULL;
    CHECK(!open_for(&stage, NSA_DECODE, 1, 1) && strstr(nsa_last_error(), "no prefill"));
    stage.backward = NULL;
    CHECK(!open_for(&stage, NSA_BACKWARD, 1, 1) && strstr(nsa_last_error(), "no backward"));
    ctx = open_bad(&stage, 0);
    CHECK(ctx && nsa_forward(ctx) == NSA_OK);
    nsa_close(ctx);
}

int main(int argc, char **argv) {
    check_names();
    if (argc < 2 || strcmp(argv[1], "--no-fences") != 0) {
        check_fences();   /* a sanitizer would end the program at the first */
        check_promises(); /* and needs memory for every block itself */
    }
    check_refusals();
    check_many_sequences();
    check_slots();
    check_missing();
    check_threads();
    check_bfloat16();
    check_places();
    check_same();
    check_device();
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
