/** @file tensor.c
 *  @brief Fenced tensors. */
#include "harness/tensor.h"
#include "common/fence.h"
#include "common/tensors.h"

#include <stdlib.h>
#include <string.h>

enum { FENCE = 64, SENTINEL = 0x5C };

/* The bytes of a tensor's elements; the second fence follows them. */
static size_t bytes_of(const nsa_tensor *t) {
    return (size_t)nsa_count(t) * nsa_dtype_size(t->dtype);
}

/* Make both fences inaccessible, or accessible to the harness. */
static void close_fences(const nsa_tensor *t) {
    nsa_hide((char *)t->data - FENCE, FENCE);
    nsa_hide((char *)t->data + bytes_of(t), FENCE);
}

static void open_fences(const nsa_tensor *t) {
    nsa_show((char *)t->data - FENCE, FENCE);
    nsa_show((char *)t->data + bytes_of(t), FENCE);
}

nsa_status tensor_alloc(nsa_tensor *t) {
    int64_t count = nsa_count(t);
    unsigned char *start = NULL;
    if (count >= 0)
        start = malloc(bytes_of(t) + 2 * FENCE);
    t->data = NULL;
    if (!start)
        return nsa_fail(NSA_ERR_MEMORY, "the harness cannot allocate a tensor");
    memset(start, SENTINEL, FENCE);
    memset(start + FENCE, 0xFF, bytes_of(t));
    memset(start + FENCE + bytes_of(t), SENTINEL, FENCE);
    t->data = start + FENCE;
    close_fences(t);
    return NSA_OK;
}

nsa_status tensor_copy(nsa_tensor *dst, const nsa_tensor *src) {
    *dst = *src;
    nsa_status status = tensor_alloc(dst);
    if (!status && bytes_of(src))
        memcpy(dst->data, src->data, bytes_of(src));
    return status;
}

void tensor_free(nsa_tensor *t) {
    if (t->data)
        free((unsigned char *)t->data - FENCE);
    memset(t, 0, sizeof *t);
}

int tensor_fences_intact(const nsa_tensor *t) {
    const unsigned char *data = t->data;
    int intact = 1;
    open_fences(t);
    for (int i = 0; i < FENCE; i++)
        intact &= data[i - FENCE] == SENTINEL && data[bytes_of(t) + (size_t)i] == SENTINEL;
    close_fences(t);
    return intact;
}

nsa_status tensors_copy(nsa_tensors *dst, const nsa_tensors *src) {
    nsa_status status = NSA_OK;
    memset(dst, 0, sizeof *dst);
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        if (src->at[id].dtype)
            status = tensor_copy(&dst->at[id], &src->at[id]);
    }
    return status;
}

nsa_status tensors_widen(nsa_tensors *t) {
    nsa_status status = NSA_OK;
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        nsa_tensor narrow = t->at[id], *wide = &t->at[id];
        if (narrow.dtype != NSA_F32)
            continue;
        wide->dtype = NSA_F64;
        status = tensor_alloc(wide);
        for (int64_t i = 0; i < nsa_count(wide) && !status; i++)
            tensor_set(wide, i, tensor_get(&narrow, i));
        tensor_free(&narrow);
    }
    return status;
}

void tensors_free(nsa_tensors *t) {
    for (int id = 0; id < NSA_ID_COUNT; id++)
        tensor_free(&t->at[id]);
}

double tensor_get(const nsa_tensor *t, int64_t i) {
    switch (t->dtype) {
    case NSA_F32:
        return (double)((const float *)t->data)[i];
    case NSA_F64:
        return ((const double *)t->data)[i];
    case NSA_I32:
        return ((const int32_t *)t->data)[i];
    case NSA_BF16:
        return (double)nsa_bf16_to_f32(((const uint16_t *)t->data)[i]);
    default:
        return 0;
    }
}

void tensor_set(nsa_tensor *t, int64_t i, double value) {
    if (t->dtype == NSA_F64)
        ((double *)t->data)[i] = value;
    else if (t->dtype == NSA_BF16)
        ((uint16_t *)t->data)[i] = nsa_bf16_from_f32((float)value);
    else
        ((float *)t->data)[i] = (float)value;
}

int32_t *tensor_ints(const nsa_tensor *t) {
    return t->data;
}

int64_t tensor_row(const nsa_tensor *t) {
    int64_t row = 1;
    for (int i = 1; i < t->ndim; i++)
        row *= t->shape[i];
    return row;
}

int tensor_same(const nsa_tensor *a, const nsa_tensor *b) {
    if (a->dtype != b->dtype || a->ndim != b->ndim)
        return 0;
    for (int i = 0; i < a->ndim; i++) {
        if (a->shape[i] != b->shape[i])
            return 0;
    }
    return !bytes_of(a) || !memcmp(a->data, b->data, bytes_of(a));
}

int tensor_same_row(const nsa_tensor *a, const nsa_tensor *b, int64_t r) {
    size_t row = (size_t)tensor_row(a) * nsa_dtype_size(a->dtype);
    return !memcmp((const char *)a->data + (size_t)r * row, (const char *)b->data + (size_t)r * row,
                   row);
}
