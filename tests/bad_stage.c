/** @file bad_stage.c
 *  @brief Shared objects that are not valid stages, for `make test-bad-input`. WRONG selects the
 * fault: 0 exports nothing, 1 returns no table, 2 has another contract's number, 3 lacks forward, 4
 * is unavailable, 5 fails to open, 6 says that it runs on a device. */
#include "nsa_stage.h"

#include <stddef.h>

#if WRONG > 0
static nsa_status available(void) {
    return WRONG == 4 ? nsa_fail(NSA_ERR_DEVICE, "no such machine") : NSA_OK;
}

static nsa_status open(const nsa_plan *plan, void **self) {
    (void)plan;
    *self = NULL;
    return nsa_fail(NSA_ERR_DEVICE, "open fails on purpose");
}

static nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch) {
    (void)self, (void)in, (void)batch;
    return NSA_ERR_DEVICE;
}

static nsa_status load_dout(void *self, const nsa_tensor *dout) {
    (void)self, (void)dout;
    return NSA_ERR_DEVICE;
}

static nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    (void)self, (void)in, (void)step;
    return NSA_ERR_DEVICE;
}

static nsa_status call(void *self) {
    (void)self;
    return NSA_ERR_DEVICE;
}

static nsa_status read(void *self, nsa_id id, const nsa_tensor *to) {
    (void)self, (void)id, (void)to;
    return NSA_ERR_DEVICE;
}

static void close(void *self) {
    (void)self;
}

static const char *device(void) {
    return "a device without memory or streams";
}

static const nsa_stage table = {.abi = WRONG == 2 ? 4242 : NSA_ABI,
                                .idea = "nothing",
                                .available = available,
                                .open = open,
                                .load = load,
                                .load_dout = load_dout,
                                .load_step = load_step,
                                .forward = WRONG == 3 ? NULL : call,
                                .backward = call,
                                .prefill = call,
                                .decode = call,
                                .read = read,
                                .close = close,
                                .device = WRONG == 6 ? device : NULL};

NSA_EXPORT const nsa_stage *nsa_stage_get(void) {
    return WRONG == 1 ? NULL : &table;
}
#else
NSA_EXPORT int nothing_here(void);
int nothing_here(void) {
    return 0;
}
#endif
