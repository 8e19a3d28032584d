/**
 * @file device_tensor.h
 * @brief A caller's tensors on the device, for CUDA stages: which pointers are refused, and how
 * kernels read elements of float32, float64 or bfloat16 and write float32 or bfloat16.
 */
#ifndef NSA_DEVICE_TENSOR_H
#define NSA_DEVICE_TENSOR_H

#include "common/device.h"
#include "common/device_bf16.h"

/** @return element i as a float, of float32, float64 or bfloat16 elements. */
static __device__ __forceinline__ float nsa_element(const void *x, nsa_dtype dtype, int64_t i) {
    return dtype == NSA_F32    ? nsa_load_float((const float *)x + i)
           : dtype == NSA_BF16 ? nsa_load_float((const __nv_bfloat16 *)x + i)
                               : nsa_load_float((const double *)x + i);
}

/** Element i = value, of float32 or bfloat16 elements. */
static __device__ __forceinline__ void nsa_store_element(void *x, nsa_dtype dtype, int64_t i,
                                                         float value) {
    if (dtype == NSA_BF16)
        nsa_store_float((__nv_bfloat16 *)x + i, value);
    else
        nsa_store_float((float *)x + i, value);
}

/** For nsa_stage.check: @return NSA_OK if `tensor` begins and ends in memory of this device. Freed
 * memory is found as far as the driver knows: an allocator that keeps it (PyTorch's) hides that. */
static inline nsa_status nsa_check_device_tensor(nsa_id id, const nsa_tensor *tensor, int device) {
    const char *name = (nsa_name)(id), *data = (const char *)tensor->data;
    const size_t bytes = (size_t)nsa_count(tensor) * nsa_dtype_size(tensor->dtype);
    for (int end = 0; end < 2; end++) {
        cudaPointerAttributes at;
        const void *byte = data + (end ? bytes - 1 : 0);
        if (cudaPointerGetAttributes(&at, byte) != cudaSuccess)
            at.type = cudaMemoryTypeUnregistered;
        (void)cudaGetLastError(); /* that of a pointer unknown to the driver */
        if (at.type != cudaMemoryTypeDevice && at.type != cudaMemoryTypeManaged)
            return nsa_fail(NSA_ERR_INPUT,
                            "%s says that it is on the device, but %s, %p, is not: "
                            "it is the host's, or was freed, or lies past an allocation",
                            name, end ? "its last byte" : "its first byte", byte);
        if (at.type == cudaMemoryTypeDevice && at.device != device)
            return nsa_fail(NSA_ERR_INPUT, "%s is on device %d, this context is on device %d", name,
                            at.device, device);
    }
    return NSA_OK;
}

#endif
