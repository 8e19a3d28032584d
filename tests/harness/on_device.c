/** @file on_device.c
 *  @brief Tensors on the device of a stage, by the stage's own calls. */
#include "harness/on_device.h"
#include "harness/tensor.h"

#include <string.h>

static size_t bytes_of(const nsa_tensor *t) {
    return (size_t)nsa_count(t) * nsa_dtype_size(t->dtype);
}

static int is_of_host(int id) {
    return id == NSA_CU_SEQLENS || id == NSA_ROWS || id == NSA_ACTIVE;
}

nsa_status tensors_to_bf16(const nsa_tensors *from, nsa_tensors *to) {
    nsa_status status = tensors_copy(to, from);
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        nsa_tensor *t = &to->at[id];
        if (t->dtype != NSA_F32)
            continue;
        tensor_free(t);
        *t = from->at[id];
        t->dtype = NSA_BF16;
        status = tensor_alloc(t);
        for (int64_t i = 0; i < nsa_count(t) && !status; i++)
            tensor_set(t, i, tensor_get(&from->at[id], i));
    }
    return status;
}

nsa_status device_fill(const nsa_stage *stage, const nsa_tensors *from, nsa_tensors *to) {
    nsa_status status = NSA_OK;
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        if (from->at[id].dtype && !is_of_host(id))
            status =
                stage->calls->copy(to->at[id].data, from->at[id].data, bytes_of(&from->at[id]));
    }
    return status;
}

nsa_status device_copy(const nsa_stage *stage, const nsa_tensors *from, nsa_tensors *to) {
    nsa_status status = NSA_OK;
    *to = *from;
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        nsa_tensor *t = &to->at[id];
        if (!t->dtype || is_of_host(id))
            continue;
        t->place = NSA_DEVICE;
        t->data = NULL;
        status = stage->calls->alloc(&t->data, bytes_of(t));
    }
    return status ? status : device_fill(stage, from, to);
}

nsa_status device_results(const nsa_stage *stage, nsa_context *ctx, int bf16, nsa_tensors *to) {
    nsa_status status = NSA_OK;
    memset(to, 0, sizeof *to);
    for (int id = NSA_BLOCK_IDX; id < NSA_ID_COUNT && !status; id++) {
        nsa_tensor *t = &to->at[id], poison;
        if (nsa_result(ctx, (nsa_id)id, t)) {
            *t = (nsa_tensor){0};
            continue;
        }
        if (bf16 && t->dtype != NSA_I32)
            t->dtype = NSA_BF16;
        poison = *t;
        status = tensor_alloc(&poison); /* all bits one */
        t->place = NSA_DEVICE;
        status = status ? status : stage->calls->alloc(&t->data, bytes_of(t));
        status = status ? status : stage->calls->copy(t->data, poison.data, bytes_of(t));
        tensor_free(&poison);
    }
    return status;
}

nsa_status device_read(nsa_context *ctx, nsa_tensors *to) {
    nsa_status status = NSA_OK;
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        if (to->at[id].dtype)
            status = nsa_read(ctx, (nsa_id)id, &to->at[id]);
    }
    return status;
}

nsa_status device_fetch(const nsa_stage *stage, const nsa_tensors *from, nsa_tensors *to) {
    nsa_status status = NSA_OK;
    memset(to, 0, sizeof *to);
    for (int id = 0; id < NSA_ID_COUNT && !status; id++) {
        nsa_tensor *t = &to->at[id];
        if (!from->at[id].dtype)
            continue;
        *t = from->at[id];
        t->place = NSA_HOST;
        status = tensor_alloc(t);
        status = status ? status : stage->calls->copy(t->data, from->at[id].data, bytes_of(t));
    }
    return status;
}

void device_free(const nsa_stage *stage, nsa_tensors *t) {
    for (int id = 0; id < NSA_ID_COUNT; id++) {
        if (t->at[id].dtype && t->at[id].place == NSA_DEVICE)
            stage->calls->free(t->at[id].data);
        t->at[id] = (nsa_tensor){0};
    }
}

nsa_tensors rows_from(const nsa_tensors *in, int64_t first, int64_t count) {
    nsa_tensors view = *in;
    for (int id = NSA_Q; id <= NSA_BLOCK_IDX; id++) {
        nsa_tensor *t = &view.at[id];
        if (!t->dtype || (id > NSA_GATE && id < NSA_BLOCK_IDX))
            continue;
        t->data = (char *)t->data + (size_t)(first * tensor_row(t)) * nsa_dtype_size(t->dtype);
        t->shape[0] = count;
    }
    return view;
}

nsa_status expect_error(nsa_status got, nsa_status want, const char *text) {
    if (got == want && strstr(nsa_last_error(), text))
        return NSA_OK;
    return nsa_fail(NSA_ERR_INPUT, "expected %s saying \"%s\", got %s \"%.200s\"",
                    nsa_status_name(want), text, nsa_status_name(got), got ? nsa_last_error() : "");
}
