/**
 * @file on_device.h
 * @brief Tensors of a case on the device of a stage, and results there.
 */
#ifndef HARNESS_ON_DEVICE_H
#define HARNESS_ON_DEVICE_H

#include "harness/run.h"

/** float32 tensors as bfloat16, all others as they are.
 *  @param from     the tensors
 *  @param[out] to  free with tensors_free() */
nsa_status tensors_to_bf16(const nsa_tensors *from, nsa_tensors *to);

/** Copies on the device; cu_seqlens, rows and active, which the host reads, stay the host's.
 *  @param stage    whose device
 *  @param from     on the host
 *  @param[out] to  free with device_free() */
nsa_status device_copy(const nsa_stage *stage, const nsa_tensors *from, nsa_tensors *to);

/** Write other values of the same shapes into tensors made by device_copy(). */
nsa_status device_fill(const nsa_stage *stage, const nsa_tensors *from, nsa_tensors *to);

/** Device memory for every result of a context, all bits one.
 *  @param stage    whose device
 *  @param ctx      after the calls whose results are wanted
 *  @param bf16     1: floats as bfloat16
 *  @param[out] to  free with device_free() */
nsa_status device_results(const nsa_stage *stage, nsa_context *ctx, int bf16, nsa_tensors *to);

/** Read every result that `to` has memory for. */
nsa_status device_read(nsa_context *ctx, nsa_tensors *to);

/** Copies on the host of tensors on the device.
 *  @param stage    whose device
 *  @param from     on the device
 *  @param[out] to  free with tensors_free() */
nsa_status device_fetch(const nsa_stage *stage, const nsa_tensors *from, nsa_tensors *to);

/** Free the device memory of all tensors and make them absent. */
void device_free(const nsa_stage *stage, nsa_tensors *t);

/** Rows first..first+count-1 of all inputs with a row a token, on the host or the device. */
nsa_tensors rows_from(const nsa_tensors *in, int64_t first, int64_t count);

/** @return NSA_OK if a call returned `want` with an error text that holds `text`. */
nsa_status expect_error(nsa_status got, nsa_status want, const char *text);

#endif
