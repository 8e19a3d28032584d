/**
 * @file device_bf16.h
 * @brief bfloat16 in memory, float32 in registers, for device code that includes device.h: CUDA's
 * type __nv_bfloat16, which the simulator has too. Works on every architecture: before sm_80 CUDA
 * converts with integer instructions.
 */
#ifndef NSA_DEVICE_BF16_H
#define NSA_DEVICE_BF16_H

#include "device.h"

#ifdef NSA_SIMT
#include "simt/bf16.h"
#else
#include <cuda_bf16.h>
#endif

/** @return one element of a tensor as float32: of a bfloat16 exactly, of a double rounded. */
static __device__ __forceinline__ float nsa_load_float(const float *element) {
    return *element;
}
static __device__ __forceinline__ float nsa_load_float(const double *element) {
    return (float)*element;
}
static __device__ __forceinline__ float nsa_load_float(const __nv_bfloat16 *element) {
    return __bfloat162float(*element);
}

/** Store one element: as bfloat16 rounded to the nearest, ties to even; a NaN stays a NaN, and what
 * is too large becomes infinite. */
static __device__ __forceinline__ void nsa_store_float(float *element, float value) {
    *element = value;
}
static __device__ __forceinline__ void nsa_store_float(__nv_bfloat16 *element, float value) {
    *element = __float2bfloat16_rn(value);
}

#endif
