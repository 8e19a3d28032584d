/**
 * @file device_rows.h
 * @brief Rows of the caller's tensors, wherever these lie: kernels read and write a device tensor
 * itself, and the host's by way of a staging buffer, as many rows at a time as it holds.
 */
#ifndef NSA_DEVICE_ROWS_H
#define NSA_DEVICE_ROWS_H

#include "common/device_stream.h"
#include "common/device_tensor.h"
extern "C" {
#include "common/tensors.h"
}

/** Buffers of the same size on host and device. */
typedef struct nsa_staging {
    float *host;   /**< [count] */
    float *device; /**< [count] */
    int64_t count; /**< at least one row of any tensor */
} nsa_staging;

/** Rows of a tensor [T,size]. */
typedef struct nsa_rows {
    const nsa_tensor *x; /**< on the host or the device */
    const int64_t
        *tokens; /**< [count] on the host: the token of each row; NULL: row r is token r */
    const int64_t *device_tokens; /**< [count] the same on the device */
    int64_t count;                /**< how many */
    int64_t size;                 /**< elements of a row */
} nsa_rows;

/** Where kernels read rows: row r is that of token[r], or of token r without a list, and the data
 * begin with token `first`. */
typedef struct nsa_source {
    const void *data;     /**< on the device */
    nsa_dtype dtype;      /**< of the elements */
    const int64_t *token; /**< on the device, or NULL */
    int64_t first;        /**< of what the data hold */
} nsa_source;

/** Where kernels write rows: the data begin with row `first`. */
typedef struct nsa_target {
    void *data;      /**< on the device */
    nsa_dtype dtype; /**< float32 or bfloat16 */
    int64_t first;   /**< of what the data hold */
} nsa_target;

/** @return which row of the data is row r */
static __device__ __forceinline__ int64_t nsa_source_row(const nsa_source *x, int64_t r) {
    return (x->token ? x->token[r] : r) - x->first;
}

/** Rows r.. of a tensor where kernels can read them: all of a device tensor, or as many of the
 * host's as the buffer holds.
 *  @param s        the stream
 *  @param staging  the buffers; kernels that read the rows before are already submitted
 *  @param x        the rows
 *  @param r        the first that is wanted
 *  @param[out] n   how many there are
 *  @param[out] at  where */
static inline nsa_status nsa_find_rows(const nsa_device_stream *s, const nsa_staging *staging,
                                       const nsa_rows *x, int64_t r, int64_t *n, nsa_source *at) {
    const int64_t most = staging->count / x->size, left = x->count - r;
    *n = left;
    *at = {x->x->data, x->x->dtype, x->device_tokens, 0};
    if (x->x->place == NSA_DEVICE)
        return NSA_OK;
    *n = left < most ? left : most;
    *at = {staging->device, NSA_F32, NULL, r};
    if (!x->tokens)
        nsa_copy_f32(staging->host, x->x, r * x->size, *n * x->size);
    for (int64_t i = 0; i < *n && x->tokens; i++)
        nsa_copy_f32(staging->host + i * x->size, x->x, x->tokens[r + i] * x->size, x->size);
    return nsa_stream_copy(s, staging->device, staging->host,
                           (size_t)(*n * x->size) * sizeof(float));
}

/** Rows row.. of to [rows,size] = those of x. One element a thread. */
static __global__ void nsa_copy_rows_kernel(nsa_source x, int64_t row, int64_t count, int64_t size,
                                            float *to) {
    for (int64_t i = nsa_first(); i < count * size; i += nsa_grid_threads())
        to[row * size + i] =
            nsa_element(x.data, x.dtype, nsa_source_row(&x, row + i / size) * size + i % size);
}

/** All rows to an array of the same layout. */
static inline nsa_status nsa_copy_rows(const nsa_device_stream *s, const nsa_staging *staging,
                                       nsa_rows x, float *to) {
    nsa_source at;
    for (int64_t r = 0, n; r < x.count; r += n) {
        const nsa_status status = nsa_find_rows(s, staging, &x, r, &n, &at);
        if (status)
            return status;
        NSA_LAUNCH(nsa_copy_rows_kernel, nsa_grid(n * x.size), NSA_THREADS, 0, s->now, at, r, n,
                   x.size, to);
        NSA_LAUNCHED("copy_rows");
    }
    return NSA_OK;
}

/** Where rows r.. of a result go: all to a device tensor, or as many as the buffer holds, which
 * nsa_copy_target() then takes to the host's.
 *  @param[out] n  how many */
static inline nsa_target nsa_find_target(const nsa_staging *staging, const nsa_tensor *to,
                                         int64_t size, int64_t r, int64_t rows, int64_t *n) {
    const int64_t most = staging->count / size;
    *n = rows - r;
    if (to->place == NSA_DEVICE)
        return {to->data, to->dtype, 0};
    *n = *n < most ? *n : most;
    return {staging->device, to->dtype, r};
}

/** Take elements first..end-1 from the buffer to the host's tensor; nothing for a device tensor. */
static inline nsa_status nsa_copy_target(const nsa_device_stream *s, const nsa_staging *staging,
                                         const nsa_tensor *to, int64_t first, int64_t end) {
    const size_t element = nsa_dtype_size(to->dtype);
    if (to->place == NSA_DEVICE)
        return NSA_OK;
    return nsa_stream_copy(s, (char *)to->data + (size_t)first * element, staging->device,
                           (size_t)(end - first) * element);
}

/** A whole result of the same type as it lies on the device. */
static inline nsa_status nsa_copy_array(const nsa_device_stream *s, const nsa_tensor *to,
                                        const void *from) {
    const size_t bytes = (size_t)nsa_count(to) * nsa_dtype_size(to->dtype);
    if (to->place == NSA_HOST)
        return nsa_stream_copy(s, to->data, from, bytes);
    NSA_CUDA(cudaMemcpyAsync(to->data, from, bytes, cudaMemcpyDeviceToDevice, s->now));
    return nsa_stream_finish(s);
}

#endif
