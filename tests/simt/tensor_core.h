// What stages/common/device_mma.h calls in place of tensor core and asynchronous copy instructions.
#ifndef SIMT_TENSOR_CORE_H
#define SIMT_TENSOR_CORE_H

#include "kernel.h"

namespace simt {

bool use_tensor_cores(); // in device.cpp: sm_86 becomes the default device
static const bool uses_tensor_cores = use_tensor_cores();

// Collectives of a whole warp; fragments lie in registers as the PTX manual says.
Turn mma_arrive(const float *c, const unsigned *a, const unsigned *b, Where where);
void mma_result(float *c);
inline void mma_m16n8k16_bf16(float *c, const unsigned *a, const unsigned *b, Where where) {
    take(mma_arrive(c, a, b, where));
    mma_result(c);
}
Turn ldmatrix_arrive(const void *row, bool transposed, Where where);
void ldmatrix_result(unsigned *fragment);
inline void ldmatrix_x4(unsigned *fragment, const void *row, bool transposed, Where where) {
    take(ldmatrix_arrive(row, transposed, where));
    ldmatrix_result(fragment);
}
Turn movmatrix_arrive(unsigned pair, Where where);
unsigned movmatrix_result();
inline unsigned movmatrix_trans(unsigned pair, Where where) {
    take(movmatrix_arrive(pair, where));
    return movmatrix_result();
}

// Copy 16 bytes, which arrive when the calling thread waits; until then they are NaN.
void copy_async(void *shared, const void *global, bool valid, Where where);
void copy_commit();
void copy_wait(int pending); // until at most this many of the thread's groups are pending

} // namespace simt

#endif
