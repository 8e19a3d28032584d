/** @file cpu_stage.h
 *  @brief What all CPU stages do alike, and none is about: weights, rows, results, the table.
 *
 *  A stage defines `real` (its float type) and `copy` (nsa_copy_f32 or nsa_copy_f64), then includes
 * this file. Where its tensors live stands in the stage itself: open, load, struct stage.
 */
#ifndef NSA_CPU_STAGE_H
#define NSA_CPU_STAGE_H

#include "common/pool.h"
#include "common/tensors.h"
#include "common/timer.h"

#include <string.h>

enum { CMP, SLC, WIN, BRANCHES };           /**< the branches, in the order of the gate */
enum { KEYS, VALUES, PAIR };                /**< the two compressors */
enum { PE, W, B, W1, B1, W2, B2, WEIGHTS }; /**< a compressor's weights, in nsa_id's order */

/** The phases that the timer measures; the branches' phases have the branches' numbers. */
enum { SELECT = BRANCHES, COMPRESS, PHASES };

/** @return elements of a compressor's weight, by its shape in the specification. */
static inline int64_t weight_count(const nsa_config *c, int pair, int weight) {
    return nsa_weight_count(c, pair, weight);
}

/** Copy the compressors' weights; phi [PAIR][WEIGHTS] are NULL where phi has none. */
static inline void load_weights(const nsa_config *c, const nsa_tensors *in,
                                real *const phi[PAIR][WEIGHTS]) {
    for (int pair = 0; pair < PAIR; pair++) {
        for (int w = 0; w < WEIGHTS; w++) {
            if (phi[pair][w])
                copy(phi[pair][w], &in->at[NSA_PHI_FIRST + pair * WEIGHTS + w], 0,
                     weight_count(c, pair, w));
        }
    }
}

/** Copy the rows to compute, each from its token's place in a tensor of T rows. */
static inline void load_rows(const nsa_batch *batch, real *dst, const nsa_tensor *src,
                             int64_t row_width) {
    for (int64_t r = 0; r < batch->R; r++)
        copy(dst + r * row_width, src, batch->row[r] * row_width, row_width);
}

/** Copy `count` elements of a result to element `first` of the tensor that is read into. */
static inline void store_result(const nsa_tensor *to, int64_t first, const real *src,
                                int64_t count) {
    if (to->dtype != NSA_BF16 && count)
        memcpy((real *)to->data + first, src, (size_t)count * sizeof *src);
    for (int64_t i = 0; i < count && to->dtype == NSA_BF16; i++)
        ((uint16_t *)to->data)[first + i] = nsa_bf16_from_f32((float)src[i]);
}

/** Copy a result that lies in `src` as the contract wants it; NULL if the stage keeps none. `rows`
 *  are those of the last forward, prefill or decode. */
static inline nsa_status read_result(const nsa_config *c, const nsa_batch *b, int64_t rows,
                                     nsa_id id, const void *src, const nsa_tensor *to) {
    const nsa_lengths lengths = {
        .T = b->T, .R = id == NSA_OUT_CAUSAL ? b->R : rows, .N = b->N, .J = b->J};
    nsa_tensor shape;
    nsa_shape(c, &lengths, id, 1, &shape);
    if (!src)
        return nsa_fail(NSA_ERR_UNSUPPORTED, "this stage keeps no %s", nsa_name(id));
    if (id == NSA_BLOCK_IDX)
        memcpy(to->data, src, (size_t)nsa_count(&shape) * sizeof(int32_t));
    else
        store_result(to, 0, src, nsa_count(&shape));
    return NSA_OK;
}

/** The times of the last call, by phase. @return how many of them fit into `list`. */
static inline int phase_times(const nsa_timer *timer, nsa_phase *list, int capacity) {
    static const char *const names[PHASES] = {"cmp", "slc", "win", "select", "compress"};
    const int n = PHASES < capacity ? PHASES : capacity;
    for (int i = 0; i < n; i++)
        list[i] = (nsa_phase){names[i], timer->seconds[i]};
    return n;
}

/** Plain C runs everywhere. */
static inline nsa_status available(void) {
    return NSA_OK;
}

/** All memory of a CPU stage is the pool's. */
static inline void close(void *self) {
    (void)self;
}

/** The stage's table for the contract, whose functions have the same names in every stage; and the
 *  function of the table that asks for the times. */
#define NSA_CPU_STAGE(arithmetic, one_idea)                                                        \
    static int phases(void *self, nsa_phase *list, int capacity) {                                 \
        return phase_times(&((stage *)self)->timer, list, capacity);                               \
    }                                                                                              \
    const nsa_stage *nsa_stage_get(void) {                                                         \
        static const nsa_stage table = {.abi = NSA_ABI,                                            \
                                        .arith = (arithmetic),                                     \
                                        .idea = (one_idea),                                        \
                                        .available = available,                                    \
                                        .open = open,                                              \
                                        .load = load,                                              \
                                        .load_dout = load_dout,                                    \
                                        .load_step = load_step,                                    \
                                        .forward = forward,                                        \
                                        .backward = backward,                                      \
                                        .prefill = prefill,                                        \
                                        .decode = decode,                                          \
                                        .causal = causal,                                          \
                                        .read = read,                                              \
                                        .close = close,                                            \
                                        .phases = phases};                                         \
        return &table;                                                                             \
    }

#endif
