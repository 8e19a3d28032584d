/**
 * @file cuda_stage.h
 * @brief What all CUDA stages do alike, and none is about, as cpu_stage.h is for those of the CPU:
 * the functions of the table about devices, streams and times, and the table.
 *
 * A stage defines `struct stage` with `streams`, `stream` (the stream that kernels are launched
 * in), `timer`, `refusals` and `cfg`, then includes this file.
 */
#ifndef NSA_CUDA_STAGE_H
#define NSA_CUDA_STAGE_H

#include "common/device_calls.h"
#include "common/device_refusals.h"
#include "common/device_tensor.h"
#include "common/device_timer.h"

static nsa_status available(void) {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0)
        return nsa_fail(NSA_ERR_DEVICE, "no CUDA device: %s", cudaGetErrorString(error));
    return NSA_OK;
}

static nsa_status set_stream(void *self, void *stream) {
    stage *st = (stage *)self;
    const nsa_status status = nsa_stream_set(&st->streams, stream);
    st->stream = st->streams.now;
    return status;
}

static nsa_status check(void *self, nsa_id id, const nsa_tensor *tensor) {
    return nsa_check_device_tensor(id, tensor, ((const stage *)self)->streams.device);
}

static nsa_status pending(void *self) {
    stage *st = (stage *)self;
    return nsa_refusals_report(&st->refusals, st->cfg.max_seq_len);
}

/** The stage's table for the contract, whose functions have the same names in every stage, and the
 * function of the table that lists the times of the phases. */
#define NSA_CUDA_STAGE(arithmetic, one_idea, phase_names, phase_count)                             \
    static int phases(void *self, nsa_phase *list, int capacity) {                                 \
        return nsa_device_timer_list(&((const stage *)self)->timer, phase_names, phase_count,      \
                                     list, capacity);                                              \
    }                                                                                              \
    extern "C" NSA_EXPORT const nsa_stage *nsa_stage_get(void) {                                   \
        static const nsa_stage table = {                                                           \
            NSA_ABI, (arithmetic),    (one_idea),      available,  open,                           \
            load,    load_dout,       load_step,       forward,    backward,                       \
            prefill, decode,          causal,          read,       close,                          \
            phases,  nsa_device_name, nsa_free_memory, set_stream, check,                          \
            pending, slot_lens,       &nsa_calls};                                                 \
        return &table;                                                                             \
    }

#endif
