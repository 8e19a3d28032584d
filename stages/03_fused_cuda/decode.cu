/** @file
 *  @brief Decode: caches in the same blocks, one slot a sequence, one row a step. */
#include "load.cuh"

nsa_status open_decode(stage *st) {
    (void)st;
    return NSA_OK;
}
nsa_status prefill(void *self) {
    return forward(self);
}
nsa_status load_step(void *self, const nsa_tensors *in, const nsa_step *step) {
    (void)self, (void)in, (void)step;
    return nsa_fail(NSA_ERR_UNSUPPORTED, "decode is to come");
}
nsa_status decode(void *self) {
    (void)self;
    return nsa_fail(NSA_ERR_UNSUPPORTED, "decode is to come");
}
