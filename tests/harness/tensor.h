/**
 * @file tensor.h
 * @brief Tensors of the harness: between fences of sentinel bytes, poisoned until written.
 */
#ifndef HARNESS_TENSOR_H
#define HARNESS_TENSOR_H

#include "nsa_stage.h"

/** Allocate fenced memory for `t` (dtype, ndim and shape are set), all bits one: NaN, or -1. */
nsa_status tensor_alloc(nsa_tensor *t);

/** A fenced copy of a tensor. */
nsa_status tensor_copy(nsa_tensor *dst, const nsa_tensor *src);

/** Free what tensor_alloc() allocated and make the tensor absent. */
void tensor_free(nsa_tensor *t);

/** @return 1 if both fences of a tensor are intact. */
int tensor_fences_intact(const nsa_tensor *t);

/** A fenced copy of each tensor that is present. */
nsa_status tensors_copy(nsa_tensors *dst, const nsa_tensors *src);

/** Convert every float32 tensor to float64. */
nsa_status tensors_widen(nsa_tensors *t);

/** Free every tensor. */
void tensors_free(nsa_tensors *t);

/** @return element i as a double, whatever the type. */
double tensor_get(const nsa_tensor *t, int64_t i);

/** Set element i of a float tensor. */
void tensor_set(nsa_tensor *t, int64_t i, double value);

/** @return the int32 elements. */
int32_t *tensor_ints(const nsa_tensor *t);

/** @return elements of one row: the product of all dimensions but the first. */
int64_t tensor_row(const nsa_tensor *t);

/** @return 1 if both have the same type, shape and bytes; NaN equals NaN of the same bits. */
int tensor_same(const nsa_tensor *a, const nsa_tensor *b);

/** @return 1 if row r of both has the same bytes. */
int tensor_same_row(const nsa_tensor *a, const nsa_tensor *b, int64_t r);

#endif
