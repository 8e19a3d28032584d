/**
 * @file device_values.h
 * @brief Values that the contract checks in host tensors, and kernels in device tensors: block
 * lists, which they also sort, and gates.
 */
#ifndef NSA_DEVICE_VALUES_H
#define NSA_DEVICE_VALUES_H

#include "common/device_stream.h"

/** The first of each that breaks a rule, on the device; all bits one if none does. */
typedef struct nsa_bad_values {
    unsigned long long gate; /**< number of a gate of [rows,heads,3] */
    unsigned long long row;  /**< a row, for its block list */
} nsa_bad_values;

/** Block lists on the device. */
typedef struct nsa_block_lists {
    const int32_t *blocks; /**< [T,Hkv,n], as the caller gave them */
    const int64_t *token;  /**< [rows] the token of each row; NULL: row r is token r */
    const int32_t *pos;    /**< [rows] its position in its sequence; -1: no row */
    int64_t rows;          /**< how many */
    int Hkv;               /**< kv heads */
    int n;                 /**< blocks of a list */
    int slc_block;         /**< tokens of a block */
} nsa_block_lists;

/** The blocks of each row that exist, ascending, then -1, to `sorted` [rows,Hkv,n]: what is no
 * block up to the row's own, or is there already, is dropped. One row and head a thread. */
static __global__ void nsa_sort_blocks(nsa_block_lists x, int32_t *sorted, nsa_bad_values *bad) {
    for (int64_t i = nsa_first(); i < x.rows * x.Hkv; i += nsa_grid_threads()) {
        const int64_t r = i / x.Hkv, token = x.token ? x.token[r] : r;
        const int32_t *from = x.blocks + (token * x.Hkv + i % x.Hkv) * x.n;
        int32_t *to = sorted + i * x.n;
        int used = 0;
        for (int k = 0; k < x.n; k++) {
            const int block = from[k];
            int at = used;
            while (at > 0 && to[at - 1] >= block)
                at--;
            const bool exists = block >= 0 && x.pos[r] >= 0 && block <= x.pos[r] / x.slc_block;
            if (!exists || (at < used && to[at] == block)) {
                if (block != -1 && x.pos[r] >= 0) /* a full slot is reported as such */
                    atomicMin(&bad->row, (unsigned long long)r);
                continue;
            }
            for (int m = used++; m > at; m--)
                to[m] = to[m - 1];
            to[at] = block;
        }
        for (; used < x.n; used++)
            to[used] = -1;
    }
}

/** The first gate that is not in [0,1]. One gate a thread. */
static __global__ void nsa_find_bad_gate(const float *gate, int64_t count, nsa_bad_values *bad) {
    for (int64_t i = nsa_first(); i < count; i += nsa_grid_threads()) {
        if (!(gate[i] >= 0 && gate[i] <= 1))
            atomicMin(&bad->gate, (unsigned long long)i);
    }
}

/** Sort block lists on the device. */
static inline nsa_status nsa_sort_device_blocks(const nsa_device_stream *s, nsa_block_lists x,
                                                int32_t *sorted, nsa_bad_values *bad) {
    if (x.rows)
        NSA_LAUNCH(nsa_sort_blocks, nsa_grid(x.rows * x.Hkv), NSA_THREADS, 0, s->now, x, sorted,
                   bad);
    NSA_LAUNCHED("sort_blocks");
    return NSA_OK;
}

/** The block lists of a load or a step, to `sorted`, and `bad` ready for the checks.
 *  @param s        the stream
 *  @param idx      the input; absent: nothing is loaded
 *  @param checked  its lists, checked and sorted, if it is on the host
 *  @param x        all but its blocks
 *  @param sorted   [rows,Hkv,n] on the device
 *  @param bad      on the device */
static inline nsa_status nsa_load_block_lists(const nsa_device_stream *s, const nsa_tensor *idx,
                                              const int32_t *checked, nsa_block_lists x,
                                              int32_t *sorted, nsa_bad_values *bad) {
    NSA_CUDA(cudaMemsetAsync(bad, 0xff, sizeof *bad, s->now));
    x.blocks = (const int32_t *)idx->data;
    if (idx->dtype && idx->place == NSA_DEVICE)
        return nsa_sort_device_blocks(s, x, sorted, bad);
    return nsa_stream_copy(s, sorted, checked,
                           idx->dtype ? (size_t)(x.rows * x.Hkv * x.n) * sizeof *sorted : 0);
}

/** With NSA_CHECK_VALUES: an error if a gate or a block list broke a rule; waits.
 *  @param s     the stream
 *  @param gate  [rows,heads,3] on the device, as float32
 *  @param rows  that were loaded
 *  @param heads query heads
 *  @param bad   what sorting found, on the device */
static inline nsa_status nsa_check_device_values(const nsa_device_stream *s, const float *gate,
                                                 int64_t rows, int64_t heads, nsa_bad_values *bad) {
    nsa_bad_values found;
    float value;
    if (rows)
        NSA_LAUNCH(nsa_find_bad_gate, nsa_grid(rows * heads * 3), NSA_THREADS, 0, s->now, gate,
                   rows * heads * 3, bad);
    NSA_LAUNCHED("find_bad_gate");
    nsa_status status = nsa_stream_copy(s, &found, bad, sizeof found);
    const long long at = (long long)found.gate;
    if (status)
        return status;
    if (found.gate != ~0ULL) {
        status = nsa_stream_copy(s, &value, gate + at, sizeof value);
        return status ? status
                      : nsa_fail(NSA_ERR_INPUT,
                                 "gate[%lld,%lld,%lld] = %g is not in [0,1], counting rows that "
                                 "are computed",
                                 at / 3 / (long long)heads, at / 3 % (long long)heads, at % 3,
                                 (double)value);
    }
    if (found.row != ~0ULL)
        return nsa_fail(
            NSA_ERR_INPUT,
            "block_idx of row %lld, counting rows that are computed, holds a block twice, or one "
            "that is not -1 or 0..the row's own",
            (long long)found.row);
    return NSA_OK;
}

#endif
