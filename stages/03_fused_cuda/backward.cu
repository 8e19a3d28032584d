/** @file
 *  @brief Backward: to come. */
#include "stage.cuh"

nsa_status open_backward(stage *st) {
    (void)st;
    return NSA_OK;
}

nsa_status backward(void *self) {
    (void)self;
    return nsa_fail(NSA_ERR_UNSUPPORTED, "backward is to come");
}
