/** @file
 *  @brief Transfers and layouts: what load.cu does for stage.cu, read.cu and decode.cu. */
#ifndef LOAD_CUH
#define LOAD_CUH

#include "stage.cuh"

enum { CHUNK = 1 << 20 }; /* floats of one transfer, or one token's if that is more */

/* load.cu */
nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch);
nsa_status load_dout(void *self, const nsa_tensor *dout);
/* Elements first.. of a float tensor to the device. */
nsa_status upload(stage *st, real *to, const nsa_tensor *src, int64_t first, int64_t count);
/* `count` tokens from `src` on, [count,Hkv,D], into one sequence's blocks from its token t on; `first`
 * is its first block. `kt` [D8,BLOCK] or `nat` [BLOCK,Dp] may be NULL. */
nsa_status lay_keys(stage *st, const real *src, real *kt, real *nat, int64_t stride, int64_t first,
                    int64_t t, int64_t count, int64_t D);

#endif
