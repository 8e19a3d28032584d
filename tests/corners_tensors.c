/** @file corners_tensors.c
 *  @brief Checks of bfloat16, of places, and of what a stage is told of the load before. */
#include "corners.h"

#include "common/pool.h"
#include "common/tensors.h"

#include <math.h>
#include <string.h>

/* -------------------------------------------------------------------- bfloat16 */

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The nearest, of two the even one; what is too large becomes infinite, a NaN stays one. */
void check_bfloat16(void) {
    static const struct {
        uint32_t from;
        uint16_t to;
    } rounded[] = {{0x3F800000, 0x3F80}, {0x3F807FFF, 0x3F80}, {0x3F808000, 0x3F80},
                   {0x3F808001, 0x3F81}, {0x3F818000, 0x3F82}, {0xBF818000, 0xBF82},
                   {0x80000000, 0x8000}, {0x00018000, 0x0002}, {0x3FFFFFFF, 0x4000},
                   {0x7F7F7FFF, 0x7F7F}, {0x7F7F8000, 0x7F80}, {0xFF800000, 0xFF80}};
    for (size_t i = 0; i < sizeof rounded / sizeof rounded[0]; i++)
        CHECK(nsa_bf16_from_f32(float_of(rounded[i].from)) == rounded[i].to);
    CHECK(isnan(nsa_bf16_to_f32(nsa_bf16_from_f32(float_of(0x7F800001)))));
    CHECK(isnan(nsa_bf16_to_f32(nsa_bf16_from_f32(float_of(0xFFFFFFFF)))));
    CHECK(nsa_bf16_to_f32(0x3F80) == 1 && nsa_bf16_to_f32(0xC0A0) == -5);
    CHECK(nsa_bf16_to_f32(0x0001) == ldexpf(1, -133) && isinf(nsa_bf16_to_f32(0x7F80)));
    int others = 0; /* values that do not survive being read and written */
    for (uint32_t x = 0; x < 0x10000; x++) {
        const float value = nsa_bf16_to_f32((uint16_t)x);
        others += !isnan(value) && nsa_bf16_from_f32(value) != x;
    }
    CHECK(others == 0);
}

/* ------------------------------------------------- a stage that notes what it gets */

static int load_same, step_same; /* of the last load and step; -1: none came */
static int load_slot;            /* of the last load, the first */
static int step_knows_pos;       /* the last step came with positions */
static nsa_status load_says = NSA_OK;

static nsa_status available(void) {
    return NSA_OK;
}

static nsa_status open_stage(const nsa_plan *plan, void **self) {
    *self = nsa_pool_alloc(plan->pool, NSA_MEM_PERSISTENT, 1, 1);
    return nsa_pool_status(plan->pool);
}

static nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch) {
    (void)self, (void)in;
    load_same = batch->same;
    load_slot = batch->slot ? batch->slot[0] : -1;
    return load_says;
}

static nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    (void)self, (void)in;
    step_same = step->same;
    step_knows_pos = step->pos != NULL;
    return NSA_OK;
}

static nsa_status done(void *self) {
    (void)self;
    return NSA_OK;
}

static void close_stage(void *self) {
    (void)self;
}

static const nsa_stage noting = {.abi = NSA_ABI,
                                 .available = available,
                                 .open = open_stage,
                                 .load = load,
                                 .load_step = load_step,
                                 .forward = done,
                                 .prefill = done,
                                 .decode = done,
                                 .close = close_stage};

/* Room for 8 tokens of 3 sequences, one head of one element. */
static nsa_context *open_noting(const nsa_stage *stage) {
    const nsa_setup setup = {.flags = NSA_DECODE};
    nsa_config cfg = nsa_config_defaults();
    nsa_context *ctx = NULL;
    cfg.q_heads = cfg.kv_heads = cfg.qk_dim = cfg.v_dim = 1;
    cfg.seq_len = 8;
    cfg.max_seqs = 3;
    cfg.phi = NSA_PHI_MEAN;
    CHECK(nsa_open(stage, &cfg, &setup, &ctx) == NSA_OK);
    return ctx;
}

static nsa_tensors zeros(int64_t tokens) {
    static float values[24];
    nsa_tensors in = {0};
    for (int id = NSA_Q; id <= NSA_GATE; id++)
        in.at[id] = (nsa_tensor){values, NSA_F32, 3, {tokens, 1, id == NSA_GATE ? 3 : 1}, NSA_HOST};
    return in;
}

void check_places(void) {
    nsa_context *ctx = open_noting(&noting);
    nsa_tensors in = zeros(4);
    CHECK(nsa_load(ctx, &in) == NSA_OK);
    in.at[NSA_V_WIN].place = NSA_DEVICE;
    CHECK(nsa_load(ctx, &in) == NSA_ERR_INPUT);
    CHECK(strstr(nsa_last_error(), "v_win is on a device, but this stage runs on the CPU"));
    in.at[NSA_V_WIN].place = (nsa_place)2;
    CHECK(nsa_load(ctx, &in) == NSA_ERR_INPUT);
    CHECK(strstr(nsa_last_error(), "v_win has place 2, which is unknown"));
    in.at[NSA_V_WIN].dtype = (nsa_dtype)9;
    CHECK(nsa_load(ctx, &in) == NSA_ERR_INPUT);
    CHECK(strstr(nsa_last_error(), "v_win has element type 9, which is unknown"));
    nsa_close(ctx);
}

/* ------------------------------------------------------------- the load before */

static int32_t ints[3][3]; /* of cu_seqlens, rows, active */

static nsa_tensor list(int which, int64_t count, int32_t a, int32_t b, int32_t c) {
    ints[which][0] = a, ints[which][1] = b, ints[which][2] = c;
    return (nsa_tensor){ints[which], NSA_I32, 1, {count}, NSA_HOST};
}

/* Load, and load again: @return `same` of the first, which may differ; the second's is 1. */
static int same_of(nsa_context *ctx, const nsa_tensors *in) {
    load_same = -1;
    CHECK(nsa_load(ctx, in) == NSA_OK);
    const int first = load_same;
    CHECK(nsa_load(ctx, in) == NSA_OK && load_same == 1);
    return first;
}

/* Each load differs from the one before in one thing; of the slots the geometry is no matter. */
static void check_same_load(nsa_context *ctx) {
    nsa_tensors in = zeros(4);
    CHECK(same_of(ctx, &in) == 0); /* nothing came before */
    in = zeros(5);
    CHECK(same_of(ctx, &in) == 0);
    in.at[NSA_CU_SEQLENS] = list(0, 3, 0, 2, 5);
    CHECK(same_of(ctx, &in) == 0);
    in.at[NSA_CU_SEQLENS] = list(0, 3, 0, 3, 5);
    CHECK(same_of(ctx, &in) == 0);
    in.at[NSA_ROWS] = list(1, 2, 0, 2, 0);
    CHECK(same_of(ctx, &in) == 0);
    in.at[NSA_ROWS] = list(1, 2, 1, 2, 0);
    CHECK(same_of(ctx, &in) == 0);
    in.at[NSA_ACTIVE] = list(2, 2, 0, 1, 0);
    CHECK(same_of(ctx, &in) == 1 && load_slot == 0);
    in.at[NSA_ACTIVE] = list(2, 2, 2, 1, 0);
    CHECK(same_of(ctx, &in) == 1 && load_slot == 2);
    load_says = nsa_fail(NSA_ERR_DEVICE, "the device is gone");
    CHECK(nsa_load(ctx, &in) == NSA_ERR_DEVICE);
    load_says = NSA_OK;
    CHECK(same_of(ctx, &in) == 0); /* the tables may be half written */
}

static int step_of(nsa_context *ctx, int64_t count, int32_t a, int32_t b) {
    nsa_tensors in = zeros(count);
    in.at[NSA_ACTIVE] = list(2, count, a, b, 0);
    step_same = -1;
    CHECK(nsa_load_step(ctx, &in) == NSA_OK);
    return step_same;
}

void check_same(void) {
    nsa_context *ctx = open_noting(&noting);
    check_same_load(ctx);
    static const int steps[][4] = {/* slots, the first, the second, are they those before */
                                   {2, 0, 1, 0}, {2, 0, 1, 1}, {2, 1, 0, 0}, {1, 1, 0, 0},
                                   {1, 1, 0, 1}, {1, 2, 0, 0}, {1, 2, 0, 1}};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
        CHECK(step_of(ctx, steps[i][0], steps[i][1], steps[i][2]) == steps[i][3]);
    nsa_close(ctx);
}

/* ------------------------------------------------------- a stage with a device */

static nsa_status pending_says = NSA_OK, lens_say = NSA_OK;
static int checked; /* device tensors that the stage was asked about */

static nsa_status set_stream(void *self, void *stream) {
    (void)self;
    return stream ? NSA_OK : nsa_fail(NSA_ERR_INPUT, "no stream of this device");
}

static nsa_status check(void *self, nsa_id id, const nsa_tensor *tensor) {
    (void)self, (void)id, (void)tensor;
    checked++;
    return NSA_OK;
}

static nsa_status pending(void *self) {
    (void)self;
    return pending_says;
}

static int64_t first_len = 5;

/* Slot s has first_len + s tokens of 8. */
static nsa_status slot_lens(void *self, int64_t *len) {
    (void)self;
    for (int s = 0; s < 3; s++)
        len[s] = first_len + s;
    return lens_say;
}

/* Which tensors reach the stage, and which never do. */
static void check_pointers(nsa_context *ctx) {
    nsa_tensors in = zeros(4);
    in.at[NSA_Q].place = in.at[NSA_GATE].place = NSA_DEVICE;
    CHECK(nsa_load(ctx, &in) == NSA_OK && checked == 2);
    in.at[NSA_Q].data = (char *)in.at[NSA_Q].data + 2;
    CHECK(nsa_load(ctx, &in) == NSA_ERR_INPUT);
    CHECK(strstr(nsa_last_error(), "which is no multiple of its element's 4 bytes"));
    in = zeros(4);
    in.at[NSA_ROWS] = list(1, 2, 0, 2, 0);
    in.at[NSA_ROWS].place = NSA_DEVICE;
    CHECK(nsa_load(ctx, &in) == NSA_ERR_INPUT);
    CHECK(strstr(nsa_last_error(), "rows is on the device, but the host has to read it"));
}

/* Errors of kernels come with a later call, and lengths from the device: the host refuses a full
 * slot, as long as it knows them. */
static void check_waits(nsa_context *ctx) {
    nsa_tensors in = zeros(4);
    CHECK(nsa_load(ctx, &in) == NSA_OK);
    pending_says = nsa_fail(NSA_ERR_INPUT, "a slot was full");
    CHECK(nsa_load(ctx, &in) == NSA_ERR_INPUT && nsa_forward(ctx) == NSA_ERR_INPUT);
    pending_says = NSA_OK;
    CHECK(nsa_forward(ctx) == NSA_OK);
    CHECK(nsa_slot_len(ctx, 1) == 6);
    lens_say = nsa_fail(NSA_ERR_DEVICE, "the device is gone");
    CHECK(nsa_slot_len(ctx, 1) == -1);
    lens_say = NSA_OK;
    in = zeros(1);
    in.at[NSA_ACTIVE] = list(1, 1, 2, 0, 0);
    CHECK(nsa_load_step(ctx, &in) == NSA_OK);
    first_len = 6;
    CHECK(nsa_load_step(ctx, &in) == NSA_ERR_INPUT);
    CHECK(strstr(nsa_last_error(), "slot 2 is full: max_seq_len is 8"));
    first_len = 5;
}

/* With a stream only the device knows positions: none are passed, and lists cannot be checked. */
static void check_stream(nsa_context *ctx) {
    static int32_t blocks[16];
    int stream;
    nsa_tensors in = zeros(1);
    in.at[NSA_ACTIVE] = list(2, 1, 1, 0, 0);
    in.at[NSA_BLOCK_IDX] = (nsa_tensor){blocks, NSA_I32, 3, {1, 1, 16}, NSA_HOST};
    memset(blocks, 0xFF, sizeof blocks);
    CHECK(nsa_load_step(ctx, &in) == NSA_OK && step_knows_pos);
    CHECK(nsa_set_stream(ctx, NULL) == NSA_ERR_INPUT);
    CHECK(nsa_load_step(ctx, &in) == NSA_OK && step_knows_pos); /* nothing has changed */
    CHECK(nsa_set_stream(ctx, &stream) == NSA_OK);
    CHECK(nsa_load_step(ctx, &in) == NSA_ERR_INPUT);
    CHECK(strstr(nsa_last_error(), "only the device knows the positions"));
    in.at[NSA_BLOCK_IDX].place = NSA_DEVICE;
    CHECK(nsa_load_step(ctx, &in) == NSA_OK && !step_knows_pos);
}

void check_device(void) {
    nsa_stage stage = noting;
    stage.set_stream = set_stream;
    stage.check = check;
    stage.pending = pending;
    stage.slot_lens = slot_lens;
    nsa_context *ctx = open_noting(&stage);
    check_pointers(ctx);
    check_waits(ctx);
    check_stream(ctx);
    nsa_close(ctx);
    ctx = open_noting(&noting);
    CHECK(nsa_set_stream(ctx, NULL) == NSA_ERR_UNSUPPORTED);
    nsa_close(ctx);
}
