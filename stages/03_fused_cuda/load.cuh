/** @file
 *  @brief Transfers and layouts: what load.cu does for stage.cu and decode.cu. */
#ifndef LOAD_CUH
#define LOAD_CUH

#include "stage.cuh"

/* Floats of one transfer, or of one token if that is more. NSA_DEBUG_MEMORY makes it short, so that
 * small tensors take several transfers too. */
enum { CHUNK = 1 << 20, SHORT_CHUNK = 1 << 10 };

nsa_status load(void *self, const nsa_tensors *in, const nsa_batch *batch);
nsa_status load_dout(void *self, const nsa_tensor *dout);
/* Copy bytes to the device and wait: `from` may be reused. */
nsa_status copy_to_device(stage *st, void *to, const void *from, size_t bytes);
/* Rows of [T,Hq,D] into row tiles: those of the R tokens listed, or the first R if `tokens` is
 * NULL. */
nsa_status load_rows(stage *st, const nsa_tensor *src, const int64_t *tokens, int64_t R, int64_t D,
                     real *g_t, real *g_n);
/* The same of [T,Hq,3], into st->gate. */
nsa_status load_gates(stage *st, const nsa_tensor *src, const int64_t *tokens, int64_t R);
/* [A,Hkv,D]: row a to position st->row_t[a] of slot st->row_seq[a], which has `blocks` blocks. Into
 * transposed blocks kt [D8,BLOCK] or natural ones nat [BLOCK,Dp]; one is NULL. */
nsa_status append_keys(stage *st, const nsa_tensor *src, real *kt, real *nat, int64_t stride,
                       int64_t blocks, int64_t A, int64_t D);
/* The same without a new layout, into raw [max_seqs,max_seq_len,Hkv,D]. */
nsa_status append_raw(stage *st, const nsa_tensor *src, real *raw, int64_t A, int64_t D);

#endif
